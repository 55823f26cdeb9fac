"""Rank-1 BNN: BatchEnsemble with Gaussian vectors (Dusenberry et al. 2020, arXiv:2005.07186)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lorae import seeds
from lorae.methods.base import Step, check_positive
from lorae.methods.batchensemble import BatchEnsemble
from lorae.methods.gaussian_weights import WeightNoise, check_no_other_noise, std_gradient

if TYPE_CHECKING:
    import torch

    from lorae.engine.adapters import Adapters, Stacked
    from lorae.trial import Trial


@dataclass(frozen=True)
class Rank1BNN(BatchEnsemble):
    """BatchEnsemble with Gaussian r and s, N(mean, softplus(rho)^2) element-wise; members are the components
    of a mixture.

    The loss is the NLL of one sample per step plus the KL divergence from the prior N(1, prior_std^2) divided
    by the number of training examples. The KL weight is annealed: it grows during the first `annealed_frac`
    of the steps. A member predicts with the means, or by `lorae.draws.Posterior`.

    Args:
        targets, init, std: as for `BatchEnsemble`, applied to the means.
        noise_std: softplus(rho) at the start, > 0.
        prior_std: > 0.
        annealed_frac: in [0, 1].

    Source: Dusenberry et al. 2020, arXiv:2005.07186; one sample per step, the prior and the annealing follow
    the authors' code, which also trains W. Here W is pre-trained and frozen.
    """

    label = "rank-1-bnn"
    names = ("single rank-1 BNN component", "rank-1 BNN")
    factors: ClassVar[tuple[str, ...]] = ("r", "s", "r_rho", "s_rho")
    streams: ClassVar[Mapping[str, str]] = {"posterior": "posterior"}
    is_bayesian: ClassVar[bool] = True

    noise_std: float = 0.03
    prior_std: float = 0.1
    annealed_frac: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "noise_std", "prior_std")
        if not 0 <= self.annealed_frac <= 1:
            raise ValueError(
                f"annealed_frac={self.annealed_frac}: must be in [0, 1]; write Rank1BNN(annealed_frac=0.8)"
            )

    @property
    def init_label(self) -> str:
        return f"{super().init_label}+noise-{self.noise_std:g}"

    def check(self, trial: Trial) -> None:
        check_no_other_noise(trial)

    def num_parameters(self, d_in: int, d_out: int) -> int:
        return 2 * super().num_parameters(d_in, d_out)

    def draw(self, layer: str, d_in: int, d_out: int, key: seeds.Key) -> tuple[np.ndarray, ...]:
        """Means of r (d_in,) and s (d_out,), then their rhos."""
        rho = math.log(math.expm1(self.noise_std))
        return *super().draw(layer, d_in, d_out, key), np.full(d_in, rho), np.full(d_out, rho)

    def make_noise(self, streams: Sequence[Mapping[str, seeds.Key]]) -> WeightNoise:
        return WeightNoise([s["posterior"] for s in streams], flipout=False)

    def vectors(self, layer: Stacked) -> tuple[torch.Tensor, torch.Tensor]:
        """A sample of the members' r (M, D) and s (M, E)."""
        r_MD, s_ME, *rhos = layer.factors()
        if (noise := layer.noise) is None:  # in a soup
            return r_MD, s_ME
        assert isinstance(noise, WeightNoise)
        added_MD, added_ME = (
            noise.sample(_softplus(rho), "layer", layer.number, side) for side, rho in enumerate(rhos)
        )
        return r_MD + added_MD, s_ME + added_ME

    def before_clip(self, adapters: Adapters, step: Step) -> None:
        """Add the gradient of the annealed KL divergence from N(1, prior_std^2)."""
        import torch

        weight = self.kl_weight(step.number, step.num_steps, step.num_train)
        with torch.no_grad():
            for layer in adapters.layers:
                r, s, *rhos = adapters.factors(layer)
                for mean, rho in zip((r, s), rhos):
                    assert mean.grad is not None and rho.grad is not None
                    mean.grad += weight * (mean - 1) / self.prior_std**2
                    rho.grad += weight * std_gradient(_softplus(rho), self.prior_std) * rho.sigmoid()

    def kl_weight(self, step: int, num_steps: int, num_train: int) -> float:
        """Weight of the KL divergence in the loss of step `step` (from 0)."""
        annealed = self.annealed_frac * num_steps
        return min(1.0, (step + 1) / annealed if annealed else 1.0) / num_train


def _softplus(rho: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.nn.functional.softplus(rho)
