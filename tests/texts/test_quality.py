"""Quality of texts: by hand, against the libraries, and against the E2E scripts' own numbers."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st
from nltk.translate.nist_score import corpus_nist
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from text_data import REFERENCES, TEXTS

from lorae.metrics import Undefined
from lorae.texts import e2e, quality
from lorae.texts.kinds import LONG, NUMBERS, SHORT, kind_of

# Short answers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "references", "match", "f1"),
    [
        ("The Denver Broncos!", ["Denver Broncos", "Broncos"], 1, 1),
        ("Broncos of Denver", ["Denver Broncos"], 0, 0.8),
        ("in the year 1066", ["1066", "year 1066"], 0, 0.8),
        ("to be to be", ["to be"], 0, 2 * 2 / 6),  # a word counts as often as both have it
        ("", ["Denver"], 0, 0),
        ("the", ["a"], 1, 1),  # articles alone: nothing on either side
        ("Anatomy", ["natom"], 0, 0),
    ],
)
def test_short_answers_by_squads_rules(text, references, match, f1):
    assert quality.exact_match(text, references) == match
    assert quality.token_f1(text, references) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("He pays 3 * 400 = 1,200.\n#### 1,200", "1200"),
        ("It costs $1,200.50.", "1200.5"),
        ("#### 7\nNow 8 apples", "7"),
        ("so -3 degrees", "-3"),
        ("12", "12.0"),
        ("half: .5", "0.5"),
        ("it is 18.", "18"),
        ("a loss of -$1,200", "-1200"),
        ("\u22125 degrees", "-5"),
        ("12-5", "5"),
        ("x=-5", "-5"),
    ],
)
def test_the_final_number_of_a_text(text, number):
    assert quality.final_number(text) == Decimal(number)
    assert quality.number_match(text, ["9999", number]) == 1
    assert quality.number_match(text, ["9999"]) == 0


@pytest.mark.parametrize(
    ("references", "kind"),
    [
        ([["1,200 km"], ["-5 km"], ["$3"], ["7.5%"], ["2 and 3 = 5\n#### 5"]], NUMBERS),
        ([["5 km"], ["far"]], SHORT),
        ([["1999-2000"]], SHORT),
        ([["word " * 11]], LONG),
    ],
)
def test_what_is_right_is_told_by_the_references(references, kind):
    """A minus or a point is lost where words are compared: quantities are compared as numbers."""
    assert kind_of(references) is kind
    if kind is NUMBERS:
        assert kind.quality("so 5 km", references[1]) == 0 and kind.quality("so -5", references[1]) == 1


def test_a_text_without_a_number_is_wrong_and_a_reference_without_one_is_refused():
    assert quality.number_match("I do not know ####", ["0"]) == 0
    with pytest.raises(ValueError, match=r"reference 'none' has no number.*exact_match"):
        quality.number_match("1", ["1", "none"])


# Long texts -----------------------------------------------------------------------------------------------


def test_bleu_is_sacrebleus_over_examples_of_unlike_numbers_of_references():
    streams = [["".join(given[k : k + 1]) or None for given in REFERENCES] for k in range(2)]
    whole = BLEU(lowercase=True).corpus_score(TEXTS, streams)  # type: ignore[arg-type]
    assert 0 < whole.score < 100
    assert quality.bleu(TEXTS, REFERENCES) == pytest.approx(whole.score, rel=1e-12)
    assert quality.bleu([t.upper() for t in TEXTS], REFERENCES) == pytest.approx(whole.score, rel=1e-12)


def test_rouge_takes_the_best_reference():
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    text, references = TEXTS[1], REFERENCES[1]
    each = [scorer.score(reference, text) for reference in references]
    for metric, kind in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
        found = quality.EXAMPLE_METRICS[metric](text, references)
        assert found == max(one[kind].fmeasure for one in each) > min(one[kind].fmeasure for one in each)


def test_the_e2e_scripts_give_these_numbers():
    """Oracle: the scorers of tuetschek/e2e-metrics at 1b9c4d87, given these words."""
    assert e2e.example_cider(TEXTS, REFERENCES) == pytest.approx([5.02214782, 2.97231745, 1.266077])
    assert e2e.cider(TEXTS, REFERENCES) == pytest.approx(3.0868474229920158)
    rouge = [e2e.rouge_l_e2e(text, given) for text, given in zip(TEXTS, REFERENCES)]
    assert rouge == pytest.approx([0.9, 0.5269978401727862, 0.45864661654135336])
    assert e2e.nist(TEXTS[:2], REFERENCES[:2]) == pytest.approx(4.211557942625977)


def test_cider_by_hand():
    # Two examples; "red" and "dog" are each in one of them: weight ln 2; "a" in both: 0
    texts, references = ["a red", "a dog"], [["a red"], ["a cat"]]
    # The first text has its reference's words and pairs: cosine 1 of two orders, 0 of the others
    # The second shares "a" alone, which weighs nothing
    assert e2e.example_cider(texts, references) == pytest.approx([10 * 2 / 4, 0])
    longer = e2e.example_cider(["a red red", "a dog"], references)[0]  # one pair more: exp(-1 / 72)
    cosines = [1, 1 / np.sqrt(2), 0, 0]  # clipped counts: min(2, 1) ln 2 * ln 2 / (2 ln 2 * ln 2) = 1/2
    cosines[0] = 1 / 2
    assert longer == pytest.approx(10 * np.mean(cosines) * np.exp(-1 / 72))


def test_nist_of_one_reference_is_nltks():
    """With several, nltk lets a text match its best reference alone."""
    single = [given[:1] for given in REFERENCES]
    words = [e2e.split_13a(text) for text in TEXTS]
    gold = [[e2e.split_13a(given[0])] for given in single]
    assert e2e.nist(TEXTS, single) == pytest.approx(corpus_nist(gold, words))


def test_meteor_needs_wordnet_and_says_so(monkeypatch):
    class NoData:
        def ensure_loaded(self) -> None:
            raise LookupError

        def synsets(self, word: str) -> list[str]:
            return []

    monkeypatch.setattr("nltk.corpus.wordnet", NoData())
    with pytest.raises(Undefined, match="WordNet is not on this machine"):
        quality.meteor(TEXTS, REFERENCES)
    monkeypatch.setattr(NoData, "ensure_loaded", lambda self: None)
    # "the cats sat" and "the cat sat": all three match by stems, in one chunk: 1 - 0.5 (1/3)^3
    assert quality.meteor(["the cats sat"], [["a dog", "the cat sat"]]) == pytest.approx(1 - 0.5 / 27)


WORDS = st.lists(st.sampled_from(["red", "dog", "sat", "on", "it"]), min_size=1, max_size=8).map(" ".join)


@drawn(st.lists(WORDS, min_size=1, max_size=4), st.randoms())
def test_no_metric_depends_on_the_order_of_the_references(references, random):
    shuffled = random.sample(references, len(references))
    for metric in (quality.exact_match, quality.token_f1, quality.rouge_l, quality.rouge_l_e2e):
        assert metric("red dog sat", references) == pytest.approx(metric("red dog sat", shuffled))
        assert metric(references[0], references) == 1
