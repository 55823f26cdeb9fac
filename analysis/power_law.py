"""The power law of deep ensembles: the NLL of M members is about c + b M^-a.

For the plain NLL, a is 1 to first order in 1/M, whatever the members; for the temperature-scaled one ("CNLL")
it need not be. Source of the law: Lobacheva et al. 2020, arXiv:2007.08483. The fit is ours: plain least
squares in nats, with a in [0.1, 5], b >= 0 (more members do no harm) and c >= 0 (an NLL is never negative).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize

SLOWEST, FASTEST = 0.1, 5.0  # bounds of a


@dataclass(frozen=True)
class PowerLaw:
    """c + b M^-a.

    Args:
        c: limit of many members.
        b: what they gain over one; 0 if the metric does not fall with M; a then means nothing.
        a: how fast the metric falls.
    """

    c: float
    b: float
    a: float

    def __str__(self) -> str:
        return f"{self.c:.4f} + {self.b:.4f} M^-{self.a:.2f}" if self.b else f"{self.c:.4f}, flat"

    def at(self, members: int) -> float:
        """The metric of an ensemble of this many members."""
        return self.c + self.b * members**-self.a

    def leverage(self, sizes_K: Sequence[int], members: int) -> np.ndarray:
        """How far the law at `members` moves with each value that it was fitted to, (K,).

        Least squares in the law's tangent space, spanned by 1, M^-a and M^-a log M, as if there were no
        bounds: a curve that looks flat is no more certain than another.
        """
        return self._tangent([members])[0] @ np.linalg.pinv(self._tangent(sizes_K))

    def _tangent(self, sizes: Sequence[int]) -> np.ndarray:
        size_K = np.asarray(sizes, dtype=np.float64)
        falling_K = size_K**-self.a
        return np.stack([np.ones_like(size_K), falling_K, falling_K * np.log(size_K)], axis=1)


def fit_power_law(sizes_K: Sequence[int], values_K: Sequence[float]) -> PowerLaw:
    """The law with the least squared error; every size counts the same.

    For each a, the best c and b have a closed form, so only a is searched: on a grid, then between the
    neighbours of its best point.

    Args:
        sizes_K: numbers of members, at least three.
        values_K: the metric at each.
    """
    size_K, value_K = np.asarray(sizes_K, dtype=np.float64), np.asarray(values_K, dtype=np.float64)

    def law(log_a: float) -> PowerLaw:
        return _given(math.exp(log_a), size_K, value_K)

    def error(log_a: float) -> float:
        found = law(log_a)
        return float(np.sum((found.c + found.b * size_K**-found.a - value_K) ** 2))

    grid = np.linspace(math.log(SLOWEST), math.log(FASTEST), 40)
    best = int(np.argmin([error(log_a) for log_a in grid]))
    bounds = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    refined: Any = optimize.minimize_scalar(error, bounds=bounds, method="bounded", options={"xatol": 1e-7})
    found = min((grid[best], float(refined.x)), key=error)
    return law(found) if law(found).b else PowerLaw(float(value_K.mean()), 0.0, 1.0)


def _given(a: float, size_K: np.ndarray, value_K: np.ndarray) -> PowerLaw:
    """The best law with this a, by linear least squares within the bounds of b, then c."""
    x_K = size_K**-a
    centred_K = x_K - x_K.mean()
    b = max(float(centred_K @ value_K / (centred_K @ centred_K)), 0.0)
    c = float(value_K.mean() - b * x_K.mean())
    return PowerLaw(c, b, a) if c >= 0 else PowerLaw(0.0, float(x_K @ value_K / (x_K @ x_K)), a)
