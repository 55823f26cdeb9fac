"""The report: differences, figures across a sweep, and the page that holds everything."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from page import Page
from sweeps import COMMAND, make_sweep, predict_later
from toys import Colours

from analysis import ood, report
from analysis.columns import direction
from analysis.data import load_trials
from analysis.differences import against_rivals, ensembling, regularising, same_parameters
from analysis.figures_scores import ood_roc, risk_coverage
from analysis.figures_setting import metric_against_setting, numeric_settings
from analysis.figures_sweep import (
    correlation_text,
    diversity_against_gain,
    heat_maps,
    pareto_front,
    quality_against_cost,
)
from analysis.gain import nll_gain, with_gains
from analysis.page import Section, page
from analysis.plotting import panels
from analysis.render import csv_text, markdown
from analysis.significance import Difference
from analysis.table import comparison
from jobs import cli
from lorae.methods import BatchEnsemble, Kaiming, Lora, Xavier
from lorae.regularizers import KL

AXES = {"regularizers": [(), (KL(),)], "members": [1, 2, 4]}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_sweep(tmp_path_factory.mktemp("sweep"), AXES)


@pytest.fixture(scope="module")
def written(storage: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    warnings = ["check 2: members <a> and b are the same"]
    return report.write_report(storage, "toy", tmp_path_factory.mktemp("report"), warnings)


# Differences ----------------------------------------------------------------------------------------------


def test_a_difference_is_that_of_the_stored_logits_to_the_named_baseline(storage):
    trials = load_trials(storage, "toy")
    table = ensembling(trials)
    lines = {(x["model"].value, x["regularizers"].value): x for block in table.blocks for x in block}
    assert list(lines) == [(f"LoRA ensemble of {m}", r) for r in ("none", "kl-0.1") for m in (2, 4)]
    found = lines["LoRA ensemble of 2", "none"]["ensemble_nll"]
    (row,) = (r for r in trials.rows if r["regularizers"] == "none" and r["members"] == 4)
    test = trials.predictions(row)
    p_PNC = scipy.special.softmax(test.logits_MNC.astype(float), 2)

    def nll(p_NC: np.ndarray) -> float:
        return float(-np.log(p_NC[np.arange(90), test.labels_N]).mean())

    pairs = [nll(p_PNC[list(pair)].mean(0)) for pair in itertools.combinations(range(4), 2)]
    assert isinstance(found, Difference)
    assert found.value == pytest.approx(np.mean(pairs) - np.mean([nll(p_NC) for p_NC in p_PNC]))
    assert "Δ NLL ↓" in (shown := markdown(table)) and f" {found.value:+.3f} [" in shown.replace("**", "")
    these = lines["LoRA ensemble of 4", "none"]["ensemble_nll"]
    assert these.verdict is None and f"{these.value:+.3f} †" in shown and "very members" in table.caption
    entries = [e for line in lines.values() for e in line.values() if isinstance(e, Difference)]
    sure = [e for e in entries if e.verdict in ("lower", "higher")]
    assert 0 < len(sure) < len(entries) and all(f"**{e.value:+.3f} [" in shown for e in sure)
    assert "ensemble_nll_lo,ensemble_nll_hi,ensemble_nll_p_value,ensemble_nll_verdict" in csv_text(table)


def test_answers_that_flip_are_counted_over_the_ensembles_of_both_sides(storage):
    trials = load_trials(storage, "toy")
    (cell, baseline) = (
        c for c in trials.cells if c.members in (1, 4) and c.factors["regularizers"] == "none"
    )
    single, four = (baseline, cell) if cell.members == 4 else (cell, baseline)
    test = trials.predictions(four.rows[0])
    right_PN = test.logits_MNC.argmax(2) == test.labels_N
    of_four_N = scipy.special.softmax(test.logits_MNC.astype(float), 2).mean(0).argmax(1) == test.labels_N
    gained = np.sum(of_four_N * (1 - right_PN.mean(0)))
    lost = np.sum((1 - of_four_N) * right_PN.mean(0))
    line = next(x for b in ensembling(trials).blocks for x in b if x["model"].value == four.name)
    assert line["flips"].value == f"+{gained:.3g} -{lost:.3g}"
    change = line["acc"].value * 90
    assert change == pytest.approx(gained - lost) and single.members == 1


def test_the_comparison_and_every_table_of_differences_agree_on_every_pair(storage):
    trials = load_trials(storage, "toy")
    marks = {(x["model"].value, x["regularizers"].value): x for b in comparison(trials).blocks for x in b}
    num_seen = 0
    for table in (ensembling(trials), regularising(trials)):
        for line in itertools.chain(*table.blocks):
            row = marks[line["model"].value, line["regularizers"].value]
            for name, found in line.items():
                if not isinstance(found, Difference) or found.verdict is None:
                    continue
                worse = "lower" if direction(name) == "higher" else "higher"
                best = row[name].mark == "best"
                assert not (best and found.verdict == worse), (line["model"].value, name)
                num_seen += 1
    assert num_seen > 20


def test_regularised_cells_are_compared_with_the_unregularised_of_their_size(storage):
    trials = load_trials(storage, "toy")
    ((*lines,),) = regularising(trials).blocks
    assert [line["model"].value for line in lines] == [
        "single LoRA",
        "LoRA ensemble of 2",
        "LoRA ensemble of 4",
    ]
    acc = {(c.factors["regularizers"], c.members): trials.estimates.of(c, "acc").mean for c in trials.cells}
    assert lines[0]["acc"].value == pytest.approx(acc["kl-0.1", 1] - acc["none", 1])


def test_only_cells_of_one_test_set_are_compared(tmp_path):
    axes = {"task": [Colours(), Colours(option_seed=1)], "members": [1, 2]}
    trials = load_trials(make_sweep(tmp_path, axes), "toy")
    table = comparison(trials, ["acc"])
    assert [len(block) for block in table.blocks] == [3, 3] and trials.varying == ("task.option_seed",)
    for block in table.blocks:
        assert [line for line in block if line["acc"].mark == "best"]
    labels = ["task.option_seed none", "task.option_seed 1"]
    assert [p.label for p in panels(trials)] == labels and all(p.zero_shot for p in panels(trials))
    assert len({plot.name for plot in quality_against_cost(trials)}) == 2


def test_subsets_of_one_test_split_are_other_test_sets_with_the_same_factors(tmp_path):
    axes = {"task": [Colours(num_test=50), Colours(num_test=90)], "members": [1, 2]}
    trials = load_trials(make_sweep(tmp_path, axes), "toy")
    assert [len(cell.rows) for cell in trials.cells] == [1] * 6 and trials.varying == ()
    assert len({panel.slug for panel in panels(trials)}) == 2
    blocks = ensembling(trials).blocks
    acc = {
        (cell.rows[0]["num_examples"], cell.members): trials.estimates.of(cell, "acc").mean
        for cell in trials.cells
    }
    changes = [acc[num, 2] - acc[num, 1] for num in (50, 90)]
    assert [line["acc"].value for (line,) in blocks] == pytest.approx(changes)


# Figures --------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1))
def test_the_front_is_what_nothing_dominates(points):
    front = [points[i] for i in pareto_front(points)]

    def dominated(p):
        return any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)

    assert sorted(front) == front == sorted({p for p in points if not dominated(p)})


def test_the_front_of_cost_is_drawn_through_its_cells(storage):
    trials = load_trials(storage, "toy")
    (plot,) = quality_against_cost(trials)
    tokens, forwards = plot.figure.axes
    for axes, cost in ((tokens, "train_tokens"), (forwards, "forwards_per_prediction")):
        of, cells = trials.estimates.of, [cell for cell in trials.cells if cell.members]
        points = [(of(cell, cost).mean, of(cell, "ensemble_nll").mean) for cell in cells]
        (front,) = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
        assert [tuple(p) for p in front.get_xydata()] == [points[i] for i in pareto_front(points)]


def test_diversity_and_gain_are_those_of_the_ensembles(storage):
    trials = load_trials(storage, "toy")
    (plot,) = diversity_against_gain(trials)
    rows = [row for row in trials.rows if row["members"] > 1]
    drawn = np.concatenate([line.get_xydata() for line in plot.figure.axes[1].lines])
    assert sorted(map(tuple, drawn)) == sorted((r["mutual_information"], nll_gain(r)) for r in rows)
    assert min(nll_gain(row) for row in rows) > 0
    calibration = [r["calibration_gain"] for r in with_gains(trials).rows if r["members"] > 1]
    drawn = np.concatenate([line.get_xydata() for line in plot.figure.axes[5].lines])
    assert sorted(drawn[:, 1]) == sorted(calibration) and min(calibration) < max(calibration)
    r = scipy.stats.pearsonr([r["mutual_information"] for r in rows], [nll_gain(r) for r in rows]).statistic
    assert f"r = {r:.2f}" in plot.figure.axes[1].get_title()
    assert correlation_text([1, 1, 1], [1, 2, 3]) == "no correlation: constant"
    assert correlation_text([1, 2, 3], [1, 10, 11]).endswith("rho = 1.00")


@pytest.mark.slow
def test_heat_maps_need_two_numeric_factors(storage, tmp_path):
    assert heat_maps(load_trials(storage, "toy")) == []
    ranks = {"method.rank": [1, 2, 4], "members": [1, 2], "regularizers": [(), (KL(),)]}
    trials = load_trials(make_sweep(tmp_path / "ranks", ranks), "toy")
    plots = heat_maps(trials)
    assert [plot.name for plot in plots] == ["heat-rank-members-KL-beta-0", "heat-rank-members-KL-beta-0.1"]
    (image,) = plots[0].figure.axes[0].images
    nll = {
        (c.factors["rank"], c.members): trials.estimates.of(c, "ensemble_nll").mean
        for c in trials.cells
        if c.factors["regularizers"] == "none"
    }
    assert np.asarray(image.get_array()).tolist() == [[nll[r, m] for m in (1, 2)] for r in (1, 2, 4)]
    both = replace(
        trials, rows=tuple(r for r in trials.rows if (r["rank"], r["members"]) in ((1, 1), (2, 2)))
    )
    assert heat_maps(both) == [], "two settings that change together span no grid"
    strengths = {"regularizers": [(), (KL(0.1),), (KL(1),)], "members": [1, 2]}
    (plot,) = heat_maps(load_trials(make_sweep(tmp_path / "strengths", strengths), "toy"))
    assert plot.name == "heat-KL-beta-members"


@pytest.mark.slow
def test_sensitivity_to_the_gain_and_the_rank_is_drawn(tmp_path):
    """A grid of both beside a rival that differs in more than one thing."""
    inits = [Xavier(gain=gain) for gain in (1, 10, 30)]
    grid = [Lora(rank=rank, alpha=None, init=init) for rank in (2, 4) for init in inits]
    rival = [Lora(rank=8, alpha=None, init=Kaiming()), BatchEnsemble()]
    axes = {"method": [*grid, *rival], "members": [1, 2]}
    trials = load_trials(make_sweep(tmp_path, axes), "toy")
    assert numeric_settings(trials) == ["rank", "Xavier gain"]
    (plot,) = metric_against_setting(trials, "Xavier gain", "ensemble_nll")
    handles, labels = plot.figure.axes[0].get_legend_handles_labels()
    lines = dict(zip(labels, handles))
    named = {label for label in labels if not label.startswith("zero-shot")}
    assert named == {f"rank {r}, M = {m}" for r in (2, 4) for m in (1, 2)}
    nll = {(r["rank"], r["init"], r["members"]): r["ensemble_nll"] for r in trials.rows}
    drawn = lines["rank 4, M = 2"].lines[0].get_xydata().tolist()
    assert drawn == [[gain, nll[4, f"xavier-{gain}", 2]] for gain in (1, 10, 30)]
    assert not [line for line in plot.figure.axes[0].lines if line.get_linestyle() == ":"]
    maps = heat_maps(trials)
    assert [m.name for m in maps] == ["heat-rank-Xavier-gain-members-1", "heat-rank-Xavier-gain-members-2"]


@pytest.mark.slow
def test_the_lora_ensemble_is_compared_with_each_rival(tmp_path):
    lora, wide = Lora(rank=2, alpha=None), Lora(rank=4, alpha=None)
    axes = {
        "method": [lora, Lora(rank=2, alpha=None, init=Xavier()), wide, BatchEnsemble()],
        "regularizers": [(), (KL(),)],
        "members": [1, 2],
    }
    trials = load_trials(make_sweep(tmp_path, axes), "toy")
    kept = [
        "lora 2 none 1",
        "lora 2 none 2",
        "lora 4 none 1",
        "batchensemble 0 none 1",
        "batchensemble 0 none 2",
    ]
    rows = {f"{r['method']} {r['rank']} {r['regularizers']} {r['members']}": r for r in trials.rows[::-1]}
    rows["gain"] = next(r for r in trials.rows if r["init"] == "xavier-1" and r["members"] == 2)
    trials = replace(trials, rows=tuple(rows[name] for name in [*kept, "gain", "lora 2 kl-0.1 1"]))
    (block,) = (table := against_rivals(trials)).blocks
    assert [line["rival"].value for line in block] == [
        "single LoRA", "single LoRA, rank 4", "single BatchEnsemble member", "BatchEnsemble of 2",
        "single LoRA, kl-0.1",
    ]  # fmt: skip
    nll = {
        f"{c.factors['method']} {c.factors['rank']} {c.factors['regularizers']} {c.members}": of.mean
        for c in trials.cells
        if c.factors["init"] != "xavier-1" and (of := trials.estimates.of(c, "ensemble_nll"))
    }
    ours = nll["lora 2 none 2"]
    theirs = [nll[name] for name in (kept[0], *kept[2:], "lora 2 kl-0.1 1")]
    assert [line["ensemble_nll"].value for line in block] == pytest.approx([ours - nll for nll in theirs])
    assert "LoRA ensemble of 2 (train tokens 2.00k" in table.caption
    own = replace(trials, rows=tuple(rows[name] for name in kept[:2]))
    assert against_rivals(own).blocks == ()


def test_a_single_adapter_of_as_many_parameters_may_have_its_own_learning_rate(tmp_path):
    lora, wide = Lora(rank=2, alpha=16), Lora(rank=4, alpha=32)
    axes = {"method": [lora, wide, BatchEnsemble()], "optimizer.lr": [1e-3, 5e-4], "members": [1, 2]}
    trials = load_trials(make_sweep(tmp_path, axes), "toy")
    rows = {(r["rank"], r["lr"], r["members"]): r for r in trials.rows if r["members"]}
    ours, tuned = rows[2, 1e-3, 2], rows[4, 5e-4, 1]
    kept = replace(trials, rows=(rows[2, 1e-3, 1], ours, tuned, rows[0, 1e-3, 2]))
    ((line,),) = same_parameters(kept).blocks
    assert line["ensemble_nll"].value == pytest.approx(ours["ensemble_nll"] - tuned["ensemble_nll"])
    (block,) = against_rivals(kept).blocks
    assert [line["rival"].value for line in block] == [
        "single LoRA", "single LoRA, rank 4, lr 0.0005", "BatchEnsemble of 2"
    ]  # fmt: skip
    both = replace(trials, rows=(*kept.rows, rows[4, 1e-3, 1]))
    ((line,),) = same_parameters(both).blocks
    theirs = rows[4, 1e-3, 1]["ensemble_nll"]
    assert line["ensemble_nll"].value == pytest.approx(ours["ensemble_nll"] - theirs), "first its own rate"


def test_curves_end_where_the_metrics_say(storage):
    trials = load_trials(storage, "toy")
    (panel,) = panels(trials)
    *_, coverage = risk_coverage(trials, panel).figure.axes[0].lines
    best = panel.lines["kl-0.1"][-1].rows[0]
    assert coverage.get_xydata()[-1] == pytest.approx([1, 1 - best["acc"]])
    roc = ood_roc(trials, panel, "greys").figure.axes[0].lines
    (line,) = [x for x in roc if str(x.get_label()).startswith("M=4, kl-0.1")]
    x, y = line.get_xydata().T
    assert np.trapezoid(y, x) == pytest.approx(
        best["auroc_msp__greys"]
    ) and f"{best['auroc_msp__greys']:.3f}" in str(line.get_label())


@pytest.mark.slow
def test_a_set_that_only_some_cells_predicted_is_drawn_of_those(tmp_path):
    storage = make_sweep(tmp_path, {"regularizers": [(), (KL(),)], "members": [1, 2]})
    rows = load_trials(storage, "toy").rows
    predict_later(
        storage, [r for r in rows if r["members"] and r["regularizers"] == "none"], "blues__test__aa"
    )
    predict_later(storage, [r for r in rows if r["members"] == 1], "blues__test__aa")
    found = ood.content(load_trials(storage, "toy"))
    plots = {plot.name: plot for plot in found.plots}
    _, labels = plots["ood-roc-blues"].figure.axes[0].get_legend_handles_labels()
    assert [label.partition(":")[0] for label in labels] == ["single, none", "M=2, none"]
    drawn = [axes.get_title() for axes in plots["ood-scores-blues"].figure.axes if axes.get_visible()]
    assert drawn == ["single, none", "M=2, none"]
    assert len(plots["ood-roc-greys"].figure.axes[0].get_legend_handles_labels()[1]) == 4


# The page -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_page_is_whole_and_needs_nothing_else(written):
    text = written.read_text()
    page = Page(text)
    assert page.open == []
    files = [address for address in page.addresses if not address.startswith("#")]
    assert files and all((written.parent / file).is_file() for file in files)
    assert not re.search(r"url\((?!#)|@import|<link|<img|<iframe", text)
    assert text.count("<svg") == text.count("<figure") >= 9


@pytest.mark.slow
def test_the_page_has_the_numbers_of_the_sweep(written, storage):
    trials = load_trials(storage, "toy")
    comparison_rows = Page(written.read_text()).tables[0][1:]
    nll = [trials.estimates.of(cell, "ensemble_nll").mean for cell in trials.cells]
    assert [row[4] for row in comparison_rows] == nll
    assert comparison_rows[0][:2] == ["zero-shot", None]


def test_warnings_stand_before_everything_and_provenance_is_named(written):
    text = written.read_text()
    assert 0 < text.index("members &lt;a&gt; and b are the same") < text.index("<h2")
    assert text.count(COMMAND) >= 5 and "abc123" in text


def test_every_table_and_figure_is_a_file_too(written):
    names = {path.name for path in written.parent.iterdir()}
    for table in ("table", "ensembling", "regularising", "weights", "correlations", "all-metrics"):
        assert {f"{table}.md", f"{table}.csv", f"{table}.tex"} <= names
    figures = (
        "ensemble_nll-members",
        "reliability-none",
        "risk-coverage",
        "ood-roc-greys",
        "diversity-gain",
        "cost",
    )
    assert {f"{figure}.{ending}" for figure in figures for ending in ("pdf", "svg")} <= names


@pytest.mark.slow
def test_an_incomplete_sweep_is_reported_with_what_it_lacks(tmp_path, capsys):
    storage = make_sweep(tmp_path, {"members": [1], "seed": [0, 1]}, failing=[2])
    arguments = ["report", storage, "--sweep", "toy", "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 2
    assert "lacks 1 trial" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert cli.main([*arguments, "--allow-missing"]) == 0
    text = (tmp_path / "out" / "index.html").read_text()
    assert text.index("Read this first") < text.index("NaN at step 3") < text.index("<h2")


def test_the_contents_lead_to_every_section_and_colours_follow_the_reader():
    sections = [Section("Ensemble size", "text"), Section("What OOD sets say?", "text")]
    text = page("Sweep toy", {}, [], sections)
    links = re.findall(r'<a href="#([^"]+)">', text)
    assert links == ["ensemble-size", "what-ood-sets-say"] == re.findall(r'<h2 id="([^"]+)">', text)
    assert 'type="search"' not in text, "nothing to search where there is no table"
    assert "prefers-color-scheme: dark" in text
    outside = re.sub(r":root \{.*?\}", "", text[: text.index("</style>")], flags=re.DOTALL)
    assert not re.findall(r"(?:background|color): #(?!b3261e|fff)", outside), (
        "a colour that dark mode cannot change"
    )
