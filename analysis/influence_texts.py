"""What each example contributes to a metric of texts: of how scores tell wrong answers, and of a corpus.

As in `analysis.influence`: the empirical influence divided by N, scaled so that the sum of squares is the
variance of the metric over test sets. Right and wrong answers are of one sample: which they are is chance.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from analysis.influence import Measured, of_mean, of_separation
from lorae.metrics.probability import Undefined
from lorae.metrics.selective import most_confident_first, tied_groups
from lorae.texts import judging


def of_auroc(score_N: np.ndarray, quality_N: np.ndarray) -> Measured:
    """`judging.auroc`. Source: DeLong et al. 1988, Biometrics.

    Raises:
        Undefined: as there, or only one answer is right, or wrong.
    """
    right, wrong = judging.split("auroc", score_N, quality_N)
    if min(len(right), len(wrong)) < 2:
        raise Undefined("auroc", f"{len(right)} answers are right and {len(wrong)} wrong")
    found, is_right_N = of_separation(right, wrong), np.asarray(quality_N) == 1
    examples_N = np.empty(len(is_right_N))
    examples_N[is_right_N], examples_N[~is_right_N] = np.split(found.examples, [len(right)])
    return Measured(found.value, examples_N)


def of_aupr(score_N: np.ndarray, quality_N: np.ndarray) -> Measured:
    """`judging.aupr`, E[wrong * precision] / P(wrong), where precision is P(wrong | a score as high)."""
    value = judging.aupr(score_N, quality_N)
    score_N, quality_N = judging.checked(score_N, quality_N)
    wrong_N, num = 1 - quality_N, len(score_N)
    group_N = tied_groups(score_N)  # 0 for the highest scores
    size_G, wrong_G = np.bincount(group_N), np.bincount(group_N, weights=wrong_N)
    share_G, found_G = np.cumsum(size_G) / num, np.cumsum(wrong_G) / num
    precision_G = found_G / share_G
    # An example moves the precision at its own score and at every lower one
    at_G = [np.cumsum((wrong_G * x / share_G)[::-1])[::-1] / num for x in (1.0, precision_G)]
    rate = wrong_N.mean()
    moved_N = wrong_N * precision_G[group_N] - value * rate
    moved_N += wrong_N * at_G[0][group_N] - at_G[1][group_N]
    return _scaled(value, (moved_N - value * (wrong_N - rate)) / rate)


def of_aurc(score_N: np.ndarray, quality_N: np.ndarray) -> Measured:
    """`judging.aurc`, E[error * -log P(at least as certain)] up to 1/N."""
    value, moved_N = _moved_aurc(*judging.checked(score_N, quality_N))
    return _scaled(value, moved_N)


def of_prr(score_N: np.ndarray, quality_N: np.ndarray) -> Measured:
    """`judging.prr`, a ratio of two differences that both move."""
    value = judging.prr(score_N, quality_N)
    score_N, quality_N = judging.checked(score_N, quality_N)
    _, moved_N = _moved_aurc(score_N, quality_N)
    best, moved_best_N = _moved_aurc(-quality_N, quality_N)
    error_N = quality_N.mean() - quality_N
    gain = 1 - quality_N.mean() - best
    return _scaled(value, ((error_N - moved_N) - value * (error_N - moved_best_N)) / gain)


def of_sums(counts_NS: np.ndarray, metric: Callable[[np.ndarray], float]) -> Measured:
    """A metric of the sums of what examples count, such as BLEU: by its derivatives, which are differences.

    Args:
        counts_NS: what each example adds, integers.
        metric: of the sums (S,).
    """
    total_S = np.asarray(counts_NS).sum(axis=0)
    slope_S = np.empty(len(total_S))
    for place, step in enumerate(np.eye(len(total_S), dtype=int)):
        below = step if total_S[place] > 1 else 0 * step  # a count of 0 only grows
        slope_S[place] = (metric(total_S + step) - metric(total_S - below)) / (step + below).sum()
    num = len(counts_NS)
    return _scaled(metric(total_S), (counts_NS * num - total_S) @ slope_S)


def of_ratio(above_N: np.ndarray, below_N: np.ndarray) -> Measured:
    """sum above / sum below, such as the NLL of all tokens over their number."""
    value = float(np.sum(above_N) / np.sum(below_N))
    return _scaled(value, (above_N - value * below_N) / np.mean(below_N))


def mean_of(found: list[Measured]) -> Measured:
    """The mean of a metric over several answers to the same examples."""
    values, examples = [one.value for one in found], [one.examples for one in found]
    return Measured(float(np.mean(values)), np.mean(examples, axis=0))


def _moved_aurc(score_N: np.ndarray, quality_N: np.ndarray) -> tuple[float, np.ndarray]:
    """AURC, and what each example moves it by, N times: its error at its rank, and the risks after it."""
    error_N, num = 1 - quality_N, len(score_N)
    group_N = tied_groups(-score_N)  # 0 for the most certain
    rank_N = np.arange(1, num + 1)
    sorted_N = most_confident_first(-score_N, error_N)
    weight_N = np.cumsum(1 / rank_N[::-1])[::-1]
    after_N = np.cumsum((sorted_N / rank_N)[::-1])[::-1]
    order = np.argsort(group_N, kind="stable")
    of_group = [np.bincount(group_N[order], weights=x) / np.bincount(group_N) for x in (weight_N, after_N)]
    value = float(np.mean(sorted_N * weight_N))
    return value, error_N * of_group[0][group_N] - value - of_group[1][group_N] + error_N.mean()


def _scaled(value: float, moved_N: np.ndarray) -> Measured:
    """From N times what each example moves the metric by."""
    return Measured(float(value), of_mean(moved_N).examples)


JUDGES: dict[str, Callable[[np.ndarray, np.ndarray], Measured]] = {
    "auroc_wrong": of_auroc,
    "prr": of_prr,
    "aurc_wrong": of_aurc,
    "aupr_wrong": of_aupr,
}
