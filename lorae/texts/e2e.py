"""CIDEr, ROUGE-L and NIST as the E2E scripts compute them (github.com/tuetschek/e2e-metrics).

No library does so in pure Python: pycocoevalcap is 104 MB of Java and data, and nltk's NIST matches a text
with its best reference alone, which takes a fifth off where there are several.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ORDERS = 4  # CIDEr's n-grams of one to four words
NIST_ORDERS = 5
NIST_BETA = math.log(2) / math.log(1.5) ** 2  # two thirds of the length halve the score
BETA = 1.2  # weight of recall in ROUGE-L
SIGMA = 6.0  # words of difference in length that cost a factor of exp(-1/2)
PUNCTUATION = {
    "''",
    "'",
    "``",
    "`",
    "-lrb-",
    "-rrb-",
    "-lcb-",
    "-rcb-",
    "(",
    ")",
    "{",
    "}",
    ".",
    "?",
    "!",
    ",",
    ":",
    "-",
    "--",
    "...",
    ";",
}

Grams = list[Counter[tuple[str, ...]]]  # of each order


# CIDEr ----------------------------------------------------------------------------------------------------


def cider(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean over texts of ten times the mean similarity to their references; 0 to 10; higher is better."""
    return float(np.mean(example_cider(texts, references)))


def example_cider(texts: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr of each text, (N,): 10 times the mean over orders and references of a clipped cosine.

    A vector has the n-gram counts times log(N / examples with the n-gram in a reference), so the value of a
    text depends on the whole set of examples; of a single example all are 0.
    Counts are clipped to the reference's, and lengths that differ are punished. Words are the Penn Treebank's
    in lower case without punctuation, split by nltk, in the scripts by Stanford's.
    Source: Vedantam et al. 2015, arXiv:1411.5726, as in pycocoevalcap/cider there.
    """
    known = _corpus(tuple(map(tuple, references)))
    return np.array([known.score(text, place) for place, text in enumerate(texts)])


@dataclass(frozen=True)
class _Weighted:
    """A text as weighted counts of its n-grams, with the norm, of each order; and the length it counts as."""

    orders: tuple[tuple[dict[tuple[str, ...], float], float], ...]
    length: int

    def similarity(self, reference: _Weighted) -> float:
        """Mean over orders of the clipped cosine, less for another length, in [0, 1]."""
        cosines = [_cosine(*mine, *theirs) for mine, theirs in zip(self.orders, reference.orders)]
        apart = self.length - reference.length
        return sum(cosines) / ORDERS * math.exp(-(apart**2) / (2 * SIGMA**2))


def _cosine(
    a: dict[tuple[str, ...], float], norm_a: float, b: dict[tuple[str, ...], float], norm_b: float
) -> float:
    product = sum(min(x, b[gram]) * b[gram] for gram, x in a.items() if gram in b)
    return product / (norm_a * norm_b) if norm_a and norm_b else 0.0


class _Corpus:
    """The references of a set of examples, weighted by in how many of them an n-gram is."""

    def __init__(self, references: tuple[tuple[str, ...], ...]) -> None:
        grams = [[_grams(reference) for reference in given] for given in references]
        self.log_num = math.log(len(references))
        self.found_in = Counter(
            gram for given in grams for gram in {g for one in given for o in one for g in o}
        )
        self.references = [[self._weighted(one) for one in given] for given in grams]

    def score(self, text: str, place: int) -> float:
        """Of a text to the example at a place."""
        mine = self._weighted(_grams(text))
        return 10 * float(np.mean([mine.similarity(reference) for reference in self.references[place]]))

    def _weighted(self, grams: Grams) -> _Weighted:
        orders = [{g: n * (self.log_num - self._log_found(g)) for g, n in order.items()} for order in grams]
        norms = [math.sqrt(sum(x * x for x in order.values())) for order in orders]
        # The scripts count pairs of words and call that the length
        return _Weighted(tuple(zip(orders, norms)), grams[1].total())

    def _log_found(self, gram: tuple[str, ...]) -> float:
        return math.log(max(1, self.found_in[gram]))


_corpus = functools.lru_cache(maxsize=4)(_Corpus)  # every ensemble is compared with the same references


def _grams(text: str) -> Grams:
    words = tokens(text)
    return [Counter(_grams_of(words, n)) for n in range(1, ORDERS + 1)]


@functools.lru_cache(maxsize=100_000)
def tokens(text: str) -> list[str]:
    """Words of the Penn Treebank in lower case, without punctuation."""
    from nltk.tokenize import NLTKWordTokenizer

    return [word for word in NLTKWordTokenizer().tokenize(text.lower()) if word not in PUNCTUATION]


# ROUGE-L and NIST -----------------------------------------------------------------------------------------


def rouge_l_e2e(text: str, references: Sequence[str]) -> float:
    """ROUGE-L in [0, 1]: of the best precision P and the best recall R of any reference
    (1 + b^2) P R / (R + b^2 P) with b = 1.2. Words are those of `cider`, lengths by rouge-score."""
    both = [_precision_recall(text, reference) for reference in references]
    precision, recall = (max(values) for values in zip(*both))
    if not precision:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


@functools.lru_cache(maxsize=100_000)  # members often write the same text
def _precision_recall(text: str, reference: str) -> tuple[float, float]:
    found = _scorer().score(reference, text)["rougeL"]
    return found.precision, found.recall


@functools.cache
def _scorer():
    from rouge_score.rouge_scorer import RougeScorer

    class Words:
        def tokenize(self, text: str) -> list[str]:
            return tokens(text)

    return RougeScorer(["rougeL"], tokenizer=Words())


def nist(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """NIST with 5-grams: the mean information in bits of the n-grams that are in a reference, summed over
    n, less for texts shorter than the references' mean; 0 or more.

    The information of an n-gram is log2 of how often its first n - 1 words are in the references, over how
    often all n are. Texts are lower-cased and split as by mteval-v13a.
    Source: Doddington 2002, in the form for several references of metrics/pymteval.py there.
    """
    words = [split_13a(text) for text in texts]
    gold = [[split_13a(reference) for reference in given] for given in references]
    seen = Counter(gram for given in gold for one in given for gram in _all_grams(one, NIST_ORDERS))
    seen[()] = sum(len(one) for given in gold for one in given)
    score = 0.0
    for n in range(1, NIST_ORDERS + 1):
        informative = sum(_matched(text, given, n, seen) for text, given in zip(words, gold, strict=True))
        score += informative / max(1, sum(max(0, len(text) - n + 1) for text in words))
    ratio = sum(map(len, words)) / sum(np.mean([len(one) for one in given]) for given in gold)
    return score * (math.exp(-NIST_BETA * math.log(min(ratio, 1.0)) ** 2) if ratio else 0.0)


def _matched(text: list[str], given: Sequence[list[str]], n: int, seen: Counter[tuple[str, ...]]) -> float:
    """Bits of a text's n-grams that a reference has, each as often as the reference that has most of it."""
    known: Counter[tuple[str, ...]] = Counter()
    for one in given:
        known |= Counter(_grams_of(one, n))
    hits = Counter(_grams_of(text, n)) & known
    return sum(count * math.log2(seen[gram[:-1]] / seen[gram]) for gram, count in hits.items())


def _grams_of(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _all_grams(words: list[str], orders: int) -> list[tuple[str, ...]]:
    return [gram for n in range(1, orders + 1) for gram in _grams_of(words, n)]


@functools.lru_cache(maxsize=100_000)
def split_13a(text: str) -> list[str]:
    """Words of a lower-cased text as mteval-v13a splits them."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()(text).lower().split()
