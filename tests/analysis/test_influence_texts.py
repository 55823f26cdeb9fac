"""What examples contribute to metrics of texts: against the jackknife, and against many test sets."""

from __future__ import annotations

import numpy as np
import pytest
from text_data import REFERENCES, TEXTS, drawn

from analysis.influence_texts import JUDGES, of_ratio, of_sums
from lorae.metrics import Undefined
from lorae.texts import judging, quality

VALUES = {
    "auroc_wrong": judging.auroc,
    "aupr_wrong": judging.aupr,
    "aurc_wrong": judging.aurc,
    "prr": judging.prr,
}


def jackknifed(value, *columns: np.ndarray) -> np.ndarray:
    """(N - 1) times what deleting each example changes, as contributions."""
    num, whole = len(columns[0]), np.arange(len(columns[0]))
    without = np.array([value(*(column[whole != n] for column in columns)) for n in whole])
    return (num - 1) * (without.mean() - without) / np.sqrt(num * (num - 1))


@pytest.mark.parametrize("name", JUDGES)
@pytest.mark.parametrize("digits", [0, 9], ids=["ties", "no ties"])
def test_contributions_are_the_jackknifes(name, digits):
    score, right = drawn(400, digits=digits)
    found = JUDGES[name](score, right)
    assert found.value == pytest.approx(VALUES[name](score, right))
    assert abs(found.examples.sum()) < 1e-9 * len(score)
    exact = jackknifed(VALUES[name], score, right)
    assert np.corrcoef(found.examples, exact)[0, 1] > 0.999
    assert np.linalg.norm(found.examples) == pytest.approx(np.linalg.norm(exact), rel=0.03)


@pytest.mark.parametrize("name", JUDGES)
def test_contributions_have_the_variance_over_test_sets(name):
    values, variances = [], []
    for seed in range(400):
        found = JUDGES[name](*drawn(150, seed, digits=2))
        values.append(found.value)
        variances.append(np.sum(found.examples**2))
    assert np.mean(variances) == pytest.approx(np.var(values), rel=0.25)


def test_a_rejection_ratio_of_qualities_in_between():
    score, right = drawn(300, digits=9)
    qualities = right * np.random.default_rng(5).uniform(0, 1, 300)
    exact = jackknifed(judging.prr, score, qualities)
    found = JUDGES["prr"](score, qualities).examples
    assert np.corrcoef(found, exact)[0, 1] > 0.99
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(exact), rel=0.1)


def test_bleu_and_perplexity_by_the_sums_of_examples():
    texts, references = TEXTS[:2] * 20 + TEXTS[2:], REFERENCES[:2] * 20 + REFERENCES[2:]
    counts = np.array(quality.bleu_counts(texts, references))
    found = of_sums(counts, lambda total: quality.bleu_of_counts(total.tolist()))
    assert found.value == pytest.approx(quality.bleu(texts, references))
    exact = jackknifed(lambda rows: quality.bleu_of_counts(rows.sum(axis=0).tolist()), counts)
    assert found.examples == pytest.approx(exact, rel=0.05, abs=0.02)
    nll, tokens = np.random.default_rng(0).uniform(1, 9, (2, 50))
    exact = jackknifed(lambda a, b: a.sum() / b.sum(), nll, tokens)
    assert of_ratio(nll, tokens).value == nll.sum() / tokens.sum()
    assert of_ratio(nll, tokens).examples == pytest.approx(exact, rel=0.05, abs=0.002)


def test_one_wrong_answer_has_no_variance_and_is_undefined():
    with pytest.raises(Undefined, match="3 answers are right and 1 wrong"):
        JUDGES["auroc_wrong"](np.arange(4.0), np.array([1, 1, 1, 0]))
