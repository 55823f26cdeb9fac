"""BLoB: LoRA with a Gaussian A (Wang et al. 2024, arXiv:2406.11675)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lorae import seeds
from lorae.methods.base import Linears, Step, check_positive
from lorae.methods.gaussian_weights import WeightNoise, check_no_other_noise, std_gradient
from lorae.methods.lora import Lora

if TYPE_CHECKING:
    import torch

    from lorae.engine.adapters import Adapters, Stacked
    from lorae.trial import Trial


@dataclass(frozen=True)
class Blob(Lora):
    """LoRA with a Gaussian A ~ N(mean, (G * G)^2), element-wise; mean, G and B are trained.

    Each step draws one sample, and every training example gets its own by random signs (Flipout, Wen et al.
    2018, arXiv:1803.04386). After each optimiser step on the NLL, gradient descent takes a step on the KL
    divergence from the prior N(0, prior_std^2); its size is kl_lr times the learning-rate schedule times the
    weight of the step. A member predicts with the mean, or by `lorae.draws.Posterior`.

    Args:
        rank, alpha, targets, init, b_std: as for `Lora`; `init` applies to the mean.
        std_root: G starts uniform in [std_root / sqrt(2), std_root]; > 0.
        prior_std: > 0.
        kl_lr: step size of the KL divergence, > 0; kl_lr < 2 prior_std^2, or the mean oscillates.
        gamma: the weights of the steps grow over cycles of 100 N^(pi / gamma) / batch_size steps, for N
            training examples; > 0.

    Source: Wang et al. 2024, arXiv:2406.11675; the order of the steps, the cycles and the weights follow the
    authors' code, which draws signs for each token, not for each example.
    """

    label = "blob"
    names = ("single BLoB", "BLoB ensemble")
    factors: ClassVar[tuple[str, ...]] = ("A", "B", "G")
    streams: ClassVar[Mapping[str, str]] = {"posterior": "posterior"}
    is_bayesian: ClassVar[bool] = True

    std_root: float = 0.05
    prior_std: float = 0.2
    kl_lr: float = 0.01
    gamma: float = 8.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "std_root", "prior_std", "kl_lr", "gamma")
        if self.kl_lr >= 2 * self.prior_std**2:
            raise ValueError(
                f"kl_lr={self.kl_lr} with prior_std={self.prior_std}: must be < 2 prior_std^2, or the mean "
                f"oscillates; write Blob(kl_lr={self.prior_std**2 / 4:.2g}) or less"
            )

    @property
    def init_label(self) -> str:
        return f"{super().init_label}+g-{self.std_root:g}"

    def check(self, trial: Trial) -> None:
        super().check(trial)
        check_no_other_noise(trial)

    def num_parameters(self, d_in: int, d_out: int) -> int:
        return super().num_parameters(d_in, d_out) + self.rank * d_in

    def draw(self, layer: str, d_in: int, d_out: int, key: seeds.Key) -> tuple[np.ndarray, ...]:
        """The mean of A (rank, d_in), B (d_out, rank) and G (rank, d_in)."""
        low = self.std_root / math.sqrt(2)
        g = seeds.stream(*key, layer, "G").uniform(low, self.std_root, (self.rank, d_in))
        return *super().draw(layer, d_in, d_out, key), g

    def make_noise(self, streams: Sequence[Mapping[str, seeds.Key]]) -> WeightNoise:
        return WeightNoise([s["posterior"] for s in streams], flipout=True)

    def lowered(self, layer: Stacked, x: torch.Tensor) -> torch.Tensor:
        """A_m x with a sample of A_m."""
        h_MSR, noise = super().lowered(layer, x), layer.noise
        if noise is None:  # in a soup
            return h_MSR
        assert isinstance(noise, WeightNoise)
        *_, G_MRD = layer.factors()
        return h_MSR + noise.added(x, G_MRD**2, layer.number)

    def after_step(self, adapters: Adapters, step: Step) -> None:
        """Take a step of gradient descent on KL(N(A, G^4) || N(0, prior_std^2))."""
        import torch

        weight = self.kl_weight(step.number, step.num_train, step.batch_size) * step.lr_frac
        size = self.kl_lr * weight
        with torch.no_grad():
            for layer in adapters.layers:
                A, _, G = adapters.factors(layer)
                std = G**2
                A -= size * A / self.prior_std**2
                G -= size * std_gradient(std, self.prior_std) * 2 * G

    def kl_weight(self, step: int, num_train: int, batch_size: int) -> float:
        """Weight of the KL divergence after step `step` (from 0): it doubles with every step of a cycle, and
        sums to almost 1 over a cycle."""
        cycle = max(1, int(100 * num_train ** (math.pi / self.gamma) / batch_size))
        return 2.0 ** (step % cycle - cycle) / (1 - 2.0 ** -(cycle + 1))

    def frozen_bytes(self, layers: Linears, size: int) -> int:
        """The noise of a step, and its product with the standard deviation."""
        return (4 + size) * self.rank * sum(d_in for d_in, _ in layers.values())

    def kept_beside(self, d_in: int, d_out: int) -> int:
        """The signs, and the inputs times the signs."""
        return 2 * d_in + self.rank

    def branch_flops(self, d_in: int, d_out: int) -> int:
        return 2 * self.rank * (2 * d_in + d_out)
