"""Samples of the Gaussians that `TFB` puts around trained LoRA members, and the search for their widths.

A sample replaces A by A + sigma (B^T B)^(-1/2) E, so that B A gets the noise sigma Q E, where Q has the
directions of B as orthonormal columns: the U of `TFB`, but for a rotation that E does not notice, and without
its arbitrary signs. Source: Shi et al. 2024, arXiv:2412.05723, equations 4 to 8. `TFB` says where the search
departs from the authors' code.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch

from lorae import seeds
from lorae.adapters import State
from lorae.draws import SEARCH_STEPS, SIGMAS, TFB
from lorae.encoding import Row
from lorae.fitted import Fit, Sampler
from lorae.prediction import draws_nll, predict

NO_DIRECTION = 1e-5  # singular values of B, relative to its largest one, that are rounding


class Samples(Sampler[TFB]):
    """Samples of the members of a stack, each as wide as its "sigma"."""

    @functools.cached_property
    def spreads(self) -> list[State]:
        """Of each member and layer what gives the noise its directions and equal sizes."""
        layers = self.adapters.layers
        return [{layer: inverse_root(state[f"{layer}.B"]) for layer in layers} for state in self.states]

    def predict(self, rows: Sequence[Row]) -> np.ndarray:
        return self._predict(rows, np.array([fit.record["sigma"] for fit in self.fits]))

    def _predict(self, rows: Sequence[Row], sigma_M: np.ndarray) -> np.ndarray:
        """The same with these widths; at each width of a member its noise is the same but for its size."""
        logits = []
        for sample in range(self.spec.samples):
            self.adapters.load([self._sampled(m, sample, sigma) for m, sigma in enumerate(sigma_M)])
            logits.append(predict(self.adapters.backbone, rows, on_rows=self.on_rows))
        self.adapters.load(self.states)
        return np.stack(logits, axis=1)

    def _fitted(self, rows: Sequence[Row]) -> list[Fit]:
        """Each member's sigma, see `TFB`: by bisection, all members at once, each by its own NLL."""
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
        state = dict(self.states[member])
        for layer, spread_RR in self.spreads[member].items():
            A_RD = state[f"{layer}.A"]
            rng = seeds.stream(self.member_ids[member], "tfb", sample, layer)
            noise_RD = torch.from_numpy(rng.normal(0.0, sigma, A_RD.shape))
            state[f"{layer}.A"] = A_RD + (spread_RR @ noise_RD).float()
        return state


def inverse_root(B_ER: torch.Tensor) -> torch.Tensor:
    """(B^T B)^(-1/2), (R, R) in fp64, on the directions that B has; NaN where B is not finite."""
    gram_RR = B_ER.double().T @ B_ER.double()
    if not gram_RR.isfinite().all():
        return torch.full_like(gram_RR, math.nan)
    values_R, vectors_RR = torch.linalg.eigh(gram_RR)
    has_R = values_R > NO_DIRECTION**2 * values_R.max()
    return (vectors_RR * torch.where(has_R, values_R, math.inf).rsqrt()) @ vectors_RR.T


def _nll(logits_MKNC: np.ndarray, rows: Sequence[Row]) -> np.ndarray:
    """Each member's NLL (M,) by the mean probability of its draws; NaN where one has none."""
    labels_N = np.array([row.label for row in rows])
    return np.array([draws_nll(logits_KNC, labels_N) for logits_KNC in logits_MKNC])
