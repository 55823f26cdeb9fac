"""How alike texts are: matrices (K, K) of K texts with ones on the diagonal, and clusters of like ones."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Hashable, Sequence

import numpy as np

Likeness = Callable[[Sequence[str]], np.ndarray]  # K texts -> (K, K), symmetric, in [0, 1]
Key = Callable[[str], Hashable]  # texts of equal keys say the same


def jaccard(texts: Sequence[str]) -> np.ndarray:
    """Shared words over all words of two texts, in lower case. Source: Lin et al. 2023, arXiv:2305.19187."""
    return _of_pairs(texts, _jaccard)


def rouge_l(texts: Sequence[str]) -> np.ndarray:
    """F1 of the longest common subsequence of words, as `quality.rouge_l`.

    By bits of an integer, since every pair of samples is compared: rouge-score takes fifty times as long.
    """
    return _of_pairs(texts, _rouge_l)


def by_embedding(embed: Callable[[Sequence[str]], np.ndarray]) -> Likeness:
    """Cosine similarity, 0 where it is negative, of the embeddings (K, D) of texts, such as MiniLM's."""

    def alike(texts: Sequence[str]) -> np.ndarray:
        return _once(texts, lambda distinct: _cosines(np.asarray(embed(distinct), np.float64)))

    return alike


def by_entailment(entails: Callable[[Sequence[tuple[str, str]]], np.ndarray]) -> Likeness:
    """The smaller probability, of both directions, that one text entails the other by an NLI model.

    Args:
        entails: pairs (premise, hypothesis) -> probability of each.
    Source: Kuhn et al. 2023, arXiv:2302.09664: what entails each other means the same.
    """

    def of_distinct(texts: Sequence[str]) -> np.ndarray:
        pairs = [(a, b) for a in texts for b in texts if a != b]
        found = np.eye(len(texts))
        if pairs:
            found[~np.eye(len(texts), dtype=bool)] = np.asarray(entails(pairs))
        return np.minimum(found, found.T)

    return lambda texts: _once(texts, of_distinct)


def same(key: Key) -> Likeness:
    """1 for texts of equal keys, else 0."""

    def alike(texts: Sequence[str]) -> np.ndarray:
        keys = [key(text) for text in texts]
        return np.array([[float(a == b) for b in keys] for a in keys])

    return alike


def clusters(alike_KK: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Cluster of each text (K,), numbered by first appearance: a text joins the first cluster whose first
    text is at least this like it.

    Source: Kuhn et al. 2023, arXiv:2302.09664, algorithm 1.
    """
    first: list[int] = []
    cluster_K = np.empty(len(alike_KK), np.intp)
    for k, alike_K in enumerate(alike_KK):
        joined = next((c for c, f in enumerate(first) if alike_K[f] >= threshold), len(first))
        cluster_K[k] = joined
        if joined == len(first):
            first.append(k)
    return cluster_K


# Pairs ----------------------------------------------------------------------------------------------------


def _once(texts: Sequence[str], of_distinct: Likeness) -> np.ndarray:
    """A likeness computed of each distinct text once; equal texts are alike."""
    distinct = list(dict.fromkeys(texts))
    place = [distinct.index(text) for text in texts]
    return of_distinct(distinct)[np.ix_(place, place)]


def _cosines(embedding_KD: np.ndarray) -> np.ndarray:
    norm_K = np.maximum(np.linalg.norm(embedding_KD, axis=1), 1e-12)
    found = np.clip((embedding_KD / norm_K[:, None]) @ (embedding_KD / norm_K[:, None]).T, 0, 1)
    np.fill_diagonal(found, 1)
    return found


def _of_pairs(texts: Sequence[str], alike: Callable[[str, str], float]) -> np.ndarray:
    def of_distinct(distinct: Sequence[str]) -> np.ndarray:
        found = np.eye(len(distinct))
        for i, a in enumerate(distinct):
            for j in range(i):
                found[i, j] = found[j, i] = alike(*sorted((a, distinct[j])))
        return found

    return _once(texts, of_distinct)


@functools.lru_cache(maxsize=1_000_000)  # subsets of members compare the same pairs again
def _jaccard(a: str, b: str) -> float:
    ours, theirs = set(a.lower().split()), set(b.lower().split())
    return len(ours & theirs) / max(1, len(ours | theirs))


@functools.lru_cache(maxsize=1_000_000)
def _rouge_l(a: str, b: str) -> float:
    ours, theirs = _words(a), _words(b)
    return 2 * common_length(ours, theirs) / max(1, len(ours) + len(theirs))


@functools.lru_cache(maxsize=100_000)
def _words(text: str) -> list[str]:
    """As rouge-score splits a text."""
    return re.findall("[a-z0-9]+", text.lower())


def common_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence. Source: Hyyro 2004, bit-parallel LCS-length computation."""
    where: dict[str, int] = {}
    for place, word in enumerate(a):
        where[word] = where.get(word, 0) | 1 << place
    mask = (1 << len(a)) - 1
    row = mask
    for word in b:
        matched = row & where.get(word, 0)
        row = ((row + matched) | (row - matched)) & mask
    return len(a) - row.bit_count()
