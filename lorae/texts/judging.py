"""What a score of uncertainty is worth: does it tell wrong answers from right ones?

Every function takes `score_N`, higher where less certain, and `quality_N` in [0, 1]: 1 right and 0 wrong, or
a quality in between such as ROUGE-L. Where nothing can be told apart it raises `Undefined`. Ties count as
the mean over their orders, and scores are equal if they are so to 12 digits.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import isotonic_regression

from lorae.ensemble import folds
from lorae.metrics import ood, selective
from lorae.metrics.calibration import equal_width_bin
from lorae.metrics.probability import Undefined

BINS = 15


def auroc(score_N: np.ndarray, quality_N: np.ndarray) -> float:
    """Probability that a wrong answer scores above a right one; chance is 1/2; higher is better.

    Raises:
        Undefined: all answers are right, or all wrong; or qualities between 0 and 1.
    """
    return ood.auroc(*split("auroc", score_N, quality_N))


def aupr(score_N: np.ndarray, quality_N: np.ndarray) -> float:
    """Average precision of finding wrong answers; chance is their share; higher is better.

    Raises:
        Undefined: as `auroc`.
    """
    return ood.aupr(*split("aupr", score_N, quality_N))


def aurc(score_N: np.ndarray, quality_N: np.ndarray) -> float:
    """Mean over coverages k/N of 1 minus the mean quality of the k most certain answers; lower is better.

    Source: Geifman et al. 2019, arXiv:1805.08206.
    """
    return float(risks(score_N, quality_N).mean())


def risks(score_N: np.ndarray, quality_N: np.ndarray) -> np.ndarray:
    """Risk at coverage k/N, k = 1..N, (N,)."""
    score_N, quality_N = checked(score_N, quality_N)
    return selective.risks(selective.most_confident_first(-score_N, 1 - quality_N))


def prr(score_N: np.ndarray, quality_N: np.ndarray) -> float:
    """Prediction rejection ratio: (risk - AURC) / (risk - AURC of the oracle); higher is better.

    1 for an oracle, which rejects the worst answers first; 0 for chance; below 0 for worse. As in
    lm-polygraph (Vashurin et al. 2024, arXiv:2406.15627), rejecting up to all answers; chance is its exact
    mean there, not one over random orders.
    Raises:
        Undefined: all answers are equally good.
    Source: Malinin et al. 2017, ACL, "Incorporating uncertainty into deep learning".
    """
    score_N, quality_N = checked(score_N, quality_N)
    if np.ptp(quality_N) == 0:
        raise Undefined("prr", f"all {len(quality_N)} answers have the quality {quality_N[0]:g}")
    risk = 1 - quality_N.mean()
    return float((risk - aurc(score_N, quality_N)) / (risk - aurc(-quality_N, quality_N)))


def accuracy_at_80_coverage(score_N: np.ndarray, quality_N: np.ndarray) -> float:
    """Mean quality of the ceil(0.8 N) least uncertain answers, in [0, 1]; higher is better."""
    risk_N = risks(score_N, quality_N)
    return float(1 - risk_N[selective.num_at_80(len(risk_N)) - 1])


# Calibration ----------------------------------------------------------------------------------------------


def ece15(
    score_N: np.ndarray, quality_N: np.ndarray, validation: tuple[np.ndarray, np.ndarray] | None = None
) -> float:
    """Calibration error over 15 equal-width bins of the probability of being right that `calibrated` makes
    of the score, in [0, 1]; lower is better.

    Args:
        validation: scores and qualities of other examples, to calibrate by; None = five folds of these
            examples, each calibrated by the others.
    Raises:
        Undefined: fewer than two examples to calibrate by.
    """
    score_N, quality_N = checked(score_N, quality_N)
    if validation is not None:
        p_N = calibrated(*validation, score_N)
    else:
        fold_N, p_N = folds(len(score_N)), np.empty(len(score_N))
        for k in range(fold_N.max() + 1):
            rest = fold_N != k
            p_N[~rest] = calibrated(score_N[rest], quality_N[rest], score_N[~rest])
    bin_N = equal_width_bin(p_N, BINS)
    return float(np.abs(np.bincount(bin_N, weights=quality_N - p_N)).sum() / len(p_N))


def calibrated(known_K: np.ndarray, quality_K: np.ndarray, score_N: np.ndarray) -> np.ndarray:
    """Probability of being right (N,) of scores, by isotonic regression on K examples.

    Isotonic, since scores have no common unit or shape (nats, shares, numbers of clusters): it asks only that
    less certain answers are not right more often. Between known scores it interpolates.
    Source: Zadrozny and Elkan 2002, KDD; Guo et al. 2017, arXiv:1706.04599, compare it with others.
    """
    known_K, quality_K = checked(known_K, quality_K)
    if len(known_K) < 2:
        raise Undefined("a calibrated score", f"there are {len(known_K)} examples to calibrate by")
    values, place_K, count = np.unique(known_K, return_inverse=True, return_counts=True)
    mean = np.bincount(place_K, weights=quality_K) / count
    fitted = isotonic_regression(mean, weights=count, increasing=False).x
    last = np.finfo(float).max / 4  # np.interp takes no infinite score
    return np.clip(np.interp(np.clip(score_N, -last, last), np.clip(values, -last, last), fitted), 0, 1)


# Helpers --------------------------------------------------------------------------------------------------


def split(metric: str, score_N: np.ndarray, quality_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the right and of the wrong answers."""
    score_N, quality_N = checked(score_N, quality_N)
    if not np.isin(quality_N, (0, 1)).all():
        raise Undefined(metric, "it needs answers that are right or wrong, and these have a quality between")
    if np.ptp(quality_N) == 0:
        raise Undefined(metric, f"all {len(quality_N)} answers are {'right' if quality_N[0] else 'wrong'}")
    return score_N[quality_N == 1], score_N[quality_N == 0]


def checked(score_N: np.ndarray, quality_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same in float64; a score that is NaN, of a member that broke, is the least certain of all.

    Raises:
        ValueError: no examples, or not one quality in [0, 1] for each score.
    """
    score_N, quality_N = np.asarray(score_N, np.float64), np.asarray(quality_N, np.float64)
    if not len(score_N) or score_N.shape != quality_N.shape:
        raise ValueError(
            f"{score_N.shape} scores and {quality_N.shape} qualities; must be one of each for every example"
        )
    if not ((quality_N >= 0) & (quality_N <= 1)).all():
        raise ValueError(
            f"qualities span {quality_N.min()}..{quality_N.max()}; must lie in [0, 1], 1 for a right answer"
        )
    return np.where(np.isnan(score_N), np.inf, np.round(score_N, ood.DIGITS)), quality_N
