"""A share of a difference, (a - b) / (a - c), with Fieller's interval over test examples and seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import optimize, stats

from analysis.significance import ALPHA, Difference, Estimate
from analysis.t_scores import half_width

SCORE = float(stats.norm.isf(ALPHA / 2))
FARTHEST = 1e6  # a bound of the interval is nearer


def share(none: Estimate, some: Estimate, all_: Estimate) -> Difference | str:
    """How much of the difference `none` - `all_` there is in `none` - `some`, with its 95 % interval.

    The interval has every share r at which the interval of (none - some) - r (none - all_) contains 0. It is
    bounded only if the interval of none - all_ excludes 0; otherwise there is no difference to keep, and the
    reason is returned. For a squared error the share is that of the squares.

    Args:
        none, some, all_: estimates on the same examples and seeds.
    Source: Fieller 1954, Journal of the Royal Statistical Society B 16(2); variances as in
        `analysis.significance`, with seeds as the trainings: a student's training depends on its teacher's.
    """
    kept, whole = none.value - some.value, none.value - all_.value
    if any(estimate.seeds is None for estimate in (none, some, all_)):
        return "one seed does not say how far others would move it"

    def outside(r: float) -> float:
        """Above 0 where r is not in the interval."""
        estimates, weights = (none, some, all_), (1 - r, -1.0, r)
        return abs(kept - r * whole) - _half_width(estimates, weights)

    if abs(whole) <= _half_width((none, all_), (1.0, -1.0)):
        return "the interval of the whole difference contains 0"
    value = kept / whole
    lo, hi = (_bound(outside, value, sign) for sign in (-1.0, 1.0))
    return Difference(value, lo, hi, verdict="higher" if lo > 0 else "lower" if hi < 0 else "undecided")


def _half_width(estimates: Sequence[Estimate], weights: Sequence[float]) -> float:
    """Of the interval of a weighted sum of estimates whose weights add up to 0."""
    examples_N = sum(w * e.examples for w, e in zip(weights, estimates))
    seeds_SX = sum(w * _of_seeds(e) for w, e in zip(weights, estimates))
    assert isinstance(examples_N, np.ndarray) and isinstance(seeds_SX, np.ndarray)
    of_seeds, joint = np.sum(seeds_SX[:, 0] ** 2), np.sum(seeds_SX[:, 1:] ** 2)
    of_examples = max(np.sum(examples_N**2) - min(joint, of_seeds), 0.0)
    df = np.array([max(len(examples_N) - 1, 1), max(len(seeds_SX) - 1, 1)])
    return half_width(SCORE, np.array([of_examples, of_seeds]), df)


def _of_seeds(estimate: Estimate) -> np.ndarray:
    """Contributions of each seed and its joint ones with each example, (S, 1 + N), by seed."""
    assert estimate.seeds is not None
    return np.array([row for _, row in sorted(estimate.seeds.items())])


def _bound(outside: Callable[[float], float], inside: float, sign: float) -> float:
    """Where `outside` rises above 0 on one side of a place where it does not."""
    step = 0.1
    while outside(inside + sign * step) <= 0:
        if step > FARTHEST:
            return sign * math.inf
        step *= 2
    found: Any = optimize.brentq(outside, inside, inside + sign * step)
    return float(found)
