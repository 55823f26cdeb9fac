"""How good texts are: against the references of their examples, each of which may have several.

Metrics of one text (`EXAMPLE_METRICS`) are means over the examples of a corpus; metrics of a corpus
(`CORPUS_METRICS`) pool counts over it. Higher is better in all of them.
"""

from __future__ import annotations

import functools
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from lorae.metrics.probability import Undefined
from lorae.texts.e2e import cider, nist, rouge_l_e2e, split_13a

References = Sequence[str]  # of one example, at least one
_SIGN = r"(?:(?<![\w)])[-+\u2212])?"  # in "12-5" there is no -5
NUMBER = re.compile(_SIGN + r"[$€£]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
QUANTITY = re.compile(rf"[$€£]?{NUMBER.pattern}(?:\s?[^\s\d]+){{0,2}}")  # with a unit of one or two words
_PLAIN = str.maketrans({"\u2212": "-", **dict.fromkeys(",$€£")})
MARK = "####"  # before GSM8K's final number


# Short answers --------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=100_000)  # members often write the same text
def normalised(text: str) -> str:
    """Lower case without punctuation, articles and repeated spaces.

    Source: the evaluation script of SQuAD 1.1 (Rajpurkar et al. 2016, arXiv:1606.05250).
    """
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(text: str, references: References) -> float:
    """1 if the normalised text equals a normalised reference, else 0."""
    return float(any(normalised(text) == normalised(reference) for reference in references))


def token_f1(text: str, references: References) -> float:
    """The largest F1 of the normalised text's words and those of a reference, in [0, 1].

    Where one of both has no word, 1 if the other has none, else 0, as in SQuAD 2.0's script.
    """
    return max(_f1(normalised(text).split(), normalised(reference).split()) for reference in references)


def _f1(words: Sequence[str], gold: Sequence[str]) -> float:
    if not words or not gold:
        return float(words == gold)
    return 2 * (Counter(words) & Counter(gold)).total() / (len(words) + len(gold))


# Arithmetic -----------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=100_000)
def final_number(text: str) -> Decimal | None:
    """The number after the last "####", or the last number of a text without it; None if there is none.

    Commas between digits and a sign are read, units are not: "-$1,200.50" and "-1200.5 km" are -1200.5.
    Source: Cobbe et al. 2021, arXiv:2110.14168 (GSM8K); SVAMP's answers are such numbers without the mark.
    """
    _, mark, tail = text.rpartition(MARK)
    found = NUMBER.findall(tail)
    if not found:
        return None
    return Decimal(found[0 if mark else -1].translate(_PLAIN))


def number_match(text: str, references: References) -> float:
    """1 if the text's final number equals that of a reference, else 0; a text without one is wrong.

    Raises:
        ValueError: a reference has no number.
    """
    gold = [final_number(reference) for reference in references]
    if None in gold:
        raise ValueError(
            f"reference {references[gold.index(None)]!r} has no number; number_match is for arithmetic: "
            "use exact_match, or repair the task's references"
        )
    return float(final_number(text) in gold)


# Long texts -----------------------------------------------------------------------------------------------


def rouge_l(text: str, references: References) -> float:
    """F1 of the longest common subsequence of words with the best reference, in [0, 1]; rouge-score, no
    stemmer. Source: Lin 2004, ROUGE."""
    return max(_rouge("rougeL", text, reference)[2] for reference in references)


def rouge_1(text: str, references: References) -> float:
    """F1 of single words, as `rouge_l`."""
    return max(_rouge("rouge1", text, reference)[2] for reference in references)


def rouge_2(text: str, references: References) -> float:
    """F1 of pairs of words, as `rouge_l`."""
    return max(_rouge("rouge2", text, reference)[2] for reference in references)


@functools.lru_cache(maxsize=100_000)
def _rouge(kind: str, text: str, reference: str) -> tuple[float, float, float]:
    """Precision, recall and F1."""
    found = _rouge_scorer(kind).score(reference, text)[kind]
    return found.precision, found.recall, found.fmeasure


@functools.cache
def _rouge_scorer(kind: str):
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], use_stemmer=False)


# Corpora --------------------------------------------------------------------------------------------------


def bleu(texts: Sequence[str], references: Sequence[References]) -> float:
    """BLEU in [0, 100] by sacrebleu, of lower-cased texts as in the E2E scripts (case:lc, tok:13a,
    smooth:exp). Source: Papineni et al. 2002; Post 2018, arXiv:1804.08771."""
    return bleu_of_counts([sum(column) for column in zip(*bleu_counts(texts, references))])


def bleu_counts(texts: Sequence[str], references: Sequence[References]) -> list[list[int]]:
    """What each text adds to the corpus's BLEU: matches and totals of its 1- to 4-grams, its length and that
    of the closest reference, (N, 10)."""
    return [list(_bleu_counts(text, tuple(given))) for text, given in zip(texts, references, strict=True)]


@functools.lru_cache(maxsize=100_000)
def _bleu_counts(text: str, references: tuple[str, ...]) -> tuple[int, ...]:
    found = _bleu_scorer().sentence_score(text, references)
    return (*found.counts, *found.totals, found.sys_len, found.ref_len)


@functools.cache
def _bleu_scorer():
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(lowercase=True, effective_order=True)


def bleu_of_counts(counts: Sequence[Any]) -> float:
    """BLEU in [0, 100] of the sums of `bleu_counts`."""
    scorer = _bleu_scorer()
    *grams, length, gold = counts
    return scorer.compute_bleu(list(grams[:4]), list(grams[4:]), length, gold, smooth_method="exp").score


def chrf(texts: Sequence[str], references: Sequence[References]) -> float:
    """chrF2 of characters in [0, 100] by sacrebleu. Source: Popovic 2015, W15-3049."""
    from sacrebleu.metrics.chrf import CHRF

    return CHRF().corpus_score(texts, _streams(references)).score


def _streams(references: Sequence[References]) -> list[list[Any]]:
    """The k-th reference of every example, None where it has fewer: what sacrebleu takes."""
    most = max(map(len, references))
    return [[given[k] if k < len(given) else None for given in references] for k in range(most)]


def meteor(texts: Sequence[str], references: Sequence[References]) -> float:
    """Mean METEOR of the best reference by nltk, in [0, 1], with WordNet's synonyms.

    nltk's is the METEOR of 2007; the E2E scripts run METEOR 1.5, whose numbers are others.
    Raises:
        Undefined: WordNet's data is not on this machine.
    Source: Lavie and Agarwal 2007, W07-0734.
    """
    from nltk.translate.meteor_score import meteor_score

    known = _wordnet()
    scores = [
        meteor_score([split_13a(r) for r in given], split_13a(text), wordnet=known)
        for text, given in zip(texts, references, strict=True)
    ]
    return float(sum(scores) / len(scores))


def _wordnet():
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        raise Undefined(
            "meteor",
            "nltk's WordNet is not on this machine; run python -m nltk.downloader wordnet, or name a folder "
            "with corpora/wordnet in NLTK_DATA",
        ) from None
    return wordnet


EXAMPLE_METRICS: dict[str, Callable[[str, References], float]] = {
    "exact_match": exact_match,
    "token_f1": token_f1,
    "number_match": number_match,
    "rouge_1": rouge_1,
    "rouge_2": rouge_2,
    "rouge_l": rouge_l,
    "rouge_l_e2e": rouge_l_e2e,
}
CORPUS_METRICS: dict[str, Callable[[Sequence[str], Sequence[References]], float]] = {
    "bleu": bleu,
    "chrf": chrf,
    "nist": nist,
    "meteor": meteor,
    "cider": cider,
}
