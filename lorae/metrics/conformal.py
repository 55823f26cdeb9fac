"""Split conformal prediction: sets of classes that hold the true one as often as asked for.

The promise is for examples that are exchangeable with those of the calibration, in-distribution ones, on
average over both; it needs nothing of the model.
"""

from __future__ import annotations

import math

import numpy as np

from lorae.metrics.probability import checked
from lorae.metrics.proper import example_nll


def conformal_threshold(logp_NC: np.ndarray, labels_N: np.ndarray, coverage: float = 0.9) -> float:
    """Largest NLL (nats) that a class of the set may have: the ceil((N + 1) coverage)-th smallest NLL of the
    gold classes; infinite where N is too small for the coverage.

    Args:
        logp_NC: log-probabilities of examples that neither training nor a temperature has seen.
        coverage: share of sets that hold the true class, in (0, 1).
    Raises:
        ValueError: another coverage.
    Source: Sadinle et al. 2019, arXiv:1609.00451 ("least ambiguous sets"); its scores are 1 - p, which rank
        alike.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage={coverage}: must be in (0, 1); write coverage=0.9")
    logp_NC, labels_N = checked(logp_NC, labels_N)
    rank = math.ceil((len(labels_N) + 1) * coverage - 1e-9)  # 0.9 * 10 is 9, not a little more
    if rank > len(labels_N):
        return math.inf
    return float(np.sort(example_nll(logp_NC, labels_N))[rank - 1])


def conformal_sets(logp_NC: np.ndarray, threshold: float) -> np.ndarray:
    """Whether each class is in its example's set (N, C). The most probable class always is, so that no set is
    empty; a class that an example does not have never is."""
    logp_NC = np.asarray(logp_NC, dtype=np.float64)
    kept_NC = (-logp_NC <= threshold) & np.isfinite(logp_NC)
    kept_NC[np.arange(len(logp_NC)), logp_NC.argmax(axis=1)] = True
    return kept_NC
