"""Published numbers: complete, sourced, doubted for a reason, and never part of what we compute."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar

import numpy as np
import pytest
from page import Page
from sweeps import make_sweep
from toys import Colours

from analysis import esc50, lora_ensemble, published, report
from analysis.data import load_trials
from analysis.folds import over_folds
from analysis.page import table_html
from analysis.published import Published, beside, published_rows, published_table
from analysis.render import csv_text, latex, markdown
from analysis.table import Table
from lorae import tasks
from lorae.sources import Files

ROWS = tuple(row for row in published_rows() if row.metric not in published.OF_TEXTS)
LANGUAGE = [row for row in ROWS if row.backbone.startswith("meta-llama/")]
CHEMISTRY = published_rows("openbookqa", "mmlu/college_chemistry")


def settings() -> dict[tuple[str, ...], dict[str, Published]]:
    """The numbers of each setting by metric."""
    found: dict[tuple[str, ...], dict[str, Published]] = {}
    for row in ROWS:
        setting = (row.source, row.backbone, row.trained_on, row.evaluated_on, row.method)
        assert row.metric not in found.setdefault(setting, {}), f"twice: {setting} {row.metric}"
        found[setting][row.metric] = row
    return found


SETTINGS = settings()


def doubted(reason: str) -> set[Published]:
    found = {row for row in ROWS if any(doubt.startswith(reason) for doubt in row.doubts)}
    assert found, reason
    return found


# Facts ----------------------------------------------------------------------------------------------------


def test_every_row_is_loaded_with_its_source_and_a_possible_value():
    assert len(ROWS) == 480 and published_rows(metric="nll") == tuple(r for r in ROWS if r.metric == "nll")
    for row in ROWS:
        assert row.source.startswith("arXiv:") and row.backbone and row.method and row.num_members >= 1
        assert row.column in published.METRICS and (row.ece_bins is None) == (row.metric != "ece")
        assert 0 < row.value < (10 if row.metric == "nll" else 1) and (row.std is None or 0 < row.std < 0.1)


def test_numbers_of_texts_are_in_the_units_of_our_columns():
    rows = [row for row in published_rows() if row.metric in published.OF_TEXTS]
    assert len(rows) == 84 and {row.evaluated_on for row in rows} == {"e2e_nlg", "gsm8k"}
    between = {
        "bleu": (60, 75),
        "nist": (8, 9),
        "cider": (2, 3),
        "meteor": (0.4, 0.5),
        "rouge_l_e2e": (0.65, 0.75),
    }
    for row in rows:
        lo, hi = between.get(row.metric, (0.3, 0.5))
        assert row.source and lo < row.value < hi and (row.std is None or 0 < row.std < row.value / 100)
    vera = [r.value for r in rows if (r.method, r.backbone, r.metric) == ("vera", "gpt2-medium", "bleu")]
    assert vera == [70.1]
    (block,) = published_table(published_rows("e2e_nlg")).blocks
    assert len(block) == 16 and all(line["cider"].value for line in block)


def test_no_nll_is_lower_than_its_accuracy_allows():
    """A wrong answer has at most half of the probability on the gold class, so it costs ln 2 or more."""
    for found in SETTINGS.values():
        assert "nll" not in found or found["nll"].value >= (1 - found["acc"].value) * math.log(2)


def test_their_names_of_language_tasks_are_ours():
    ours = (
        *(tasks.ArcEasy(), tasks.ArcChallenge(), tasks.BoolQ(), tasks.OpenBookQA()),
        *(tasks.WinoGrande("s"), tasks.WinoGrande("m")),
        *(tasks.MMLU("college_chemistry"), tasks.MMLU("college_physics")),
    )
    assert {row.evaluated_on for row in LANGUAGE} == {task.name for task in ours}
    assert {row.trained_on for row in LANGUAGE} == {task.name for task in ours if "mmlu" not in task.name}


# Doubts ---------------------------------------------------------------------------------------------------


def attainable(published: float, questions: int) -> bool:
    """Whether 1 to 5 seeds' right answers to so many questions have this mean, rounded or cut to 4 digits."""
    given = Fraction(round(published * 10_000), 10_000)
    near = [(round(given * questions * n), questions * n) for n in range(1, 6)]
    return any(
        abs(Fraction(right + step, asked) - given) < Fraction(1, 10_000)
        for right, asked in near
        for step in (-1, 0, 1)
    )


def test_accuracies_that_no_number_of_right_answers_gives_are_suspect():
    questions = {"openbookqa": 500, "mmlu/college_chemistry": 100, "mmlu/college_physics": 102}
    impossible, dropped = set[Published](), set[Published]()
    for found in SETTINGS.values():
        size, acc = questions.get(found["acc"].evaluated_on), found["acc"].value
        if size and not attainable(acc, size):
            impossible |= set(found.values())
            dropped |= set(found.values()) if attainable(acc, size - size % 16) else set()
    assert impossible == doubted("no count of right answers to the whole test set")
    whole_batches = "no count of right answers to the whole test set gives its accuracy (1 to 5 seeds), but"
    assert dropped == doubted(whole_batches)


def test_ensembles_out_of_distribution_are_suspect():
    found = {r for r in LANGUAGE if r.method == "lora_ensemble" and r.trained_on != r.evaluated_on}
    assert found == doubted("the public reference code")


def test_an_ece_of_other_probabilities_than_the_accuracy_is_suspect():
    """Of one member they are the same: the softmax of the mean is the mean softmax."""
    theirs = {r for r in ROWS if r.source.startswith("arXiv:2405.14438") and r.metric == "ece"}
    assert {r for r in theirs if r.num_members > 1} == doubted("ECE of softmax(mean logits)")


def test_an_ece_that_contradicts_the_nll_is_suspect():
    found = set[Published]()
    for setting, numbers in SETTINGS.items():
        plain = SETTINGS.get((*setting[:-1], "lora"), {})
        if "nll" in plain and numbers["ece"].value < plain["ece"].value:
            over = numbers["nll"].value > 1.5 * plain["nll"].value
            found |= {numbers["ece"], numbers["nll"]} if over else set()
    assert found == doubted("better ECE than the plain LoRA")


def test_a_larger_backbone_that_is_far_worse_is_suspect():
    larger = {
        r: SETTINGS[r.source, "ViT-B", *[r.trained_on] * 2, r.method] for r in ROWS if r.backbone == "ViT-L"
    }
    gaps = {row: smaller["acc"].value - row.value for row, smaller in larger.items()}
    found = {row for row, gap in gaps.items() if gap > 0.05}
    assert found == doubted("ViT-L is 10 to 12 points below the smaller ViT-B")
    assert {round(100 * gaps[row]) for row in found} == {10, 12} and len(found) == 4


def test_no_row_is_doubted_for_any_other_reason():
    reasons = {doubt for row in ROWS for doubt in row.doubts}
    assert len(reasons) == 6


# Shown ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rendered", [markdown, latex, csv_text, lambda table: html.unescape(table_html(table))]
)
def test_a_suspect_row_is_marked_with_its_reason_in_every_format(rendered: Callable[[Table], str]):
    text = rendered(published_table(CHEMISTRY))
    lines = [line.replace("\\", "") for line in text.splitlines() if "college" in line]
    (ensemble,) = [line for line in lines if "lora_ensemble" in line]
    (clean,) = [line for line in lines if "dalorra" in line]
    assert "all (a, b)" in ensemble and "all (" not in clean
    for row in CHEMISTRY:
        assert all(doubt in text for doubt in row.doubts) and row.source in text
    assert "\\textbf" not in text and "**" not in text and "<b>" not in text and "≈" not in text


def test_only_the_numbers_that_are_doubted_are_named():
    laplace = [row for row in published_rows("openbookqa", "openbookqa") if row.method == "laplace_lora"]
    eight, seven = published_table(laplace).blocks[0]
    assert (eight["suspect"].value, seven["suspect"].value) == ("ECE-15, NLL (a)", None)


def test_every_number_is_in_the_table_once():
    rows = published_rows()
    found = csv.DictReader(io.StringIO(csv_text(published_table(rows))))
    shown = [line[column] for line in found for column in published.METRICS if line[column]]
    assert sorted(map(float, shown)) == sorted(row.value for row in rows)
    (line,) = csv.DictReader(io.StringIO(csv_text(published_table([r for r in ROWS if r.std][:1]))))
    assert line["acc_std"] == "0.0052" and line["members_or_draws"] == "3"


def test_the_command_prints_a_task_and_refuses_what_nobody_published(capsys):
    assert published.main(["--task", "winogrande_s", "--metric", "ece"]) == 0
    text = capsys.readouterr().out
    assert text.count("\n| winogrande_s") == 17 and "accuracy ↑" not in text
    assert "not computed by lorae" in text
    with pytest.raises(SystemExit, match="2"):
        published.main(["--task", "cifar100", "--metric", "nll"])
    assert "no nll of cifar100 is published" in capsys.readouterr().err


# Beside ours ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Toy(Colours):
    """The toy task under a name of the field."""

    name: ClassVar[str] = "openbookqa"


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("sweep")
    task = Toy(num_test=60, source=Files(str(root / "data" / "colours")))
    return make_sweep(root, {"task": [task], "members": [1, 3]})


def test_the_rows_of_a_sweep_are_those_of_its_tasks(storage):
    trials = load_trials(storage, "toy")
    (table,) = beside(trials)
    assert len(table.blocks) == 1 and len(table.blocks[0]) == 17
    assert {line["evaluated_on"].value for line in table.blocks[0]} == {"openbookqa"}
    sets = {"test": "openbookqa__test__0", "mmlu/college_physics": "mmlu-college_physics__test__0"}
    rows = tuple(row | {"eval_sets": json.dumps(sets)} for row in trials.rows)
    (table,) = beside(replace(trials, rows=rows))
    assert [(len(b), b[0]["evaluated_on"].value) for b in table.blocks] == [
        (17, "openbookqa"),
        (9, "mmlu/college_physics"),
    ]


def test_a_sweep_whose_tasks_nobody_published_has_no_such_table(tmp_path):
    assert beside(load_trials(make_sweep(tmp_path, {"members": [1]}), "toy")) == []


@dataclass(frozen=True, kw_only=True)
class Fold(Colours):
    """The toy task as one fold of a task of the field."""

    fold: int

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"esc50/fold{self.fold}"


@pytest.mark.slow
def test_a_cross_validated_task_is_the_mean_over_its_folds_beside_the_published(tmp_path, monkeypatch):
    monkeypatch.setattr(lora_ensemble, "standard_figures", lambda trials: [])  # drawing takes seconds
    source = Files(str(tmp_path / "data" / "colours"))
    folds = [Fold(fold=fold, num_test=60, source=source) for fold in (1, 2, 3)]
    trials = load_trials(make_sweep(tmp_path, {"task": folds, "members": [1, 3], "seed": [0, 1]}), "toy")
    content = esc50.content(trials)
    pooled, published = content.tables[0], content.tables[-1]
    (line,) = [line for line in pooled.blocks[0] if line["model"].value == "LoRA ensemble of 3"]
    acc = [
        np.mean([r["acc"] for r in trials.rows if r["members"] == 3 and r["task"] == f.label]) for f in folds
    ]
    assert len(set(acc)) > 1
    assert (line["acc"].value, line["acc"].std) == pytest.approx((np.mean(acc), statistics.stdev(acc)))
    assert f"{np.mean(acc):.3f} ± {statistics.stdev(acc):.3f}" in markdown(pooled)
    assert "acc_std" in csv_text(pooled) and "standard deviation over 3 folds" in pooled.caption
    assert {line["trained_on"].value for block in published.blocks for line in block} == {"esc50"}
    rows = tuple(r for r in trials.rows if r["members"] != 3 or "fold2" not in r["task"])
    lacking = over_folds(replace(trials, rows=rows), ["acc"])
    assert lacking.notes == ("left out, as it lacks a fold: LoRA ensemble of 3",)


def test_our_tables_are_the_same_with_and_without_the_published(storage, tmp_path, monkeypatch):
    """Averages, tests and best marks: every byte of the files, every cell of the page."""
    for figures in ("panels", "diversity_against_gain", "quality_against_cost", "heat_maps"):
        monkeypatch.setattr(report, figures, lambda trials: [])  # drawing takes seconds

    def written(folder: str) -> tuple[dict[str, bytes], list[list[list[str]]]]:
        page = report.write_report(storage, "toy", tmp_path / folder)
        tables = [p for p in page.parent.iterdir() if p.suffix in (".md", ".csv", ".tex")]
        return {p.name: p.read_bytes() for p in tables}, Page(page.read_text()).tables

    files, tables = written("with")
    monkeypatch.setattr(report, "beside", lambda trials: [])
    files_without, tables_without = written("without")
    added = {f"published.{ending}" for ending in ("md", "csv", "tex")}
    assert files.keys() - files_without.keys() == added and files_without.items() <= files.items()
    (theirs,) = [table for table in tables if table not in tables_without]
    assert len(tables) == len(tables_without) + 1 and len(theirs) == 1 + 17
