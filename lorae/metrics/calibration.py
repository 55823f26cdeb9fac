"""Calibration of the pooled prediction: is a prediction with confidence 0.8 right in 80 % of the cases?

The metric's name gives the number and kind of bins: ece15 has 15 bins of equal width, ace15 has 15 bins of
equal mass.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lorae.metrics.probability import Undefined, checked
from lorae.metrics.proper import correct
from lorae.metrics.selective import confidence, most_confident_first


@dataclass(frozen=True)
class ReliabilityBins:
    """The non-empty bins of a reliability diagram, by rising confidence."""

    lo: np.ndarray  # (bins,) left edge, excluded (but 0 belongs to the first bin)
    hi: np.ndarray  # (bins,) right edge, included
    count: np.ndarray  # (bins,) number of examples
    confidence: np.ndarray  # (bins,) mean top probability
    accuracy: np.ndarray  # (bins,) fraction of correct examples


def equal_width_bin(probability: np.ndarray, bins: int) -> np.ndarray:
    """Index of the bin (lo, hi] of each probability; 0 falls in the first bin."""
    # exp(log 1/3) is not 1/3 in floating point: the tolerance keeps a value on an edge in the bin below it.
    return np.searchsorted(np.arange(1, bins) / bins + 1e-12, probability)


def reliability_bins(logp_NC: np.ndarray, labels_N: np.ndarray, bins: int = 15) -> ReliabilityBins:
    """Count, confidence and accuracy per equal-width bin (lo, hi] of the top probability; no empty bins.

    Args:
        logp_NC: log-probabilities of the pooled prediction, from `combine`.
        labels_N: gold class in [0, C).
        bins: number of bins that divide [0, 1].
    Raises:
        ValueError: as `checked`; the same for all metrics here.
    """
    confidence_N, correct_N = confidence(logp_NC, labels_N), correct(logp_NC, labels_N)
    kept, bin_N, count = np.unique(
        equal_width_bin(confidence_N, bins), return_inverse=True, return_counts=True
    )
    return ReliabilityBins(
        lo=kept / bins,
        hi=(kept + 1) / bins,
        count=count,
        confidence=np.bincount(bin_N, weights=confidence_N) / count,
        accuracy=np.bincount(bin_N, weights=correct_N) / count,
    )


def ece15(logp_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Expected calibration error over 15 equal-width bins (lo, hi] of the top probability; lower is better.

    sum_b count_b/N |accuracy_b - confidence_b|, in [0, 1].
    Source: Naeini et al. 2015, AAAI; Guo et al. 2017, arXiv:1706.04599, equation 3.
    """
    return _ece(reliability_bins(logp_NC, labels_N, 15))


def ece10(logp_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """`ece15` with 10 bins; lower is better."""
    return _ece(reliability_bins(logp_NC, labels_N, 10))


def _ece(bins: ReliabilityBins) -> float:
    return float(np.sum(bins.count * np.abs(bins.accuracy - bins.confidence)) / np.sum(bins.count))


def mce15(logp_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Maximum calibration error: the largest |accuracy - confidence| of the bins of `ece15`; lower is better.

    Source: Guo et al. 2017, arXiv:1706.04599, equation 5.
    """
    bins = reliability_bins(logp_NC, labels_N, 15)
    return float(np.max(np.abs(bins.accuracy - bins.confidence)))


def ace15(logp_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Calibration error of the top probability over 15 bins of equal mass; lower is better.

    As `ece15`, but the examples are sorted by confidence and split into 15 runs whose sizes differ by at most
    1 (N runs if N < 15); tied examples share their group's mean accuracy.
    Source: Nguyen and O'Connor 2015, arXiv:1508.05154; for the top class only, unlike Nixon et al. 2019,
    arXiv:1904.01685.
    """
    confidence_N = confidence(logp_NC, labels_N)
    return float(
        equal_mass_gap(most_confident_first(confidence_N, correct(logp_NC, labels_N) - confidence_N))
    )


def debiased_ce15(logp_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Root mean square calibration error over 15 bins of equal mass, without bias; lower is better.

    v = sum_b n_b/N (mean of gap_i gap_j over pairs i != j of run b), gap = correct - confidence of the top
    class. The expectation of v is the squared calibration error, for any number of examples and any
    confidence, without the bias that chance gives to `ece15`. Returns sqrt(v), or -sqrt(-v) if chance takes v
    below 0: 0 means that these examples show no error.
    Raises:
        Undefined: no run has two examples or more.
    Source: Kumar et al. 2019, arXiv:1909.10155, section 4 (there from the variance of labels in a bin).
    """
    runs = gaps_of_runs(logp_NC, labels_N)
    squares = [(gap.sum() ** 2 - np.sum(gap**2)) / (len(gap) - 1) for _, gap in runs]
    square = round(float(np.sum(squares)) / sum(len(gap) for _, gap in runs), 12)  # a root enlarges rounding
    return float(np.sign(square) * np.sqrt(abs(square)))


def gaps_of_runs(logp_NC: np.ndarray, labels_N: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Indices and gaps (correct minus confidence) of the examples in each of at most 15 runs, by rising
    confidence.

    Examples of equal confidence share a run, which may make it longer. Runs of one example are left out.
    """
    confidence_N = confidence(logp_NC, labels_N)
    gap_N, num = correct(logp_NC, labels_N) - confidence_N, len(confidence_N)
    _, group_N, size_G = np.unique(np.round(confidence_N, 12), return_inverse=True, return_counts=True)
    middle_G = np.cumsum(size_G) - size_G / 2
    run_N = np.floor(middle_G[group_N] * min(15, max(num // 2, 1)) / num).astype(int)
    runs = [np.flatnonzero(run_N == run) for run in np.unique(run_N)]
    runs = [(run, gap_N[run]) for run in runs if len(run) > 1]
    if not runs:
        raise Undefined("debiased_ce15", f"it compares examples of like confidence among {num}")
    return runs


def equal_mass_gap(gap: np.ndarray) -> np.ndarray:
    """1/N sum_b |sum of the gaps in run b| along the last axis, split into at most 15 runs."""
    num_examples = gap.shape[-1]
    runs = np.array_split(gap, min(15, num_examples), axis=-1)
    return np.sum([np.abs(run.sum(axis=-1)) for run in runs], axis=0) / num_examples


def signed_gap(logp_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean confidence minus accuracy, in [-1, 1]; positive means over-confident; 0 is best."""
    return float(np.mean(confidence(logp_NC, labels_N) - correct(logp_NC, labels_N)))


def classwise_ece15(logp_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean over classes of the calibration error of p_c in 15 equal-width bins (lo, hi]; lower is better.

    1/C sum_c 1/N_c sum_b |sum_{n in b} [y_n = c] - p_c(x_n)|, over the N_c examples that have class c
    (log-probability above -inf); a class that no example has does not count. In [0, 1].
    Source: Kull et al. 2019, arXiv:1910.12656, equation 2.
    """
    logp_NC, labels_N = checked(logp_NC, labels_N)
    errors = []
    for c in range(logp_NC.shape[1]):
        has_N = (logp_NC[:, c] > -np.inf) | (labels_N == c)
        p_N = np.exp(logp_NC[has_N, c])
        gap = np.bincount(equal_width_bin(p_N, 15), weights=(labels_N[has_N] == c) - p_N)
        if has_N.any():
            errors.append(np.abs(gap).sum() / has_N.sum())
    return float(np.mean(errors))
