"""How unsure a text is: scores of one example, from one member, from its samples, or from M members.

A score is a function of a `View`. All of them are higher for less certain answers. To add one, write the
function and name it in `SCORES` with the sources that it can be computed from. Scores of a likeness of one's
own, such as MiniLM's or an NLI model's, come from `scores_of`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lorae.metrics.probability import Undefined, at_least_two
from lorae.store.answers import Answer
from lorae.texts import likeness
from lorae.texts.likeness import Key, Likeness
from lorae.texts.quality import normalised

# Whose words and probabilities: one member's greedy text; K samples of one member; the greedy texts of M
# members; the samples of M members
Source = Literal["one", "samples", "members", "members' samples"]
SOURCES: tuple[Source, ...] = ("one", "samples", "members", "members' samples")


@dataclass(frozen=True, eq=False)
class View:
    """What a score may look at, of one example.

    Args:
        answer: the text that is right or wrong.
        texts: those that are compared: itself, samples, or what each member wrote.
        members: positions of the members whose probabilities count.
        key: equal for texts that say the same.
        verdicts: what members say of both replies to whether the answer is true; None = they were not asked.
    """

    answer: Answer
    texts: tuple[Answer, ...]
    members: tuple[int, ...]
    key: Key = normalised
    verdicts: tuple[Answer, Answer] | None = None

    def log_probs(self, answer: Answer) -> np.ndarray:
        """Log-probability in nats of each token under the mean of the members, (T,)."""
        logp_MT = np.asarray(answer.log_probs_MT, np.float64)[list(self.members)]
        with np.errstate(invalid="ignore"):  # of a member that broke: NaN
            return np.logaddexp.reduce(logp_MT, axis=0) - np.log(len(logp_MT))

    def per_token(self, answer: Answer) -> float:
        """Mean log-probability of a text's tokens, in nats; 0 of a text without tokens."""
        return float(self.log_probs(answer).sum() / max(1, len(answer.token_ids)))

    def matches(self) -> np.ndarray:
        """Whether each two texts say the same, (K, K)."""
        return likeness.same(self.key)(self.words())

    def words(self) -> list[str]:
        return [text.text for text in self.texts]


@dataclass(frozen=True)
class Score:
    """A function of a view, and what it can be computed from.

    Args:
        of_answer: it looks at the text that is right or wrong, not at the compared texts alone.
        of_verdicts: it needs what `Generate(p_true=True)` asks for.
    """

    function: Callable[[View], float]
    sources: tuple[Source, ...]
    of_answer: bool = False
    of_verdicts: bool = False


# Of the answer's tokens -----------------------------------------------------------------------------------


def nll(view: View) -> float:
    """-sum_t log p(y_t), in nats, 0 or more; G-NLL where the answer is greedy.

    p is the members' mean probability. Source: Aichberger et al. 2024, arXiv:2412.15176.
    """
    return 0.0 - float(view.log_probs(view.answer).sum())


def nll_per_token(view: View) -> float:
    """-1/T sum_t log p(y_t), in nats, 0 or more: the logarithm of the perplexity, which ranks as it does."""
    return 0.0 - view.per_token(view.answer)


def total_entropy(view: View) -> float:
    """1/T sum_t H(mean_m p_m(. | y_<t)), in nats, in [0, ln V]: data and knowledge together.

    Raises:
        Undefined: members that are neither one nor the whole pool, whose mean alone is stored.
    Source: Malinin and Gales 2021, arXiv:2002.07650.
    """
    if len(view.members) == 1:
        return data_entropy(view)
    if len(view.members) != len(view.answer.entropies_MT):
        raise Undefined("total_entropy", f"stored is the mean of all {len(view.answer.entropies_MT)} members")
    return _mean(view.answer.mean_entropy_T)


def data_entropy(view: View) -> float:
    """1/T sum_t 1/M sum_m H(p_m(. | y_<t)), in nats, in [0, ln V]: what members that agree are unsure of.

    Source: as `total_entropy`.
    """
    return _mean(np.asarray(view.answer.entropies_MT, np.float64)[list(view.members)].mean(axis=0))


def mutual_information(view: View) -> float:
    """`total_entropy` minus `data_entropy`, in nats, in [0, ln M]: what the members do not agree on.

    Raises:
        Undefined: fewer than two members, or as `total_entropy`.
    Source: as `total_entropy`; Houlsby et al. 2011, arXiv:1112.5745.
    """
    at_least_two(np.array(view.members), "mutual_information")
    return _at_least_0(total_entropy(view) - data_entropy(view))


def reverse_mutual_information(view: View) -> float:
    """1/T sum_t (log mean_m p_m(y_t) - mean_m log p_m(y_t)), in nats, 0 or more: of the answer's own tokens.

    Unlike `mutual_information` it is known for every subset of members.
    Raises:
        Undefined: fewer than two members.
    Source: Malinin and Gales 2021, arXiv:2002.07650 (RMI), of one text.
    """
    at_least_two(np.array(view.members), "reverse_mutual_information")
    logp_MT = np.asarray(view.answer.log_probs_MT, np.float64)[list(view.members)]
    return _at_least_0(_mean(view.log_probs(view.answer) - logp_MT.mean(axis=0)))


def p_false(view: View) -> float:
    """1 - P(True): share of "false" in the probability of both replies to whether the answer is true, in
    [0, 1], of the members' mean.

    Raises:
        Undefined: they were not asked.
    Source: Kadavath et al. 2022, arXiv:2207.05221, section 3.
    """
    if view.verdicts is None:
        raise Undefined("p_false", "members were not asked; write Generate(p_true=True)")
    true, false = (float(view.log_probs(verdict).sum()) for verdict in view.verdicts)
    return float(np.exp(false - np.logaddexp(true, false)))


# Of what members say of each other's texts ----------------------------------------------------------------


def pairwise_divergence(view: View) -> float:
    """Mean over texts, and over members j that did not write it, of 1/T (log p_i(y) - log p_j(y)), where i
    wrote it, in nats: the expected pairwise KL divergence (EPKL) of members, by Monte Carlo.

    Unbiased for samples at temperature 1, without division by T; of greedy texts it is a proxy.
    Raises:
        Undefined: fewer than two members, or no text of theirs.
    Source: Malinin and Gales 2021, arXiv:2002.07650.
    """
    at_least_two(np.array(view.members), "pairwise_divergence")
    found = []
    for text in view.texts:
        others = [m for m in view.members if m != text.source]
        if text.source in view.members:
            logp_M = np.asarray(text.log_probs_MT, np.float64).sum(axis=1) / max(1, len(text.token_ids))
            found.append(logp_M[text.source] - logp_M[others].mean())
    if not found:
        raise Undefined("pairwise_divergence", "no text was written by one of the members")
    return float(np.mean(found))


# Of several texts -----------------------------------------------------------------------------------------


def sequence_entropy(view: View) -> float:
    """-1/K sum_k 1/T_k log p(y_k), in nats, 0 or more: entropy of texts by Monte Carlo, by token.

    Source: Malinin and Gales 2021, arXiv:2002.07650.
    """
    return 0.0 - float(np.mean([view.per_token(text) for text in view.texts]))


def inconsistency(view: View) -> float:
    """Share of the texts that do not say what the answer says, in [0, 1]: 1 minus self-consistency.

    Source: Wang et al. 2022, arXiv:2203.11171.
    """
    key = view.key(view.answer.text)
    return float(np.mean([view.key(text) != key for text in view.words()]))


def disagreement(view: View) -> float:
    """Share of the pairs of texts that do not say the same, in [0, 1]."""
    return 1 - _mean_of_pairs(view.matches())


def lexical_dissimilarity(view: View) -> float:
    """1 minus the mean ROUGE-L of the pairs of texts, in [0, 1].

    Source: Fomicheva et al. 2020, arXiv:2005.10608; with ROUGE-L Kuhn et al. 2023, arXiv:2302.09664.
    """
    return 1 - _mean_of_pairs(likeness.rouge_l(view.words()))


def semantic_entropy(view: View, alike: Likeness | None = None, threshold: float = 0.5) -> float:
    """-sum_c p_c log p_c in nats, in [0, ln K], over clusters c of texts that mean the same; p_c is the sum
    of exp(1/T log p(y)) over the cluster's texts, divided by that over all.

    Args:
        alike: None = texts of equal keys.
        threshold: from which two texts mean the same.
    Source: Farquhar et al. 2024, Nature 630; Kuhn et al. 2023, arXiv:2302.09664.
    """
    weight_K = np.exp([view.per_token(text) for text in view.texts])
    return _entropy_of(_clusters(view, alike, threshold), weight_K)


def discrete_semantic_entropy(view: View, alike: Likeness | None = None, threshold: float = 0.5) -> float:
    """`semantic_entropy` with p_c the share of the texts, which needs no probabilities.

    Source: Farquhar et al. 2024, Nature 630.
    """
    return _entropy_of(_clusters(view, alike, threshold), np.ones(len(view.texts)))


def degree(view: View, alike: Likeness = likeness.jaccard) -> float:
    """trace(K - D) / K^2 = 1 minus the mean of the matrix of likenesses, in [0, 1).

    Source: Lin et al. 2023, arXiv:2305.19187 ("Deg").
    """
    return 1 - float(np.mean(alike(view.words())))


def eigenvalues(view: View, alike: Likeness = likeness.jaccard) -> float:
    """sum_k max(0, 1 - lambda_k), of the normalised Laplacian of likenesses, in [1, K]: a number of meanings.

    Source: Lin et al. 2023, arXiv:2305.19187 ("EigV").
    """
    return float(np.maximum(0, 1 - _spectrum(alike(view.words()))[0]).sum())


def eccentricity(view: View, alike: Likeness = likeness.jaccard) -> float:
    """Norm of the texts' distances from their centre in the Laplacian's eigenvectors below 0.9, 0 or more.

    Source: Lin et al. 2023, arXiv:2305.19187 ("Ecc").
    """
    values_K, vectors_KK = _spectrum(alike(view.words()))
    kept = vectors_KK[:, values_K < 0.9]
    return float(np.linalg.norm(kept - kept.mean(axis=0)))


# Helpers --------------------------------------------------------------------------------------------------


def _mean(value_T: np.ndarray) -> float:
    return float(np.asarray(value_T, np.float64).sum() / max(1, len(value_T)))


def _mean_of_pairs(alike_KK: np.ndarray) -> float:
    """Mean over pairs of different texts."""
    at_least_two(alike_KK, "a comparison of texts")
    return float(alike_KK[np.triu_indices(len(alike_KK), 1)].mean())


def _clusters(view: View, alike: Likeness | None, threshold: float) -> np.ndarray:
    return likeness.clusters(view.matches() if alike is None else alike(view.words()), threshold)


def _entropy_of(cluster_K: np.ndarray, weight_K: np.ndarray) -> float:
    share = np.bincount(cluster_K, weights=weight_K)
    share = share[share != 0] / share.sum()
    return _at_least_0(0.0 - float(np.sum(share * np.log(share))))


def _at_least_0(value: float) -> float:
    """Without what rounding leaves below 0; NaN, of a member that broke, stays."""
    return float(np.maximum(0.0, value))


def _spectrum(alike_KK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, rising, and eigenvectors of 1 - D^(-1/2) W D^(-1/2)."""
    root_K = np.sqrt(alike_KK.sum(axis=1))
    return np.linalg.eigh(np.eye(len(alike_KK)) - alike_KK / np.outer(root_K, root_K))


OF_ANSWER: tuple[Source, ...] = ("one", "members")
OF_MEMBERS: tuple[Source, ...] = ("members",)
OF_TEXTS: tuple[Source, ...] = ("samples", "members", "members' samples")

SCORES: dict[str, Score] = {
    "nll": Score(nll, OF_ANSWER, of_answer=True),
    "nll_per_token": Score(nll_per_token, OF_ANSWER, of_answer=True),
    "total_entropy": Score(total_entropy, OF_ANSWER, of_answer=True),
    "data_entropy": Score(data_entropy, OF_MEMBERS, of_answer=True),
    "mutual_information": Score(mutual_information, OF_MEMBERS, of_answer=True),
    "reverse_mutual_information": Score(reverse_mutual_information, OF_MEMBERS, of_answer=True),
    "p_false": Score(p_false, OF_ANSWER, of_answer=True, of_verdicts=True),
    "pairwise_divergence": Score(pairwise_divergence, ("members", "members' samples")),
    "sequence_entropy": Score(sequence_entropy, OF_TEXTS),
    "semantic_entropy": Score(semantic_entropy, OF_TEXTS),
    "discrete_semantic_entropy": Score(discrete_semantic_entropy, OF_TEXTS),
    "inconsistency": Score(inconsistency, OF_TEXTS, of_answer=True),
    "disagreement": Score(disagreement, OF_TEXTS),
    "lexical_dissimilarity": Score(lexical_dissimilarity, OF_TEXTS),
    "degree": Score(degree, OF_TEXTS),
    "eigenvalues": Score(eigenvalues, OF_TEXTS),
    "eccentricity": Score(eccentricity, OF_TEXTS),
}


def scores_of(alike: Likeness, name: str, threshold: float) -> dict[str, Score]:
    """Semantic entropies and graph scores by a likeness of the caller's, such as "degree_minilm".

    Args:
        alike: `likeness.by_embedding` or `by_entailment` of a model.
        threshold: from which two texts mean the same, in (0, 1].
    """
    entropies = (semantic_entropy, discrete_semantic_entropy)
    found = {f.__name__: lambda view, f=f: f(view, alike, threshold) for f in entropies}
    found |= {f.__name__: lambda view, f=f: f(view, alike) for f in (degree, eigenvalues, eccentricity)}
    return {f"{score}_{name}": Score(function, OF_TEXTS) for score, function in found.items()}
