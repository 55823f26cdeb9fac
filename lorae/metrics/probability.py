"""From the members' logits to the one probability tensor that all metrics of a row share.

A class that an example lacks (questions differ in their number of options) has the logit -inf in every
member, and so probability 0. Probabilities are passed as natural logarithms, `logp_NC`: exact where a
probability would round to 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

Direction = Literal["lower", "higher", "none"]  # of what is better
Rule = Literal["probs", "logits", "weights"]  # what is averaged over the members
BLOCK_VALUES = 2**14  # logits per block: the temporaries stay in a core's cache


class Undefined(ValueError):
    """A metric has no value on these predictions: says which metric and why, instead of returning NaN."""

    def __init__(self, metric: str, reason: str) -> None:
        super().__init__(f"{metric} is undefined: {reason}")
        self.metric = metric
        self.reason = reason


class NotLogits(ValueError):
    """An example without a prediction: `place` is its index in the leading axes, the example axis last."""

    def __init__(self, place: list[int], row: list[float]) -> None:
        super().__init__(
            f"logits at {place} are {row}; allowed are finite numbers, and -inf "
            "for a class that the example does not have; check the stored predictions of that member"
        )
        self.place, self.row = place, row


def by_blocks(
    function: Callable[[np.ndarray], np.ndarray], logits_MNC: np.ndarray, axis: int = 0
) -> np.ndarray:
    """`function` of the logits, computed on blocks of examples, so that temporaries do not grow with their
    number.

    Args:
        function: takes logits (M, n, C) in float64; each example's result depends on that example alone.
        axis: axis of the examples in its result.
    """
    num_members, num_examples, num_classes = logits_MNC.shape
    size, parts = max(1, BLOCK_VALUES // max(1, num_members * num_classes)), []
    for start in range(0, max(1, num_examples), size):
        try:
            parts.append(function(logits_MNC[:, start : start + size].astype(np.float64)))
        except NotLogits as error:
            raise NotLogits([*error.place[:-1], error.place[-1] + start], error.row) from None
    return np.concatenate(parts, axis=axis)


def at_least_two(per_member: np.ndarray, metric: str) -> int:
    """The number of members, the first axis of an array.

    Raises:
        Undefined: fewer than two members, and `metric` compares members.
    """
    if len(per_member) < 2:
        raise Undefined(metric, f"it compares members, and there is {len(per_member)}")
    return len(per_member)


def logsumexp(x: np.ndarray, axis: int) -> np.ndarray:
    """log sum exp(x) along `axis`, without overflow; -inf where all of x is -inf."""
    x = np.ascontiguousarray(np.moveaxis(x, axis, 0))  # numpy is slow at reducing a short last axis
    top = x.max(axis=0)
    shift = np.where(np.isfinite(top), top, 0.0)
    terms = x - shift
    with np.errstate(divide="ignore"):
        return np.log(np.exp(terms, out=terms).sum(axis=0)) + shift


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities over the last axis (classes); -inf stays -inf.

    Raises:
        ValueError: a logit is NaN or +inf, or an example has no class with a finite logit.
    """
    logits = np.asarray(logits)
    classes_first = np.ascontiguousarray(np.moveaxis(logits, -1, 0), dtype=np.float64)
    total = logsumexp(classes_first, axis=0)
    if not np.isfinite(total).all():
        bad = np.argwhere(~np.isfinite(total))[0].tolist()
        raise NotLogits(bad, logits[tuple(bad)].tolist())
    return np.moveaxis(classes_first - total, 0, -1)


def combine(logits_MNC: np.ndarray, rule: Rule = "probs") -> np.ndarray:
    """The ensemble's log-probabilities, bitwise independent of the order of the members.

    "probs": log( 1/M sum_m softmax(z_m) ), the mixture; "logits": log_softmax( 1/M sum_m z_m ), the
    normalised geometric mean; "weights": log_softmax(z) of the one model with the members' mean weights.

    Args:
        logits_MNC: class scores of each member, -inf for a class that an example lacks.
    Returns:
        logp_NC in nats; each row's probabilities sum to 1.
    Raises:
        ValueError: not three axes, no members, more than one with "weights", or a logit as in `log_softmax`.
    Source: Lakshminarayanan et al. 2017, arXiv:1612.01474, section 2.4 ("probs").
    """
    logits_MNC = np.asarray(logits_MNC)
    if logits_MNC.ndim != 3 or 0 in logits_MNC.shape:
        raise ValueError(
            f"logits of shape {logits_MNC.shape}; must be (members, examples, classes), none of them 0; "
            "for one member write logits[None]"
        )
    if rule == "probs":
        return by_blocks(_mixture, logits_MNC)
    if rule == "logits":
        return by_blocks(_geometric_mean, logits_MNC)
    if rule == "weights" and len(logits_MNC) == 1:
        return by_blocks(lambda block_1NC: log_softmax(block_1NC[0]), logits_MNC)
    raise ValueError(
        f'rule={rule!r} of {len(logits_MNC)} members; allowed are "probs", "logits", and "weights" of one; '
        'write combine(logits, "probs")'
    )


# A floating-point sum depends on its order; sorting the members makes ties between classes reproducible.


def _mixture(logits_MNC: np.ndarray) -> np.ndarray:
    logp_NC = logsumexp(np.sort(log_softmax(logits_MNC), axis=0), axis=0) - np.log(len(logits_MNC))
    return np.minimum(logp_NC, 0.0)  # rounding may go above


def _geometric_mean(logits_MNC: np.ndarray) -> np.ndarray:
    return log_softmax(np.sort(logits_MNC, axis=0).mean(axis=0))


def entropy(logp: np.ndarray) -> np.ndarray:
    """-sum_c p log p over the last axis (classes), in nats, with 0 log 0 = 0."""
    p = np.exp(logp)
    return -np.sum(p * np.where(p > 0, logp, 0.0), axis=-1)


def checked(logp_NC: np.ndarray, labels_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The predictions as float64 and the labels as integers, after checking that they are valid.

    Raises:
        ValueError: no examples, rows that are not log-probabilities, or labels that are not integers in [0,
        C).
    """
    logp_NC, labels_N = np.asarray(logp_NC, dtype=np.float64), np.asarray(labels_N)
    if logp_NC.ndim != 2 or 0 in logp_NC.shape:
        raise ValueError(
            f"log-probabilities of shape {logp_NC.shape}; must be (examples, classes), none of them 0; "
            "write combine(logits_MNC)"
        )
    if not np.all(np.abs(np.exp(np.minimum(logp_NC, 700)).sum(axis=1) - 1) < 1e-4):  # also catches NaN
        raise ValueError(
            "a row's probabilities do not sum to 1; metrics of the pooled prediction take log-probabilities; "
            "write combine(logits_MNC), or np.log(probs_NC)"
        )
    num_examples, num_classes = logp_NC.shape
    if labels_N.shape != (num_examples,) or not np.issubdtype(labels_N.dtype, np.integer):
        raise ValueError(
            f"labels of shape {labels_N.shape} and type {labels_N.dtype}; must be ({num_examples},) "
            "integers, one for each example"
        )
    if labels_N.min() < 0 or labels_N.max() >= num_classes:
        raise ValueError(
            f"labels span {labels_N.min()}..{labels_N.max()}; must lie in [0, {num_classes}); "
            "number the classes from 0"
        )
    return logp_NC, labels_N.astype(np.intp)
