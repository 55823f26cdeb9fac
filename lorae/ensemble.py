"""Ensembles as views over a pool of members' stored logits: sizes, subsets, temperatures, selection.

Whatever is learned here (temperatures, a selection) is learned from the validation split's logits
and then applied to the test split's; no function takes both.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lorae.metrics.probability import Rule, Undefined, checked, combine, log_softmax
from lorae.metrics.proper import example_nll

__all__ = [
    "CurvePoint",
    "combine",
    "fit_member_temperatures",
    "fit_temperature",
    "greedy_selection",
    "members_curve",
    "scale",
    "scale_members",
    "subsets",
]

PooledMetric = Callable[[np.ndarray, np.ndarray], float]  # (logp_NC, labels_N) -> value, such as `ece15`

# Bounds of a temperature: a member that is right, or wrong, on all of validation has no finite optimum.
COLDEST, HOTTEST = 0.05, 20.0


def subsets(pool_size: int, members: int, max_subsets: int = 50, seed: int = 0) -> list[tuple[int, ...]]:
    """Different sets of `members` indices into the pool, in lexicographic order.

    All of them if there are at most `max_subsets`, else that many, drawn uniformly without replacement.

    Raises:
        ValueError: members is not in [1, pool_size].
    """
    if not 1 <= members <= pool_size:
        raise ValueError(
            f"members={members}; a pool of {pool_size} allows 1 to {pool_size}; train more members"
        )
    if math.comb(pool_size, members) <= max_subsets:
        return list(itertools.combinations(range(pool_size), members))
    rng = np.random.default_rng((seed, pool_size, members))
    drawn: set[tuple[int, ...]] = set()
    while len(drawn) < max_subsets:
        drawn.add(tuple(sorted(rng.choice(pool_size, members, replace=False).tolist())))
    return sorted(drawn)


@dataclass(frozen=True)
class CurvePoint:
    """A metric at one ensemble size, over subsets of one pool that share members."""

    members: int
    num_subsets: int
    mean: float
    std: float | None  # spread, not a standard error; divided by num_subsets - 1; None for one subset
    lo: float  # the smallest value
    hi: float  # the largest value


def members_curve(
    logits_MNC: np.ndarray,
    labels_N: np.ndarray,
    metric: PooledMetric,
    sizes: Sequence[int],
    num_draws: int = 1,
    rule: Rule = "probs",
    max_subsets: int = 50,
) -> list[CurvePoint]:
    """`metric` of ensembles of each size, with its spread over `subsets` of the pool's members.

    Args:
        logits_MNC: class scores of the pool's draws, those of a member side by side; -inf for a class that an
            example does not have.
        labels_N: gold class in [0, C).
        metric: a metric of the pooled prediction, such as `lorae.metrics.ensemble_nll`.
        sizes: numbers of members, each in [1, pool size].
        num_draws: of each member.
    """
    draws_MK = np.arange(len(logits_MNC)).reshape(-1, num_draws)
    points = []
    for members in sizes:
        chosen = [draws_MK[list(subset)].ravel() for subset in subsets(len(draws_MK), members, max_subsets)]
        values = [metric(combine(logits_MNC[draws], rule), labels_N) for draws in chosen]
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        points.append(CurvePoint(members, len(values), float(np.mean(values)), std, min(values), max(values)))
    return points


def fit_temperature(logp_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Temperature T in [1/20, 20] that minimises the NLL of softmax(logp / T) on validation; T > 1 softens.

    The NLL is convex in 1/T, so its slope is bisected on log T. Predictions that are all right end near 1/20,
    all wrong ones at 20; T = 1 where no other is better, so the validation NLL never gets worse.

    Args:
        logp_NC: log-probabilities on validation, of one member or pooled (logits minus their log-sum-exp).
        labels_N: gold class in [0, C).
    Raises:
        Undefined: a gold class has probability 0, at every temperature.
    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """
    logp_NC, labels_N = checked(logp_NC, labels_N)
    num_zero = int(np.isinf(example_nll(logp_NC, labels_N)).sum())
    if num_zero:
        raise Undefined("temperature", f"{num_zero} examples have probability 0 on their gold class")
    coldest, hottest = math.log(COLDEST), math.log(HOTTEST)
    for _ in range(50):
        middle = (coldest + hottest) / 2
        if _slope(logp_NC, labels_N, math.exp(middle)) < 0:  # the NLL falls towards larger 1/T
            hottest = middle
        else:
            coldest = middle
    best = math.exp(middle)
    return best if _nll_at(logp_NC, labels_N, best) < _nll_at(logp_NC, labels_N, 1.0) else 1.0


def _slope(logp_NC: np.ndarray, labels_N: np.ndarray, temperature: float) -> float:
    """Derivative of the mean NLL with respect to 1/T: mean_n( sum_c p_c z_c - z_gold )."""
    p_NC = np.exp(scale(logp_NC, temperature))
    expected_N = np.sum(p_NC * np.where(p_NC > 0, logp_NC, 0.0), axis=1)
    return float(np.mean(expected_N + example_nll(logp_NC, labels_N)))


def _nll_at(logp_NC: np.ndarray, labels_N: np.ndarray, temperature: float) -> float:
    return float(example_nll(scale(logp_NC, temperature), labels_N).mean())


def fit_member_temperatures(logits_MNC: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """`fit_temperature` of each member on validation, (M,); apply with `scale_members`, then `combine`."""
    return np.array([fit_temperature(logp_NC, labels_N) for logp_NC in log_softmax(logits_MNC)])


def scale(logp_NC: np.ndarray, temperature: float) -> np.ndarray:
    """Log-probabilities at a temperature, log_softmax(logp / T): of a pooled prediction, after `combine`."""
    return log_softmax(np.asarray(logp_NC) / temperature)


def scale_members(logits_MNC: np.ndarray, temperature_M: np.ndarray) -> np.ndarray:
    """Each member's logits divided by its own temperature, (M, N, C): before `combine`."""
    return np.asarray(logits_MNC) / np.asarray(temperature_M)[:, None, None]


def greedy_selection(logits_MNC: np.ndarray, labels_N: np.ndarray, picks: int) -> list[int]:
    """Members chosen one by one, each to minimise the NLL of the mean probability on validation.

    With replacement: a member may be picked again, which weighs it more. The first k picks are the selection
    of size k; the lowest index wins a tie. Apply with `combine(logits_MNC[selection])`.

    Source: Caruana et al. 2004, ICML, section 2.
    """
    gold_logp_MN = -np.array([example_nll(logp_NC, labels_N) for logp_NC in log_softmax(logits_MNC)])
    selection: list[int] = []
    sum_N = np.full(gold_logp_MN.shape[1], -np.inf)  # log of the picked members' summed probabilities
    for _ in range(picks):
        candidate_MN = np.logaddexp(sum_N, gold_logp_MN)
        selection.append(int(candidate_MN.mean(axis=1).argmax()))
        sum_N = candidate_MN[selection[-1]]
    return selection
