"""The comparison table: its numbers recomputed, its marks, its columns, and its three renderings."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import scipy.special
from sklearn.metrics import roc_auc_score
from sweeps import COMMAND, make_sweep

from analysis import demo
from analysis.columns import Column, all_metrics, direction, margins, title
from analysis.data import load_trials
from analysis.render import amount, csv_text, latex, markdown
from analysis.selection import with_columns
from analysis.table import Entry, Table, comparison
from lorae.methods import Lora, Vera
from lorae.regularizers import KL, DecayB

AXES = {"regularizers": [(), (KL(),), (DecayB(),)], "members": [1, 3], "seed": [0, 1]}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_sweep(tmp_path_factory.mktemp("sweep"), AXES)


@pytest.fixture(scope="module")
def table(storage: str) -> Table:
    return compared(storage)


def compared(storage: str) -> Table:
    return comparison(load_trials(storage, "toy"))


def line_of(table: Table, model: str, regularizers: str | None) -> dict[str, Entry]:
    lines = itertools.chain(*table.blocks)
    (line,) = [x for x in lines if (x["model"].value, x["regularizers"].value) == (model, regularizers)]
    return line


# Numbers --------------------------------------------------------------------------------------------------


@pytest.mark.slow
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
    assert line["trainings"].value == 6 and line["acc"].stderr > 0 and line["train_tokens"].stderr == 0


@pytest.mark.slow
def test_the_best_value_of_each_tested_column_is_marked_and_the_hopeless_are_worse(table):
    lines = list(itertools.chain(*table.blocks))
    for column in table.columns:
        marks = {line[column.name].mark for line in lines}
        if column.kind == "metric" and column.name != "ece15":
            best = max if direction(column.name) == "higher" else min
            known = [line for line in lines if line[column.name].mark]
            marked = [line[column.name].value for line in known if line[column.name].mark == "best"]
            assert marked and set(marked) == {best(line[column.name].value for line in known)}
        else:
            assert marks == {None}
    assert line_of(table, "zero-shot", None)["ensemble_nll"].mark == "worse"


@pytest.mark.slow
def test_every_metric_of_a_row_can_be_a_column(storage):
    trials = load_trials(storage, "toy")
    table = comparison(trials, all_metrics(trials))
    line = line_of(table, "single LoRA", "none")
    assert line["disagreement"].value is None and line["classwise_ece15"].value > 0
    assert line["aupr_energy__greys"].value > 0 and line["validation_nll"].value > 0


def test_the_caption_says_which_columns_were_tested_and_by_which_margins(storage):
    trials = load_trials(storage, "toy", margins={"acc": 0.03})
    caption = comparison(trials, ["acc", "brier", "signed_gap", "disagreement"]).caption
    assert "Not tested" not in caption and "margins: accuracy 0.03, Brier 0.005" in caption
    caption = comparison(trials, ["validation_nll", "acc", "ece15"]).caption
    assert "Not tested: validation NLL, ECE-15." in caption
    assert "Not tested." in comparison(trials, ["ece15"]).caption


@pytest.mark.slow
def test_the_margin_decides_what_is_equivalent(storage):
    marks = {
        margin: {
            line["acc"].mark
            for block in comparison(load_trials(storage, "toy", margins={"acc": margin})).blocks
            for line in block
        }
        for margin in (1e-6, 2.0)
    }
    assert "equivalent" not in marks[1e-6] and "undecided" in marks[1e-6]
    assert "undecided" not in marks[2.0] and "equivalent" in marks[2.0]


def test_a_row_of_the_only_ensemble_is_of_these_very_members(tmp_path):
    table = comparison(load_trials(make_sweep(tmp_path, {"members": [1, 3]}), "toy"))
    three, one = (line_of(table, model, "none") for model in ("LoRA ensemble of 3", "single LoRA"))
    assert three["acc"].is_of_these and three["acc"].mark is None and one["acc"].mark
    assert " †" in markdown(table) and r"$^{\dagger}$" in latex(table) and "†" in table.caption
    assert any("--set seed=0,1,2" in note for note in table.notes)


# Columns --------------------------------------------------------------------------------------------------


def test_columns_are_what_varies_and_the_caption_has_the_rest(table):
    assert [c.name for c in table.columns if c.kind in ("text", "amount")][:3] == [
        "model",
        "regularizers",
        "trainings",
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
            assert found[f"{name}_mark"] == line[name].mark


def test_latex_escapes_what_latex_reads(table):
    source = latex(table)
    assert r"decay\_b-1" in source and "q_proj+v_proj" in source.partition("\n%")[2]
    read = "\n".join(line for line in source.splitlines() if not line.startswith("%"))
    assert not re.search(r"(?<!\\)[_%#]", read) and read.isascii()
    body = source.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == 7 and {row.count("&") for row in body} == {
        len([c for c in table.columns if c.kind != "data"]) - 1
    }
    assert r"\toprule" in source and r"\textbf{" in source and r"$\pm$" in source


@pytest.mark.slow
def test_a_latex_table_is_as_wide_as_it_must_be(storage):
    """In a column where it fits, over two else; scaled only where a page is too narrow; the label is the
    sweep's."""
    trials = load_trials(storage, "toy")
    wide = latex(comparison(trials))
    assert r"\begin{table*}" in wide and r"\resizebox" in wide and wide.count("{") == wide.count("}")
    narrow = latex(with_columns(comparison(trials), ["model", "acc", "ensemble_nll"]))
    assert r"\begin{table}" in narrow and r"\end{table}" in narrow and r"\resizebox" not in narrow
    assert narrow.count("&") == 2 * (1 + 7) and r"\label{tab:toy-table}" in narrow
    caption = re.search(r"\\caption\{(.*)\}", narrow)[1]
    assert caption.startswith("Comparison of sweep toy. Best in bold") and len(caption) < 160
    assert latex(replace(comparison(trials), sweep="")).count(r"\label{tab:table}") == 1


@pytest.mark.skipif(not (shutil.which("pdflatex") or shutil.which("tectonic")), reason="no LaTeX here")
def test_latex_compiles(storage, tmp_path):
    trials = load_trials(storage, "toy")
    tables = [comparison(trials), with_columns(comparison(trials), ["model", "acc"])]
    packages = r"\documentclass[twocolumn]{article}\usepackage{booktabs,graphicx}\begin{document}"
    source = "\n".join([packages, *map(latex, tables), r"\end{document}"])
    (tmp_path / "paper.tex").write_text(source)
    program = shutil.which("tectonic") or "pdflatex"
    subprocess.run([program, "paper.tex"], cwd=tmp_path, check=True, stdin=subprocess.DEVNULL, timeout=120)
    assert (tmp_path / "paper.pdf").stat().st_size > 1000


@pytest.mark.slow
def test_columns_rows_and_metrics_are_chosen(storage, tmp_path, capsys):
    out = tmp_path / "out"
    words = [storage, "--sweep", "toy", "--out", str(out)]
    assert demo.main([*words, "--metric", "aurc,accuracy", "--columns", "model,members,acc,aurc"]) == 0
    rows = list(csv.reader((out / "table.md").read_text().splitlines(), delimiter="|"))
    assert [cell.strip() for cell in rows[0][1:-1]] == ["model", "members", "accuracy ↑", "AURC ↓"]
    assert demo.main([*words, "--rows", "ENSEMBLE"]) == 0
    lines = [line for line in (out / "table.md").read_text().splitlines() if line.startswith("|")][2:]
    assert lines and all("ensemble" in line for line in lines)
    assert "marks compare all rows" in (out / "table.md").read_text()
    capsys.readouterr()
    for wrong, message in [
        (["--metric", "eec15"], "did you mean ece15? there are acc"),
        (["--columns", "nlll"], "--columns nlll: "),
        (["--rows", "vera"], "--rows vera: no row of table has it; there are"),
    ]:
        assert demo.main([*words, *wrong]) == 2
        assert message in capsys.readouterr().err


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
        (1.67e12, "1.67T"),
        (123_456, "123k"),
    ],
)
def test_amounts_have_three_digits(value, shown):
    assert amount(value) == shown


@pytest.mark.parametrize("text", ["acc=0", "acc=-1", "acc=x", "acc", "speed=1", "ensemble_nll=nan"])
def test_a_margin_that_is_none_is_one_clear_error(text, storage, capsys):
    with pytest.raises(ValueError, match=r"margin .*must be METRIC=X with X > 0"):
        margins([text])
    assert demo.main([storage, "--sweep", "toy", "--margin", text]) == 2
    assert "must be METRIC=X" in capsys.readouterr().err


@pytest.mark.slow
def test_a_note_names_the_grid_and_what_was_chosen_at_its_end(storage):
    trials = load_trials(storage, "toy")
    axes = {"optimizer.lr": {"values": [1e-4, 3e-4, 1e-3], "chosen": 1e-3, "at_end": True}}
    points = [{"values": {"optimizer.lr": lr}} for lr in (1e-4, 1e-3)]
    tuning = {"axes": axes, "points": points, "members": 2, "train_tokens": 6000}
    rows = tuple(row | {"tuning": json.dumps(tuning) if row["members"] else None} for row in trials.rows)
    table = comparison(replace(trials, rows=rows))
    assert any(
        "optimizer.lr over 0.0001, 0.0003, 0.001 (refused, so not tried: optimizer.lr=0.0003), "
        "by the mean validation NLL of 2 single members" in note
        for note in table.notes
    )
    assert any(note.startswith("chosen at an end of its grid") for note in table.notes)
    assert line_of(table, "single LoRA", "none")["tuning_tokens"].value == 6000
    assert "tuning tokens" in markdown(table) and "tuning tokens" not in markdown(comparison(trials))
