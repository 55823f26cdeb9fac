"""The summary's sentences say what the verdicts of the tables say; reliability is that of the stored logits;
examples are the ones that stand out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.special
from sweeps import make_sweep
from toys import Colours, Greys

from analysis.columns import Column
from analysis.data import Trials, load_trials
from analysis.differences import ensembling, regularising
from analysis.example_texts import shown_examples
from analysis.examples import ERROR, SPLIT, example_tables
from analysis.reliability import reliability
from analysis.significance import Difference, Mark
from analysis.summary import summary
from analysis.table import Entry, Line, Table, comparison
from lorae.regularizers import KL

AXES = {"regularizers": [(), (KL(),)], "members": [1, 2, 4], "seed": [0, 1]}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def trials(root: Path) -> Trials:
    return load_trials(make_sweep(root, AXES), "toy")


def row(model: str, value: float, mark: Mark | None, is_of_these: bool = False) -> Line:
    found = Entry(value, 0.01, mark, is_of_these=is_of_these)
    return {"model": Entry(model), "regularizers": Entry("none"), "ensemble_nll": found}


TEXTS = (Column("model", "text"), Column("regularizers", "text"))


def whole(*blocks: tuple[Line, ...]) -> Table:
    return Table("table", "Comparison", "", (*TEXTS, Column("ensemble_nll", "metric")), blocks)


def change(*found: Difference) -> Table:
    lines = [{"model": Entry(f"of {n}"), "regularizers": Entry("none"), "ensemble_nll": d}
             for n, d in enumerate(found)]  # fmt: skip
    columns = (*TEXTS, Column("ensemble_nll", "difference"))
    return Table("ensembling", "What ensembling changes, against one", "", columns, (tuple(lines),))


def test_it_counts_worse_equivalent_and_undecided_rows():
    block = (row("a", 0.3, "best"), row("b", 0.31, "undecided"), row("c", 0.3, "equivalent"))
    block = (*block, row("d", 0.9, "worse"), row("e", 0.8, "worse"), row("f", 0.1, None, True))
    first, last = summary(whole(block))
    assert first == ("a has the best NLL, 0.300 ± 0.010; of 4 others, 2 worse, 1 equivalent and 1 undecided.")
    assert last.endswith("1 rows (†) are one ensemble each and have no verdict.")


def test_differences_are_better_or_worse_by_the_direction_of_the_metric():
    sure = Difference(-0.2, -0.3, -0.1, 0.01, "lower"), Difference(0.1, 0.05, 0.2, 0.01, "higher")
    unsure = Difference(-0.3, -0.7, 0.1, 0.3, "undecided"), Difference(0.0, -0.1, 0.1, 1.0, "equivalent")
    block = (row("a", 0.3, "best"),)
    _, second, _ = summary(whole(block), [change(*sure, *unsure, Difference(1.0))])
    assert second == (
        "What ensembling changes, against one: of 4 differences in NLL, 1 better, 1 worse, 1 equivalent and "
        "1 undecided, the largest -0.200 [-0.300, -0.100] for of 0."
    )
    _, second, _ = summary(whole(block), [change(*unsure)])
    assert "largest" not in second and "1 equivalent and 1 undecided" in second
    assert len(summary(whole(block), [change(Difference(1.0))])) == 2, "no verdict, no sentence"


def test_without_a_verdict_it_says_nothing_and_of_many_test_sets_the_first():
    assert summary(whole((row("a", 0.3, None, True),))) == []
    first = summary(whole(*[(row(f"m{n}", 0.3, "best"),) for n in range(5)]))[0]
    assert first.count("has the best") == 3 and first.endswith("2 more test sets are in the table.")


def test_it_agrees_with_the_tables_of_a_sweep(trials):
    table, changes = comparison(trials), [ensembling(trials), regularising(trials)]
    first, second, _ = summary(table, changes)
    marks = [line["ensemble_nll"].mark for block in table.blocks for line in block]
    assert first.startswith("LoRA ensemble of 4, kl-0.1 has") and f"{marks.count('worse')} worse" in first
    told = [line["ensemble_nll"].verdict for t in changes[:1] for block in t.blocks for line in block]
    assert f"of 4 differences in NLL, {told.count('lower')} better" in second


# Reliability ----------------------------------------------------------------------------------------------


def test_bins_are_the_ensembles_own_and_their_error_is_that_between_seeds(trials):
    """Of two seeds with whole pools, each ensemble is one observation: half the difference."""
    (cell,) = [c for c in trials.cells if c.members == 4 and c.factors["regularizers"] == "none"]
    bins = reliability(trials, cell)
    shares = []
    for stored in cell.rows:
        test = trials.predictions(stored)
        p_NC = scipy.special.softmax(test.logits_MNC.astype(float), 2).mean(0)
        top_N, right_N = p_NC.max(1), p_NC.argmax(1) == test.labels_N
        inside = [(b.lo < top_N) & (top_N <= b.hi) for b in bins]
        shares.append([[i.sum(), (i * right_N).sum(), (i * top_N).sum()] for i in inside])
    (count, right, confidence) = np.moveaxis(np.array(shares, float), 2, 0)  # (seeds, bins)
    assert [b.count for b in bins] == pytest.approx(count.mean(0))
    assert sum(b.count for b in bins) == pytest.approx(90)
    assert [b.accuracy for b in bins] == pytest.approx(right.sum(0) / count.sum(0))
    assert [b.confidence for b in bins] == pytest.approx(confidence.sum(0) / count.sum(0))
    residual = right - np.array([b.accuracy for b in bins]) * count
    assert [b.stderr for b in bins] == pytest.approx(np.ptp(residual, axis=0) / 2 / count.mean(0))


def test_the_backbone_has_no_error_over_trainings(trials):
    (cell,) = [c for c in trials.cells if not c.members]
    assert {b.stderr for b in reliability(trials, cell)} == {None}


# Examples -------------------------------------------------------------------------------------------------


def test_they_are_the_most_confident_errors_and_the_largest_disagreements(trials, root):
    task = Colours().located(root / "data")
    (table,) = example_tables(trials, [task])
    cell = min(
        (c for c in trials.cells if c.members > 1),
        key=lambda c: np.mean([r["validation_nll"] for r in c.rows]),
    )
    test = trials.predictions(cell.rows[0])
    p_MNC = scipy.special.softmax(test.logits_MNC.astype(float), 2)
    p_NC = p_MNC.mean(0)
    wrong_N = p_NC.argmax(1) != test.labels_N
    errors, split = table.blocks
    assert errors[0]["confidence"].value == pytest.approx(p_NC.max(1)[wrong_N].max())
    assert all(line["gold"].value != line["predicted"].value for line in errors)
    entropy = scipy.special.entr(p_NC).sum(1) - scipy.special.entr(p_MNC).sum(2).mean(0)
    assert [x["mutual_information"].value for x in split] == pytest.approx(np.sort(entropy)[::-1][:6])
    assert {x["why"].value for x in errors} == {ERROR} and {x["why"].value for x in split} == {SPLIT}
    texts = {e.question: e.options[e.label] for e in task.examples("test") if e.label is not None}
    assert all(texts[x["example"].value] == x["gold"].value for x in (*errors, *split))
    votes = [sum(int(v.split(" x ")[0]) for v in x["votes"].value.split(", ")) for x in split]
    assert set(votes) == {cell.members}


def test_texts_of_other_data_are_not_shown(trials, root):
    (cell,) = [c for c in trials.cells if c.members == 4 and c.factors["regularizers"] == "none"]
    name = trials.predictions(cell.rows[0]).example_ids[0]
    own = Colours(option_seed=1, num_test=5).located(
        root / "data"
    )  # the recipe says what its own options are
    assert shown_examples(trials, cell, [own]).text(name).startswith("w")
    other = replace(own, source=Greys().located(root / "data").source)
    found = shown_examples(trials, cell, [other])
    assert found.text(name) == name and "--data-root" in found.note and found.answer(name, 2) == "class 2"
