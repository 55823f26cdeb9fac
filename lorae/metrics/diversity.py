"""Diversity of the members in function space. No direction: more is neither better nor worse by itself."""

from __future__ import annotations

import numpy as np

from lorae.metrics.probability import Undefined, at_least_two, checked, combine, entropy, log_softmax


def disagreement(logits_MNC: np.ndarray) -> float:
    """Mean over pairs of members of the fraction of examples that they classify differently, in [0, 1].

    Args:
        logits_MNC: class scores of each member, -inf for a class that an example does not have.
    Raises:
        Undefined: fewer than two members; so do all metrics here.
    """
    num_members = at_least_two(logits_MNC, "disagreement")
    votes_MN = log_softmax(logits_MNC).argmax(axis=2)
    classes_C = np.arange(np.shape(logits_MNC)[2])
    count_NC = np.sum(votes_MN[:, :, None] == classes_C, axis=0)
    agreeing_N = np.sum(count_NC * (count_NC - 1), axis=1)  # ordered pairs with the same vote
    return float(1 - agreeing_N.mean() / (num_members * (num_members - 1)))


def disagreement_per_error(logits_MNC: np.ndarray, labels_N: np.ndarray) -> float:
    """`disagreement` divided by the members' mean error rate, at most 2: more errors leave more to differ in.

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
    logp_MNC = log_softmax(logits_MNC)
    p_MNC, entropy_MN = np.exp(logp_MNC), entropy(logp_MNC)
    total = 0.0
    for m in range(num_members - 1):
        mean_p = (p_MNC[m] + p_MNC[m + 1 :]) / 2  # (M-m-1, N, C)
        mean_logp = np.log(np.where(mean_p > 0, mean_p, 1.0))
        divergence = -np.sum(mean_p * mean_logp, axis=-1) - (entropy_MN[m] + entropy_MN[m + 1 :]) / 2
        total += np.maximum(divergence, 0.0).mean(axis=1).sum()  # rounding may go below 0
    return float(total / (num_members * (num_members - 1) / 2))


def example_mutual_information(logits_MNC: np.ndarray) -> np.ndarray:
    """H(mean_m p_m) - mean_m H(p_m) of each example, (N,), in nats, in [0, ln M]."""
    at_least_two(logits_MNC, "mutual_information")
    information_N = entropy(combine(logits_MNC, "probs")) - entropy(log_softmax(logits_MNC)).mean(axis=0)
    return np.maximum(information_N, 0.0)  # Jensen's inequality, up to rounding


def mutual_information(logits_MNC: np.ndarray) -> float:
    """Mean over examples of the information between prediction and member, in nats, in [0, ln M].

    1/N sum_n H(1/M sum_m p_m) - 1/M sum_m H(p_m), of the members' probabilities whatever the combination
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
    """1.0 where a member's class is not gold, (M, N)."""
    logp_MNC = log_softmax(logits_MNC)
    return (logp_MNC.argmax(axis=2) != checked(logp_MNC[0], labels_N)[1]).astype(np.float64)
