"""TFB: training-free Bayesianisation of LoRA members (Shi et al. 2024, arXiv:2412.05723).

A sample replaces A by A + sigma (B^T B)^(-1/2) E, so that B A gets the noise sigma Q E, where the orthonormal
columns of Q span the directions of B: Q is the U of `TFB` up to a rotation, to which E is invariant, and
without arbitrary signs. Source: equations 4 to 8. `TFB` says where the search departs from the authors' code.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from lorae import seeds
from lorae.draws.base import Fitted
from lorae.draws.sampling import Fit, Sampler
from lorae.untrusted import number

if TYPE_CHECKING:
    import torch

    from lorae.engine.adapters import State
    from lorae.tasks.encoding import Row

T = TypeVar("T")
ANCHORS = 256  # training examples that sigma is searched on
SIGMAS = 1e-4, 1.0  # bounds of the search
SEARCH_STEPS = 7  # of bisection on a log scale, to 7 %
NO_DIRECTION = 1e-5  # singular values of B at most this, relative to the largest, are rounding errors


@dataclass(frozen=True)
class TFB(Fitted):
    """Training-free Bayesianisation: samples from a Gaussian around a trained LoRA member, with equally large
    noise in all directions of B: W0 + scale (B A + sigma U E), where U are the left singular vectors of B and
    E (rank x d_in) is standard normal.

    sigma is one number for all layers of a member: the largest sigma for which the NLL of the samples' mean
    probability on training examples differs from the member's own NLL by at most the fraction `tolerance`.

    The authors' code (Wang-ML-Lab/bayesian-peft, bc6a4a7) searches differently. Its labels are the member's
    most probable classes on 500 training examples; here they are the true labels of at most 256 examples. It
    divides the relative difference once more by the number of examples, and so tolerates 500 times as much.
    Its scripts halve [0.001, 0.015] five times and take the last sigma that was too large, 0.015 if none was;
    here [1e-4, 1] is halved seven times on a log scale, and the largest tolerable sigma is taken.

    Args:
        samples: number of draws, >= 1; the search for sigma takes as many.
        tolerance: relative tolerance of the NLL, > 0.
    Source: Shi et al. 2024, arXiv:2412.05723.
    """

    kind = "tfb"
    record: ClassVar[Mapping[str, Any]] = {"sigma": number}
    note: ClassVar[str | None] = (
        "TFB searches sigma by the true labels of at most 256 training examples; its authors' code takes the "
        "member's own answers to 500 as labels, and tolerates 500 times the change in NLL."
    )

    tolerance: float = 0.003

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tolerance > 0:
            raise ValueError(f"tolerance={self.tolerance}: must be > 0; write TFB(tolerance=0.003)")

    @property
    def label(self) -> str:
        return f"{self.kind}-{self.samples}x{float(self.tolerance)}"

    @property
    def title(self) -> str:
        return f"TFB x{self.samples}, tolerance {float(self.tolerance)}"

    @classmethod
    def from_label(cls, size: str) -> TFB:
        samples, tolerance = size.split("x")
        return cls(int(samples), float(tolerance))

    def passes_to_fit(self, num_classes: int) -> int:
        return SEARCH_STEPS * self.samples

    def fitted_on(self, train: Sequence[T]) -> list[T]:
        """Training examples that sigma is searched on, evenly spaced in their order."""
        chosen = np.linspace(0, len(train) - 1, min(ANCHORS, len(train))).astype(int)
        return [train[n] for n in chosen]

    def sampler(self) -> type[Samples]:
        return Samples


class Samples(Sampler[TFB]):
    """Samples of the members of a stack, with the noise scaled by each member's "sigma"."""

    @functools.cached_property
    def spreads(self) -> list[State]:
        """For each member and layer, the `inverse_root` of B, which shapes the noise."""
        layers = self.adapters.layers
        return [{layer: inverse_root(state[f"{layer}.B"]) for layer in layers} for state in self.states]

    def predict(self, rows: Sequence[Row]) -> np.ndarray:
        return self._predict(rows, np.array([fit.record["sigma"] for fit in self.fits]))

    def _predict(self, rows: Sequence[Row], sigma_M: np.ndarray) -> np.ndarray:
        """`predict` with these sigmas; for every sigma a member's noise is the same up to its scale."""
        from lorae.engine.prediction import predict

        logits = []
        for sample in range(self.spec.samples):
            self.adapters.load([self._sampled(m, sample, sigma) for m, sigma in enumerate(sigma_M)])
            logits.append(predict(self.adapters.backbone, rows, on_rows=self.on_rows))
        self.adapters.load(self.states)
        return np.stack(logits, axis=1)

    def _fitted(self, rows: Sequence[Row]) -> list[Fit]:
        """Each member's sigma, see `TFB`, by bisection: all members at once, each with its own NLL."""
        from lorae.engine.prediction import predict

        own_M = _nll(predict(self.adapters.backbone, rows)[:, None], rows)
        low_M, high_M = (np.full(len(own_M), math.log(bound)) for bound in SIGMAS)
        for _ in range(SEARCH_STEPS):
            middle_M = (low_M + high_M) / 2
            changed_M = np.abs(_nll(self._predict(rows, np.exp(middle_M)), rows) - own_M)
            tolerable_M = changed_M <= self.spec.tolerance * own_M
            low_M, high_M = np.where(tolerable_M, (middle_M, high_M), (low_M, middle_M))
        return [Fit({"sigma": float(sigma)}) for sigma in np.exp(low_M)]

    def _sampled(self, member: int, sample: int, sigma: float) -> State:
        """Parameters of one sample of a member."""
        import torch

        state = dict(self.states[member])
        for layer, spread_RR in self.spreads[member].items():
            A_RD = state[f"{layer}.A"]
            rng = seeds.stream(self.member_ids[member], "tfb", sample, layer)
            noise_RD = torch.from_numpy(rng.normal(0.0, sigma, A_RD.shape))
            state[f"{layer}.A"] = A_RD + (spread_RR @ noise_RD).float()
        return state


def inverse_root(B_ER: torch.Tensor) -> torch.Tensor:
    """(B^T B)^(-1/2), (R, R) in fp64, on the span of B's directions; NaN if B is not finite."""
    import torch

    gram_RR = B_ER.double().T @ B_ER.double()
    if not gram_RR.isfinite().all():
        return torch.full_like(gram_RR, math.nan)
    values_R, vectors_RR = torch.linalg.eigh(gram_RR)
    has_R = values_R > NO_DIRECTION**2 * values_R.max()
    return (vectors_RR * torch.where(has_R, values_R, math.inf).rsqrt()) @ vectors_RR.T


def _nll(logits_MKNC: np.ndarray, rows: Sequence[Row]) -> np.ndarray:
    """NLL (M,) of the mean probability of each member's draws; NaN for a member without one."""
    from lorae.engine.prediction import draws_nll

    labels_N = np.array([row.label for row in rows])
    return np.array([draws_nll(logits_KNC, labels_N) for logits_KNC in logits_MKNC])
