"""The study's answers are the differences of its tables, read in the direction of their metric."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pyarrow as pa
import pytest
from sweeps import make_sweep

from analysis import study
from analysis.archive import pack
from analysis.columns import direction
from analysis.data import Trials, load_trials
from analysis.differences import ensembling
from analysis.figures_study import gains_figure
from analysis.significance import Difference
from analysis.table import Entry, Line
from lorae.regularizers import KL
from lorae.store.store import Store
from lorae.trial import Diversity

METRICS = {"NLL": "ensemble_nll", "accuracy": "acc", "debiased CE-15": "debiased_ce15"}


@pytest.fixture(scope="module")
def trials(tmp_path_factory) -> Trials:
    axes = {"regularizers": [(), (KL(),)], "members": [1, 2, 4], "seed": [0, 1, 2]}
    return load_trials(make_sweep(tmp_path_factory.mktemp("study"), axes), "toy")


def value(line: Line, column: str):
    entry = line[column]
    assert isinstance(entry, Entry)
    return entry.value


def answered(trials: Trials, question: str) -> list[Line]:
    (block,) = study.answers([trials]).blocks
    return [line for line in block if value(line, "question") == question]


@pytest.mark.slow
def test_each_question_has_its_lines_alone(trials):
    asked = ("1 gain of members", "3 regulariser alone", "3 members on top", "4 order or initialisation")
    members = {question: {value(line, "line") for line in answered(trials, question)} for question in asked}
    assert members == {
        "1 gain of members": {"LoRA ensemble of 2", "LoRA ensemble of 4"},
        "3 regulariser alone": {"single LoRA, kl-0.1"},
        "3 members on top": {"LoRA ensemble of 2, kl-0.1", "LoRA ensemble of 4, kl-0.1"},
        "4 order or initialisation": set(),
    }


@pytest.mark.slow
def test_an_answer_is_the_difference_of_its_table(trials):
    (block,) = ensembling(trials).blocks
    of_table = {(line["model"].value, line["regularizers"].value): line for line in block}  # type: ignore[union-attr]
    found = 0
    for line in answered(trials, "1 gain of members"):
        if value(line, "metric") in METRICS:
            expected = of_table[value(line, "line"), "none"][METRICS[value(line, "metric")]]
            assert line["answer"] == expected
            found += 1
    assert found == 6


def test_verdicts_say_better_in_the_direction_of_the_metric(trials):
    (block,) = study.answers([trials]).blocks
    verdicts = {"better": 0, "worse": 0, "undecided": 0, "equivalent": 0}
    for line in block:
        answer, metric = line["answer"], METRICS.get(value(line, "metric"))
        assert isinstance(answer, Difference) and answer.lo is not None and answer.hi is not None
        verdicts[value(line, "verdict")] += 1
        assert value(line, "half-width") == pytest.approx((answer.hi - answer.lo) / 2)
        if metric and value(line, "verdict") in ("better", "worse"):
            improves = answer.value < 0 if direction(metric) == "lower" else answer.value > 0
            assert improves == (value(line, "verdict") == "better") and not answer.lo <= 0 <= answer.hi
    assert verdicts["better"] and verdicts["worse"], "a smaller ensemble is worse than the largest"
    gains = {value(line, "metric"): value(line, "verdict") for line in answered(trials, "1 gain of members")}
    assert gains["NLL"] == gains["accuracy"] == "better", "of lower and of higher is better"


def test_one_ensemble_has_no_verdict(tmp_path):
    found = load_trials(make_sweep(tmp_path, {"members": [1, 2]}), "toy")
    (line,) = (li for li in answered(found, "1 gain of members") if value(li, "metric") == "NLL")
    assert value(line, "verdict") == "these members only" and value(line, "half-width") is None


def test_smaller_ensembles_are_held_against_the_largest(trials):
    (block,) = study.saturating(trials).blocks
    (one,) = (line for line in block if value(line, "regularizers") == "none")
    assert value(one, "members") == 2
    nll = one["ensemble_nll"]
    cells = {(c.members, c.regularised): c for c in trials.cells}
    means = {m: trials.estimates.of(cells[m, False], "ensemble_nll").mean for m in (2, 4)}  # type: ignore[union-attr]
    assert isinstance(nll, Difference) and nll.value == pytest.approx(means[2] - means[4])


@pytest.mark.slow
def test_shared_sources_of_chance_are_held_against_independent_members(tmp_path):
    axes = {
        "diversity": [Diversity(), Diversity(order="shared"), Diversity(init="shared")],
        "members": [1, 3],
    }
    found = load_trials(make_sweep(tmp_path, axes | {"seed": [0, 1, 2]}), "toy")
    (block,) = study.sources(found).blocks
    assert [(value(line, "diversity"), value(line, "members")) for line in block] == [
        ("init", 3),
        ("order", 3),
    ]


def test_correlations_are_over_ensembles_of_one_size(trials):
    assert {row["members"] for row in study.of_one_size(trials).rows} == {4}
    assert len(study.of_one_size(trials).rows) == 6


def test_of_a_file_the_whole_sweep_is_shown_or_its_parts():
    names = ["demo", "study-members-1-2", "study_trec", "study_trec-members-1", "study_rivals-smoke"]
    assert study.sweeps_of(names) == ["study-members-1-2", "study_trec", "study_rivals-smoke"]
    assert study.sweeps_of(["demo"]) == []


@pytest.mark.slow
def test_an_archive_gives_the_tables_and_answers_of_its_storage(tmp_path, capsys):
    storage = make_sweep(tmp_path, {"regularizers": [(), (KL(),)], "members": [1, 2, 4], "seed": [0, 1]})
    store = Store(storage)
    table = store.read_table("toy")
    renamed = pa.array(["study"] * len(table))
    store.write_table("study", table.set_column(table.schema.get_field_index("sweep"), "sweep", renamed))
    pack(storage, ["study"], tmp_path / "archive")
    assert study.main([str(tmp_path / "archive"), "--out", str(tmp_path / "a")]) == 0
    assert study.main([storage, "--out", str(tmp_path / "b")]) == 0
    ours, theirs = (
        {p.relative_to(tmp_path / side): p.read_bytes() for p in (tmp_path / side).rglob("*.*")}
        for side in "ab"
    )
    pdf = {name for name in ours if name.suffix == ".pdf"}  # has the date
    assert {name: ours[name] for name in ours.keys() - pdf} == {
        name: theirs[name] for name in theirs.keys() - pdf
    }
    assert {Path("answers.csv"), Path("study/table.csv"), Path("study/size.svg")} <= ours.keys()
    assert "## Answers" in capsys.readouterr().out
    with (tmp_path / "a" / "answers.csv").open() as stream:
        assert all(math.isfinite(float(row["answer"])) for row in csv.DictReader(stream))


def test_a_storage_without_the_study_is_refused(tmp_path, capsys):
    storage = make_sweep(tmp_path, {"members": [1]})
    assert study.main([storage]) == 2
    assert "has no sweep of the study; run pipelines/study.py" in capsys.readouterr().err


def test_the_figure_has_the_interval_of_each_ensemble(trials):
    (plot,) = gains_figure(study.answers([trials]), study.GAINS, margin=0.005)
    (axes,) = plot.figure.axes
    wanted = []
    for question in study.GAINS:
        for line in answered(trials, question):
            if value(line, "metric") == "NLL T-scaled":
                answer = line["answer"]
                assert isinstance(answer, Difference)
                wanted.append((answer.lo, answer.hi))
    drawn = [container.lines[2][0].get_segments()[0][:, 0] for container in axes.containers]  # type: ignore[attr-defined]
    assert len(wanted) == 4 and [tuple(ends) for ends in drawn] == [pytest.approx(ends) for ends in wanted]
    assert not gains_figure(study.answers([trials]), ["no question"], margin=0.005)
