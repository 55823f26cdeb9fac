"""Split conformal prediction: sets of classes that contain the true class with a given probability.

The guarantee holds for examples that are exchangeable with the calibration examples (in distribution), on
average over both; it assumes nothing about the model.
"""

from __future__ import annotations

import math

import numpy as np

from lorae.metrics.probability import checked
from lorae.metrics.proper import example_nll


def conformal_threshold(logp_NC: np.ndarray, labels_N: np.ndarray, coverage: float = 0.9) -> float:
    """Largest NLL (nats) that a class of the set may have: the ceil((N + 1) coverage)-th smallest NLL of the
    gold classes; infinite if N is too small for the coverage.

    Args:
        logp_NC: log-probabilities of examples that neither training nor a temperature has seen.
        coverage: share of sets that contain the true class, in (0, 1).
    Raises:
        ValueError: the coverage is outside (0, 1).
    Source: Sadinle et al. 2019, arXiv:1609.00451 ("least ambiguous sets"); its scores are 1 - p, which give
        the same ranking.
    """
    logp_NC, labels_N = checked(logp_NC, labels_N)
    rank = _rank(len(labels_N), coverage)
    if rank > len(labels_N):
        return math.inf
    return float(np.sort(example_nll(logp_NC, labels_N))[rank - 1])


def _rank(num_examples: int, coverage: float) -> int:
    if not 0 < coverage < 1:
        raise ValueError(f"coverage={coverage}: must be in (0, 1); write coverage=0.9")
    return math.ceil((num_examples + 1) * coverage - 1e-9)  # 0.9 * 10 is 9, not slightly more


def conformal_sets(logp_NC: np.ndarray, threshold: float) -> np.ndarray:
    """Whether each class is in its example's set (N, C). The most probable class always is, so no set is
    empty; a class that the example lacks never is."""
    logp_NC = np.asarray(logp_NC, dtype=np.float64)
    kept_NC = (-logp_NC <= threshold) & np.isfinite(logp_NC)
    kept_NC[np.arange(len(logp_NC)), logp_NC.argmax(axis=1)] = True
    return kept_NC


def aps_threshold(logp_NC: np.ndarray, labels_N: np.ndarray, coverage: float = 0.9) -> float:
    """Largest cumulated probability that a class of an adaptive set may have, see `aps_scores`: the
    ceil((N + 1) coverage)-th smallest one of the gold classes; infinite where N is too small.

    Args and raises as `conformal_threshold`.
    """
    logp_NC, labels_N = checked(logp_NC, labels_N)
    rank = _rank(len(labels_N), coverage)
    if rank > len(labels_N):
        return math.inf
    gold_N = np.take_along_axis(aps_scores(logp_NC), labels_N[:, None], axis=1)[:, 0]
    return float(np.sort(gold_N)[rank - 1])


def aps_scores(logp_NC: np.ndarray) -> np.ndarray:
    """Probability of all classes that are at least as probable as each one, itself included, (N, C): what an
    adaptive prediction set reaches when it takes the class in.

    Source: Romano et al. 2020, arXiv:2006.02544, there randomised; here sets are whole, so they hold the true
    class at least as often.
    """
    order_NC = np.argsort(-np.asarray(logp_NC, np.float64), axis=1, kind="stable")
    sums_NC = np.cumsum(np.exp(np.take_along_axis(logp_NC, order_NC, axis=1)), axis=1)
    found_NC = np.empty_like(sums_NC)
    np.put_along_axis(found_NC, order_NC, sums_NC, axis=1)
    return np.round(found_NC, 12)  # rounding makes no difference between equal scores


def aps_sets(logp_NC: np.ndarray, threshold: float) -> np.ndarray:
    """Whether each class is in its example's adaptive set (N, C); the most probable class always is, a class
    that an example does not have never."""
    logp_NC = np.asarray(logp_NC, dtype=np.float64)
    kept_NC = (aps_scores(logp_NC) <= threshold) & np.isfinite(logp_NC)
    kept_NC[np.arange(len(logp_NC)), logp_NC.argmax(axis=1)] = True
    return kept_NC


def set_summary(
    seen_logp_NC: np.ndarray, seen_labels_N: np.ndarray, logp_NC: np.ndarray, labels_N: np.ndarray
) -> dict[str, float | None]:
    """Share of sets at 90 % that hold the true class ("lac_coverage90") and their mean number of classes
    ("lac_size90"), by the least ambiguous ("lac") and the adaptive ("aps") sets; None where too few examples
    were seen.

    Args:
        seen_logp_NC, seen_labels_N: predictions that the thresholds are found on, such as validation's.
    """
    found: dict[str, float | None] = {}
    for name, threshold_of, sets_of in (
        ("lac", conformal_threshold, conformal_sets),
        ("aps", aps_threshold, aps_sets),
    ):
        threshold = threshold_of(seen_logp_NC, seen_labels_N)
        kept_NC = sets_of(logp_NC, threshold)
        holds = float(kept_NC[np.arange(len(labels_N)), labels_N].mean())
        size, is_known = float(kept_NC.sum(axis=1).mean()), math.isfinite(threshold)
        found |= {
            f"{name}_coverage90": holds if is_known else None,
            f"{name}_size90": size if is_known else None,
        }
    return found
