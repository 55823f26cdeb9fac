"""Figures show the stored numbers, and `python -m analysis.demo` writes all of them, without torch."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sweeps import COMMAND, make_sweep

from analysis import demo
from analysis.data import load_trials
from analysis.figures import metric_against_members, reliability_diagram, standard_figures
from analysis.plotting import MAX_LINES, panels, svg
from lorae.methods import BatchEnsemble, Lora
from lorae.metrics import combine, ensemble_nll
from lorae.regularizers import KL

ONE_SEED = {"regularizers": [(), (KL(),)], "members": [1, 2, 4]}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_sweep(tmp_path_factory.mktemp("one"), ONE_SEED)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_sweep(tmp_path_factory.mktemp("seeds"), ONE_SEED | {"seed": [0, 1, 2]})


def drawn(plot) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Label -> (value, bar) of the error bars of a figure's first plot."""
    lines = {}
    for container in plot.figure.axes[0].containers:
        segments = container.lines[2][0].get_segments()
        bars = [np.ptp(s[:, 1]) / 2 if len(s) else np.nan for s in segments]
        lines[container.get_label()] = container.lines[0].get_ydata(), np.array(bars)
    return lines


@pytest.mark.slow
def test_one_seed_shows_the_spread_over_subsets_of_the_pool(storage):
    trials = load_trials(storage, "toy")
    (panel,) = panels(trials)
    lines = drawn(metric_against_members(trials, panel, "ensemble_nll"))
    assert list(lines) == ["none", "kl-0.1"]
    pool = trials.predictions(panel.lines["none"][-1].rows[0])
    expected = []
    for members in (1, 2, 4):
        chosen = [pool.logits_MNC[list(subset)] for subset in itertools.combinations(range(4), members)]
        expected.append([ensemble_nll(combine(logits_MNC), pool.labels_N) for logits_MNC in chosen])
    value, bar = lines["none"]
    assert value == pytest.approx([np.mean(values) for values in expected])
    assert bar[0] == pytest.approx(np.std(expected[0], ddof=1) / 2), "of four singles"
    assert value[-1] == pytest.approx(panel.lines["none"][-1].rows[0]["ensemble_nll"])


@pytest.mark.slow
def test_several_seeds_show_their_mean_and_standard_error(seeds):
    trials = load_trials(seeds, "toy")
    (panel,) = panels(trials)
    value, bar = drawn(metric_against_members(trials, panel, "debiased_ce15"))["kl-0.1"]
    found = [trials.estimates.of(cell, "debiased_ce15") for cell in panel.lines["kl-0.1"]]
    assert value == pytest.approx([f.mean for f in found if f])
    assert bar == pytest.approx([f.stderr for f in found if f])


def test_a_reliability_diagram_counts_every_example(storage):
    trials = load_trials(storage, "toy")
    (panel,) = panels(trials)
    plot = reliability_diagram(trials, panel, "none")
    above, below = plot.figure.axes[:3], plot.figure.axes[3:]
    assert [axes.get_title().split("\n")[0] for axes in above] == ["zero-shot", "single LoRA", "LoRA x 4"]
    assert [sum(bar.get_height() for bar in axes.patches) for axes in below] == [90, 90, 90]


@pytest.mark.slow
def test_more_lines_than_fit_become_more_figures(tmp_path):
    axes = {"regularizers": [(), (KL(),)], "method.rank": [1, 2, 3, 4], "members": [1, 2]}
    trials = load_trials(make_sweep(tmp_path, axes), "toy")
    found = panels(trials)
    assert [p.label for p in found] == ["rank 1", "rank 2", "rank 3", "rank 4"]
    assert all(len(p.lines) == 2 <= MAX_LINES and p.zero_shot for p in found)
    names = [plot.name for plot in standard_figures(trials)]
    assert len(names) == len(set(names)) == 4 * (2 + 2) and "debiased_ce15-members-rank-3" in names


def test_a_line_is_named_by_what_tells_it_apart(tmp_path):
    axes = {"method": [Lora(), BatchEnsemble()], "regularizers": [(), (KL(),)], "members": [1, 2]}
    (panel,) = panels(load_trials(make_sweep(tmp_path, axes), "toy"))
    assert list(panel.lines) == ["LoRA, none", "LoRA, kl-0.1", "BatchEnsemble, none", "BatchEnsemble, kl-0.1"]


@pytest.mark.slow
def test_the_same_figure_is_the_same_file(storage):
    trials = load_trials(storage, "toy")
    once, again = (svg(standard_figures(trials)[0]) for _ in range(2))
    assert once == again and once.startswith("<?xml")


# The command ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_prints_the_table_and_writes_everything(storage, tmp_path, capsys):
    assert demo.main([storage, "--sweep", "toy", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "zero-shot" in printed and "LoRA ensemble of 4" in printed
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {
        "table.md",
        "table.csv",
        "table.tex",
        "ensemble_nll-members.pdf",
        "debiased_ce15-members.svg",
    } <= names
    assert {"reliability-none.pdf", "reliability-kl-0.1.svg"} <= names
    assert (tmp_path / "out" / "table.md").read_text().strip() in printed


def test_a_wrong_path_is_one_clear_error(storage, tmp_path, capsys):
    (tmp_path / "file").write_text("not a storage")
    for place in (str(tmp_path / "nowhere"), str(tmp_path / "file"), storage):
        assert demo.main([place]) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ") and "demo" in message and "Traceback" not in message


@pytest.mark.slow
def test_missing_trials_are_refused_or_named(tmp_path, capsys):
    storage = make_sweep(tmp_path, {"members": [1, 2]}, failing=[2])
    assert demo.main([storage, "--sweep", "toy"]) == 2
    assert COMMAND in capsys.readouterr().err
    make_sweep(tmp_path / "more", {"members": [1], "seed": [0, 1]}, failing=[2])
    arguments = [str(tmp_path / "more" / "results"), "--sweep", "toy", "--allow-missing"]
    assert demo.main(arguments) == 0
    printed = capsys.readouterr()
    assert "seed=1" in printed.err and COMMAND in printed.err and "missing: " in printed.out
    assert (tmp_path / "more" / "results" / "report" / "toy" / "table.csv").is_file()


@pytest.mark.process
def test_the_analysis_loads_no_model_library(storage, tmp_path):
    script = (
        "import sys; from analysis import demo; code = demo.main(sys.argv[1:]);"
        "heavy = {'torch', 'ray', 'transformers', 'datasets', 'mlflow'};"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    command = [sys.executable, "-c", script, storage, "--sweep", "toy", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(demo.__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.strip().endswith("[]"), done.stderr
