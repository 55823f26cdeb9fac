"""The comparison table: its numbers recomputed, its marks, its columns, and its three renderings."""

from __future__ import annotations

import csv
import io
import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
import scipy.special
from analysis.resampling import num_resamples, resample
from sklearn.metrics import roc_auc_score
from sweeps import COMMAND, make_sweep, predict_later
from toys import Colours

from analysis import resampling
from analysis.columns import Column, all_metrics, default_metrics, direction, title
from analysis.data import load_trials
from analysis.differences import ensembling
from analysis.render import amount, csv_text, latex, markdown
from analysis.table import Entry, Table, comparison
from lorae.methods import Lora, Vera
from lorae.regularizers import KL, DecayB
from lorae.store import Store

AXES = {"regularizers": [(), (KL(),), (DecayB(),)], "members": [1, 3], "seed": [0, 1]}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_sweep(tmp_path_factory.mktemp("sweep"), AXES)


@pytest.fixture(scope="module")
def table(storage: str) -> Table:
    return compared(storage)


def compared(storage: str) -> Table:
    trials = load_trials(storage, "toy")
    return comparison(trials, resample(trials, default_metrics(trials)))


def line_of(table: Table, model: str, regularizers: str | None) -> dict[str, Entry]:
    lines = itertools.chain(*table.blocks)
    (line,) = [x for x in lines if (x["model"].value, x["regularizers"].value) == (model, regularizers)]
    return line


# Numbers --------------------------------------------------------------------------------------------------


def test_every_number_of_a_line_recomputed_from_the_stored_logits(storage, table):
    trials = load_trials(storage, "toy")
    line = line_of(table, "LoRA ensemble of 3", "kl-0.1")
    rows = [row for row in trials.rows if (row["members"], row["regularizers"]) == (3, "kl-0.1")]
    values: dict[str, list[float]] = {}
    for row in rows:
        test, ood = trials.predictions(row), trials.predictions(row, "greys")
        p_NC, ood_NC = (scipy.special.softmax(x.logits_MNC.astype(float), 2).mean(0) for x in (test, ood))
        gold, top = p_NC[np.arange(90), test.labels_N], p_NC.max(1)
        gap_N = (p_NC.argmax(1) == test.labels_N) - top
        bin_N = np.ceil(top * 15).astype(int)
        scores = 1 - np.concatenate([top, ood_NC.max(1)])
        recomputed = {
            "acc": np.mean(p_NC.argmax(1) == test.labels_N),
            "ensemble_nll": -np.log(gold).mean(),
            "brier": np.mean(np.sum((p_NC - np.eye(3)[test.labels_N]) ** 2, 1)),
            "ece15": sum(abs(gap_N[bin_N == b].sum()) for b in range(16)) / 90,
            "auroc_msp__greys": roc_auc_score(np.arange(130) >= 90, scores),
            "train_tokens": 3000,
            "forwards_per_prediction": 3,
            "trainable_parameters": 192,
        }
        for name, value in recomputed.items():
            values.setdefault(name, []).append(value)
    assert len(rows) == 2
    for name, of_seeds in values.items():
        assert line[name].value == pytest.approx(np.mean(of_seeds)), name
        if name in ("acc", "ensemble_nll", "brier", "ece15", "auroc_msp__greys"):
            assert line[name].stderr == pytest.approx(abs(of_seeds[0] - of_seeds[1]) / 2), name


def test_the_best_value_of_each_column_is_marked_and_the_hopeless_are_worse(table):
    lines = list(itertools.chain(*table.blocks))
    for column in table.columns:
        marks = {line[column.name].verdict for line in lines}
        if column.kind == "metric":
            best = max if direction(column.name) == "higher" else min
            marked = [line[column.name].value for line in lines if line[column.name].verdict == "best"]
            assert marked and set(marked) == {best(line[column.name].value for line in lines)}
        else:
            assert marks == {None}
    assert line_of(table, "zero-shot", None)["ensemble_nll"].verdict == "worse"


def test_without_stored_logits_the_best_value_is_marked_and_a_note_says_why(storage, tmp_path):
    content = Store(storage).storage.read("sweeps/toy/trials.parquet")
    Store(str(tmp_path)).storage.write("sweeps/toy/trials.parquet", content)
    table = compared(str(tmp_path))
    verdicts = [line["ensemble_nll"].verdict for line in itertools.chain(*table.blocks)]
    assert sorted(map(str, verdicts)) == ["None"] * 6 + ["best"]
    assert any("no verdicts" in note and "reference" in note for note in table.notes)


def test_every_metric_of_a_row_can_be_a_column(storage):
    trials = load_trials(storage, "toy")
    table = comparison(trials, resample(trials, []), all_metrics(trials))
    lines, line = list(itertools.chain(*table.blocks)), line_of(table, "single LoRA", "none")
    assert line["disagreement"].value is None and line["classwise_ece15"].value > 0
    assert "without a test" in table.caption and {x["acc"].verdict for x in lines} == {"best", None}


def test_the_caption_says_which_columns_were_tested(tmp_path, storage):
    def caption(trials, tested, shown):
        return comparison(trials, resample(trials, tested), shown).caption

    trials = load_trials(storage, "toy")
    assert "Not tested" not in caption(
        trials, ["acc", "brier"], ["acc", "brier", "signed_gap", "disagreement"]
    )
    assert "Not tested, so only the best in bold: validation NLL, Brier." in (
        partly := caption(trials, ["acc"], ["validation_nll", "acc", "brier"])
    )
    assert "≈: not distinguishable" in partly and "without a test" not in partly
    axes = {"task": [Colours(), Colours(option_seed=1)], "members": [1]}
    of_two = make_sweep(tmp_path, axes)
    predict_later(of_two, load_trials(of_two, "toy").rows[:1], "blues__test__aa")
    trials = load_trials(of_two, "toy").with_stored_ood()
    columns = ["auroc_msp__greys", "auroc_msp__blues"]
    assert "Not tested" not in (found := caption(trials, columns, columns)) and "≈" in found


def test_large_tables_have_fewer_resamples_and_say_so(storage, monkeypatch):
    assert [num_resamples(n) for n in (1, 200_000, 660_000, 10**8)] == [10_000, 10_000, 3_000, 1_000]
    trials, columns = load_trials(storage, "toy"), ["acc", "auroc_msp__greys"]
    num_rows = len(trials.rows)
    monkeypatch.setattr(resampling, "ROW_EXAMPLES", num_rows * 90 // 2)  # 90 test and 40 OOD examples
    found = resample(trials, columns)
    assert {column: boot.num_resamples for (_, column), boot in found.bootstraps.items()} == {
        "acc": 5_000,
        "auroc_msp__greys": 3_000,
    }
    assert "3,000 to 5,000 resamples" in comparison(trials, found, columns).caption
    assert "3,000 to 5,000 resamples" in ensembling(trials, found).caption
    monkeypatch.setattr(resampling, "MAX_ROW_EXAMPLES", num_rows * 90 - 1)
    none = comparison(trials, resample(trials, columns), columns)
    assert "without a test" in none.caption and "are too many" in none.notes[0]


# Columns --------------------------------------------------------------------------------------------------


def test_columns_are_what_varies_and_the_caption_has_the_rest(table):
    assert [c.name for c in table.columns if c.kind in ("text", "amount")][:3] == [
        "model",
        "regularizers",
        "seeds",
    ]
    assert "rank=8" in table.caption and "2 seeds" in table.caption and "90 test examples" in table.caption
    assert COMMAND in table.caption and "abc123" in table.caption


def test_methods_name_the_models_and_ranks_get_a_column(tmp_path):
    axes = {"method": [Lora(rank=4), Lora(rank=8), Vera(rank=16)], "members": [1, 2]}
    table = compared(make_sweep(tmp_path, axes))
    assert [c.name for c in table.columns if c.kind == "text"] == [
        "init",
        "rank",
        "alpha",
        "model",
        "regularizers",
    ]
    lines = [(line["rank"].value, line["model"].value) for line in itertools.chain(*table.blocks)]
    assert lines[0] == (None, "zero-shot") and (16, "VeRA ensemble of 2") in lines and len(lines) == 7


def test_directions_follow_the_metric_behind_a_column():
    names = [
        "acc",
        "ts_ece15",
        "validation_nll",
        "auroc_msp__greys",
        "fpr95_energy__a_b",
        "signed_gap",
        "rank",
    ]
    assert [direction(n) for n in names] == ["higher", "lower", "lower", "higher", "lower", "none", "none"]
    assert title("members_ts_ece15") == "ECE-15 members T-scaled" and direction("members_ts_ece15") == "lower"
    assert title("ts_ece15") == "ECE-15 T-scaled" and title("auroc_msp__plot_x") == "AUROC msp, plot_x"


# Renderings -----------------------------------------------------------------------------------------------


def test_markdown_has_one_line_for_each_cell_with_marks_and_errors(table):
    text = markdown(table)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 7 and len({row.count("|") for row in rows}) == 1
    assert "accuracy ↑" in rows[0] and "NLL ↓" in rows[0]
    best = line_of(table, "zero-shot", None)["acc"]
    assert f"{best.value:.3f}" in rows[2] and "±" not in rows[2] and "±" in rows[3]
    assert re.search(r"\*\*\d\.\d{3} ± \d\.\d{3}\*\*", text)


def test_csv_parses_back_to_the_same_numbers(table):
    parsed = list(csv.DictReader(io.StringIO(csv_text(table))))
    assert len(parsed) == 7
    for found, line in zip(parsed, itertools.chain(*table.blocks), strict=True):
        assert found["task"] == "colours" and int(found["members"]) == line["members"].value
        for name in ("acc", "ensemble_nll", "auroc_msp__greys"):
            assert float(found[name]) == line[name].value
            assert found[f"{name}_stderr"] == ("" if line[name].stderr is None else str(line[name].stderr))
            assert found[f"{name}_verdict"] == line[name].verdict


def test_latex_escapes_what_latex_reads(table):
    source = latex(table)
    assert r"decay\_b-1" in source and r"q\_proj+v\_proj" in source
    assert not re.search(r"(?<!\\)[_%#]", source) and source.isascii()
    body = source.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == 7 and {row.count("&") for row in body} == {
        len([c for c in table.columns if c.kind != "data"]) - 1
    }
    assert r"\toprule" in source and r"\textbf{" in source and r"$\pm$" in source


def test_odd_numbers_and_texts_survive_every_rendering():
    column, odd = Column("ensemble_nll", "metric"), Column("note", "text")
    line = {"ensemble_nll": Entry(np.inf), "note": Entry("a|b_{c} 50% \\ & ~")}
    table = Table(
        "odd name", "title", "caption", (column, odd), ((line, line | {"ensemble_nll": Entry(None)}),)
    )
    assert "∞" in markdown(table) and "a\\|b" in markdown(table)
    assert r"$\infty$" in latex(table) and r"50\% \textbackslash{} \& \textasciitilde{}" in latex(table)
    assert next(csv.DictReader(io.StringIO(csv_text(table))))["note"] == line["note"].value
    assert latex(replace(table, blocks=())).count("midrule") == 1


@pytest.mark.parametrize(
    "value, shown",
    [
        (0, "0"),
        (7, "7"),
        (1.5, "1.5"),
        (999, "999"),
        (1000, "1.00k"),
        (999_999, "1.00M"),
        (12e9, "12.0G"),
        (123_456, "123k"),
    ],
)
def test_amounts_have_three_digits(value, shown):
    assert amount(value) == shown
