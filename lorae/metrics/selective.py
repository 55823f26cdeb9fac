"""Selective prediction: how the error falls when the least confident examples are left unanswered.

Tied examples (equal confidence up to 1e-12) share the mean error of their group, the expectation over a
random order, so that no metric depends on the order of the examples.
"""

from __future__ import annotations

import numpy as np

from lorae.metrics.probability import checked
from lorae.metrics.proper import correct


def confidence(logp_NC: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """Probability of the most probable class of each example, (N,)."""
    return np.exp(checked(logp_NC, labels_N)[0].max(axis=1))


def tied_groups(confidence_N: np.ndarray) -> np.ndarray:
    """Group of each example, (N,): 0 for the most confident examples, equal for ties."""
    return np.unique(-np.round(confidence_N, 12), return_inverse=True)[1]


def most_confident_first(confidence_N: np.ndarray, value_N: np.ndarray) -> np.ndarray:
    """`value_N` sorted by falling confidence; the values of tied examples are replaced by their mean."""
    group_N = tied_groups(confidence_N)
    count_G = np.bincount(group_N)
    return np.repeat(np.bincount(group_N, weights=value_N) / count_G, count_G)


def risks(error: np.ndarray) -> np.ndarray:
    """Mean of the first k errors, k = 1..N, along the last axis."""
    return np.cumsum(error, axis=-1) / np.arange(1, error.shape[-1] + 1)


def risk_coverage(logp_NC: np.ndarray, labels_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The risk-coverage curve: (coverage_N, risk_N), both in [0, 1].

    Point k is the error rate among the k most confident examples at coverage k/N, k = 1..N.
    Source: El-Yaniv and Wiener 2010, JMLR 11.
    """
    error_N = most_confident_first(confidence(logp_NC, labels_N), 1 - correct(logp_NC, labels_N))
    return np.arange(1, len(error_N) + 1) / len(error_N), risks(error_N)


def aurc(logp_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Area under the risk-coverage curve, 1/N sum_k risk(k/N), in [0, 1]; lower is better.

    Source: Geifman et al. 2019, arXiv:1805.08206, section 3.
    """
    return float(risk_coverage(logp_NC, labels_N)[1].mean())


def acc_at_80_coverage(logp_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Accuracy on the ceil(0.8 N) most confident examples, in [0, 1]; higher is better."""
    risk_N = risk_coverage(logp_NC, labels_N)[1]
    return float(1 - risk_N[num_at_80(len(risk_N)) - 1])


def num_at_80(num_examples: int) -> int:
    """ceil(0.8 N), in integers."""
    return -(-4 * num_examples // 5)
