"""Diversity of the members in function space. No direction: more is neither better nor worse in itself."""

from __future__ import annotations

import numpy as np

from lorae.metrics.probability import (
    Undefined,
    at_least_two,
    by_blocks,
    checked,
    combine,
    entropy,
    log_softmax,
)


def credal_width(logits_MNC: np.ndarray) -> float:
    """Mean over examples of the width of the interval that the members' probabilities of the class that their
    mean puts on top span, in [0, 1].

    Raises:
        Undefined: fewer than two members.
    """
    at_least_two(logits_MNC, "credal_width")
    return float(by_blocks(_top_widths, np.asarray(logits_MNC)).mean())


def _top_widths(logits_MNC: np.ndarray) -> np.ndarray:
    top_1N1 = combine(logits_MNC, "probs").argmax(axis=1)[None, :, None]
    return np.ptp(np.take_along_axis(np.exp(log_softmax(logits_MNC)), top_1N1, axis=2)[:, :, 0], axis=0)


def disagreement(logits_MNC: np.ndarray) -> float:
    """Mean over pairs of members of the fraction of examples that they classify differently, in [0, 1].

    Args:
        logits_MNC: class scores of each member, -inf for a class that an example lacks.
    Raises:
        Undefined: fewer than two members; the same for all metrics here.
    """
    num_members = at_least_two(logits_MNC, "disagreement")
    votes_MN = _votes(logits_MNC)
    count_NC = np.stack([np.sum(votes_MN == c, axis=0) for c in range(np.shape(logits_MNC)[2])], axis=1)
    agreeing_N = np.sum(count_NC * (count_NC - 1), axis=1)  # ordered pairs with the same vote
    return float(1 - agreeing_N.mean() / (num_members * (num_members - 1)))


def disagreement_per_error(logits_MNC: np.ndarray, labels_N: np.ndarray) -> float:
    """`disagreement` divided by the members' mean error rate, at most 2: more errors allow more disagreement.

    Raises:
        Undefined: no member errs.
    Source: Fort et al. 2019, arXiv:1912.02757, section 4.
    """
    error_rate = _errors(logits_MNC, labels_N).mean()
    if error_rate == 0:
        raise Undefined("disagreement_per_error", "no member errs on any example")
    return float(disagreement(logits_MNC) / error_rate)


def jsd(logits_MNC: np.ndarray) -> float:
    """Mean over pairs of members and examples of the Jensen-Shannon divergence, in nats, in [0, ln 2].

    H((p + q)/2) - (H(p) + H(q))/2. Source: Lin 1991.
    """
    num_members = at_least_two(logits_MNC, "jsd")
    sum_N = by_blocks(_sum_of_jsd, np.asarray(logits_MNC))
    return float(sum_N.mean() / (num_members * (num_members - 1) / 2))


def _sum_of_jsd(logits_MNC: np.ndarray) -> np.ndarray:
    """Sum over pairs of members of the divergence on each example, (N,)."""
    logp_MNC = log_softmax(logits_MNC)
    p_MNC, entropy_MN = np.exp(logp_MNC), entropy(logp_MNC)
    total_N = np.zeros(logits_MNC.shape[1])
    for m in range(len(logits_MNC) - 1):
        mean_p = (p_MNC[m] + p_MNC[m + 1 :]) / 2  # (M-m-1, N, C)
        mean_logp = np.log(np.where(mean_p > 0, mean_p, 1.0))
        divergence = -np.sum(mean_p * mean_logp, axis=-1) - (entropy_MN[m] + entropy_MN[m + 1 :]) / 2
        total_N += np.maximum(divergence, 0.0).sum(axis=0)  # rounding may go below 0
    return total_N


def example_mutual_information(logits_MNC: np.ndarray) -> np.ndarray:
    """H(mean_m p_m) - mean_m H(p_m) of each example, (N,), in nats, in [0, ln M]."""
    at_least_two(logits_MNC, "mutual_information")
    mean_N = by_blocks(lambda block: entropy(log_softmax(block)).mean(axis=0), np.asarray(logits_MNC))
    information_N = entropy(combine(logits_MNC, "probs")) - mean_N
    return np.maximum(information_N, 0.0)  # Jensen's inequality, up to rounding


def mutual_information(logits_MNC: np.ndarray) -> float:
    """Mean over examples of the mutual information between prediction and member, in nats, in [0, ln M].

    1/N sum_n H(1/M sum_m p_m) - 1/M sum_m H(p_m), from the members' probabilities whatever the combination
    rule.
    Source: Smith and Gal 2018, arXiv:1803.08533, section 2.
    """
    return float(example_mutual_information(logits_MNC).mean())


def error_correlation(logits_MNC: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean over pairs of members of the Pearson correlation of their errors (1 wrong, 0 right), in [-1, 1].

    Raises:
        Undefined: a member is right on every example or wrong on every example.
    """
    num_members = at_least_two(logits_MNC, "error_correlation")
    error_MN = _errors(logits_MNC, labels_N)
    constant = np.flatnonzero(np.ptp(error_MN, axis=1) == 0)
    if constant.size:
        raise Undefined("error_correlation", f"member {constant[0]} is right, or wrong, on every example")
    return float(np.corrcoef(error_MN)[np.triu_indices(num_members, k=1)].mean())


def _errors(logits_MNC: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """1.0 where a member's class is not the gold class, (M, N)."""
    first_NC = combine(logits_MNC[:1])
    return (_votes(logits_MNC) != checked(first_NC, labels_N)[1]).astype(np.float64)


def _votes(logits_MNC: np.ndarray) -> np.ndarray:
    """Each member's class (M, N)."""
    return by_blocks(lambda block: log_softmax(block).argmax(axis=2), np.asarray(logits_MNC), axis=1)
