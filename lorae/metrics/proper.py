"""Accuracy, F1, NLL and Brier score of the pooled prediction, and the mean of the members' NLLs."""

from __future__ import annotations

import numpy as np

from lorae.metrics.probability import Undefined, checked, combine


def correct(logp_NC: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """1.0 for each example whose most probable class (ties: the lowest index) is gold, else 0.0."""
    logp_NC, labels_N = checked(logp_NC, labels_N)
    return (logp_NC.argmax(axis=1) == labels_N).astype(np.float64)


def acc(logp_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Fraction of examples whose most probable class is gold, in [0, 1]; higher is better.

    Args:
        logp_NC: log-probabilities of the pooled prediction, from `combine`.
        labels_N: gold class in [0, C).
    Raises:
        ValueError: as `checked`; the same for all metrics here.
    """
    return float(correct(logp_NC, labels_N).mean())


def f1(logp_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Macro F1 in [0, 1], the mean over classes of 2 TP / (2 TP + FP + FN); higher is better.

    A class that is neither gold nor predicted for any example does not count.
    """
    logp_NC, labels_N = checked(logp_NC, labels_N)
    num_classes = logp_NC.shape[1]
    gold_C = np.bincount(labels_N, minlength=num_classes)
    predicted_C = np.bincount(logp_NC.argmax(axis=1), minlength=num_classes)
    hits_C = np.bincount(labels_N, weights=correct(logp_NC, labels_N), minlength=num_classes)
    return float(f1_of_counts(hits_C, gold_C + predicted_C))


def f1_of_counts(hits: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Macro F1 over the last axis (classes) from TP and (TP + FP) + (TP + FN) per class."""
    per_class = 2 * hits / np.maximum(total, 1)
    return per_class.sum(axis=-1) / (total > 0).sum(axis=-1)


def mcc(logp_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Matthews correlation of predicted and gold classes, in [-1, 1]; higher is better; 0 is chance.

    (c - sum_k p_k t_k) / sqrt((1 - sum_k p_k^2)(1 - sum_k t_k^2)), with the accuracy c and the shares p_k,
    t_k of examples with predicted and gold class k.
    Raises:
        Undefined: all predicted, or all gold, classes are the same.
    Source: Gorodkin 2004, Computational Biology and Chemistry 28, equation 8.
    """
    right, predicted_C, gold_C = class_shares(logp_NC, labels_N)
    varies = (1 - predicted_C @ predicted_C) * (1 - gold_C @ gold_C)
    if not varies > 1e-12:
        raise Undefined("mcc", "all examples are predicted, or gold, to be of one class")
    return float((right - predicted_C @ gold_C) / np.sqrt(varies))


def class_shares(logp_NC: np.ndarray, labels_N: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Accuracy, and the shares of the predicted and the gold classes, (C,) each."""
    logp_NC, labels_N = checked(logp_NC, labels_N)
    num, width = logp_NC.shape
    predicted_N = logp_NC.argmax(axis=1)
    shares = (np.bincount(x_N, minlength=width) / num for x_N in (predicted_N, labels_N))
    return float((predicted_N == labels_N).mean()), *shares


def example_nll(logp_NC: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """-log p(gold) of each example, (N,), in nats; +inf where the gold class has probability 0."""
    logp_NC, labels_N = checked(logp_NC, labels_N)
    return 0.0 - np.take_along_axis(logp_NC, labels_N[:, None], axis=1)[:, 0]


def ensemble_nll(logp_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Negative log-likelihood of the pooled prediction, in nats per example; lower is better.

    -1/N sum_n log p(y_n | x_n), where p is the members' mean probability if `logp_NC` is `combine(logits,
    "probs")`. Not the mean of the members' NLLs: see `mean_member_nll`. +inf if a gold class has probability
    0.
    Source: Lakshminarayanan et al. 2017, arXiv:1612.01474, section 2.4.
    """
    return float(example_nll(logp_NC, labels_N).mean())


def mean_member_nll(logits_MNC: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean over members of their own NLL, in nats per example; lower is better; at least `ensemble_nll`."""
    return float(np.mean([ensemble_nll(combine(member[None]), labels_N) for member in logits_MNC]))


def example_brier(logp_NC: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """sum_c (p_c - [c = gold])^2 of each example, (N,), in [0, 2]."""
    logp_NC, labels_N = checked(logp_NC, labels_N)
    onehot_NC = np.arange(logp_NC.shape[1]) == labels_N[:, None]
    return np.sum((np.exp(logp_NC) - onehot_NC) ** 2, axis=1)


def brier(logp_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Brier score 1/N sum_n sum_c (p_c(x_n) - [c = y_n])^2, in [0, 2]; lower is better.

    A sum over classes, not a mean, so a class that an example lacks changes nothing. Source: Brier 1950.
    """
    return float(example_brier(logp_NC, labels_N).mean())
