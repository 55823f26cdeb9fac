"""Out-of-distribution detection: a score per example (higher: more likely OOD), and how well it separates.

OOD is the positive class throughout. The score is in the metric's name: `auroc_msp`, `fpr95_energy`. Scores
are rounded to 12 digits, so that rounding errors do not rank equal examples: they tie.
"""

from __future__ import annotations

import numpy as np

from lorae.metrics.diversity import example_mutual_information
from lorae.metrics.probability import Rule, at_least_two, by_blocks, combine, entropy, log_softmax, logsumexp

DIGITS = 12  # that count
SCORES = ("msp", "entropy", "mutual_information", "energy", "top_prob_variance")


def score_msp(logp_NC: np.ndarray) -> np.ndarray:
    """1 - max_c p_c of the pooled prediction, (N,), in [0, 1).

    Source: Hendrycks and Gimpel 2017, arXiv:1610.02136.
    """
    return np.round(0.0 - np.expm1(np.max(logp_NC, axis=1)), DIGITS)


def score_entropy(logp_NC: np.ndarray) -> np.ndarray:
    """Entropy of the pooled prediction, (N,), in nats, in [0, ln C]."""
    return np.round(entropy(np.asarray(logp_NC, dtype=np.float64)), DIGITS)


def score_mutual_information(logits_MNC: np.ndarray) -> np.ndarray:
    """H(mean_m p_m) - mean_m H(p_m), (N,), in nats. Raises `Undefined` for fewer than two members."""
    return np.round(example_mutual_information(logits_MNC), DIGITS)


def score_energy(logits_MNC: np.ndarray) -> np.ndarray:
    """Mean over members of -log sum_c exp(z_c), (N,), unbounded; classes an example lacks are left out.
    Its digits count from the largest of the members'.

    Depends on the level of the logits, and grows more negative with the number of classes, so compare tasks
    with the same number of options. Source: Liu et al. 2020, arXiv:2010.03759, equation 3 (temperature 1).
    """
    energy_MN = by_blocks(_energy, np.asarray(logits_MNC), axis=1)
    scale_N = np.ldexp(1.0, np.frexp(np.abs(energy_MN).max(axis=0))[1])  # the power of two above it
    return np.round(energy_MN.mean(axis=0) / scale_N, DIGITS) * scale_N


def _energy(logits_MNC: np.ndarray) -> np.ndarray:
    log_softmax(logits_MNC)  # for its errors
    return -logsumexp(logits_MNC, axis=2)


def score_top_prob_variance(logits_MNC: np.ndarray) -> np.ndarray:
    """Variance over members of the probability of the class that their mean puts on top, (N,), in [0, 1/4].

    Divided by M, not M - 1. Raises `Undefined` for fewer than two members.
    """
    at_least_two(logits_MNC, "top_prob_variance")
    return np.round(by_blocks(_top_prob_variance, np.asarray(logits_MNC)), DIGITS)


def _top_prob_variance(logits_MNC: np.ndarray) -> np.ndarray:
    top_1N1 = combine(logits_MNC, "probs").argmax(axis=1)[None, :, None]
    top_prob_MN = np.take_along_axis(np.exp(log_softmax(logits_MNC)), top_1N1, axis=2)[:, :, 0]
    return top_prob_MN.var(axis=0)


def scores(logits_MNC: np.ndarray, rule: Rule = "probs") -> dict[str, np.ndarray]:
    """Every score of `SCORES` that these members define (a single member has no disagreement), each (N,)."""
    logp_NC = combine(logits_MNC, rule)
    pooled = {
        "msp": score_msp(logp_NC),
        "entropy": score_entropy(logp_NC),
        "energy": score_energy(logits_MNC),
    }
    if len(logits_MNC) < 2:
        return pooled
    return pooled | {
        "mutual_information": score_mutual_information(logits_MNC),
        "top_prob_variance": score_top_prob_variance(logits_MNC),
    }


def auroc(in_N: np.ndarray, ood_N: np.ndarray) -> float:
    """Probability that an OOD example scores above an in-distribution one, ties count 1/2; higher is better.

    Args:
        in_N: scores of the in-distribution examples.
        ood_N: scores of the OOD examples; another number of them is fine.
    Raises:
        ValueError: a score is NaN, or one of the sets is empty; so do `aupr` and `fpr95`.
    """
    return float(auroc_of_counts(*_counts(in_N, ood_N)))


def aupr(in_N: np.ndarray, ood_N: np.ndarray) -> float:
    """Average precision with OOD as positive, in (0, 1]; higher is better; chance is the OOD share.

    sum over distinct scores, from the highest, of (recall gained) * precision: no interpolation.
    """
    return float(aupr_of_counts(*_counts(in_N, ood_N)))


def fpr95(in_N: np.ndarray, ood_N: np.ndarray) -> float:
    """In-distribution examples flagged by the highest threshold that flags 95 % of OOD; lower is better.

    A fraction, in [0, 1]; an example is flagged if its score is at or above the threshold.
    """
    return float(fpr95_of_counts(*_counts(in_N, ood_N)))


def score_groups(in_N: np.ndarray, ood_N: np.ndarray) -> np.ndarray:
    """Group of each example of `in_N` and then `ood_N`: 0 for the highest score, equal for equal scores."""
    score = np.concatenate([in_N, ood_N])
    if np.isnan(score).any() or not len(in_N) or not len(ood_N):
        raise ValueError(
            f"{np.isnan(score).sum()} of {len(in_N)} + {len(ood_N)} scores are NaN; must be numbers, "
            "at least one of each set; check the stored predictions"
        )
    return np.unique(-score, return_inverse=True)[1]


def _counts(in_N: np.ndarray, ood_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of in-distribution and of OOD examples at each distinct score, highest first."""
    group = score_groups(in_N, ood_N)
    in_, ood = np.split(group, [len(in_N)])
    return np.bincount(in_, minlength=group.max() + 1), np.bincount(ood, minlength=group.max() + 1)


def auroc_of_counts(in_: np.ndarray, ood: np.ndarray) -> np.ndarray:
    """`auroc` along the last axis from the numbers of examples at each distinct score, highest first."""
    num_in, num_ood = in_.sum(axis=-1), ood.sum(axis=-1)
    not_below = np.cumsum(in_, axis=-1) - in_ / 2
    pairs = num_in * num_ood
    return (pairs - np.einsum("...g,...g->...", ood, not_below)) / pairs


def aupr_of_counts(in_: np.ndarray, ood: np.ndarray) -> np.ndarray:
    """`aupr` along the last axis from the numbers of examples at each distinct score, highest first."""
    flagged_ood = np.cumsum(ood, axis=-1)
    precision = flagged_ood / np.maximum(flagged_ood + np.cumsum(in_, axis=-1), 1)
    return np.sum(ood * precision, axis=-1) / ood.sum(axis=-1)


def fpr95_of_counts(in_: np.ndarray, ood: np.ndarray) -> np.ndarray:
    """`fpr95` along the last axis from the numbers of examples at each distinct score, highest first."""
    needed = np.ceil(ood.sum(axis=-1, keepdims=True) * 95 / 100)
    first = np.argmax(np.cumsum(ood, axis=-1) >= needed, axis=-1)
    flagged_in = np.take_along_axis(np.cumsum(in_, axis=-1), first[..., None], axis=-1)[..., 0]
    return flagged_in / in_.sum(axis=-1)
