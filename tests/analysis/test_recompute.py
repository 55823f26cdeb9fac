"""A sweep's numbers are those of a short script that reads the Parquet files and knows nothing of lorae."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from sweeps import make_sweep

from analysis.archive import pack
from analysis.data import load_trials
from lorae.regularizers import KL, Masksembles

SCRIPT = Path(__file__).parents[2] / "analysis" / "recompute.py"


@pytest.mark.process
def test_every_metric_of_a_row_is_that_of_an_independent_script(tmp_path):
    storage = make_sweep(tmp_path, {"regularizers": [(), (KL(),)], "members": [1, 2, 4]})
    command = [sys.executable, "-I", str(SCRIPT), storage, "toy", "greys"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    recomputed = [json.loads(line) for line in done.stdout.splitlines()]
    trials = load_trials(storage, "toy")
    assert len(trials.rows) == len(recomputed) == 7
    for row, found in zip(trials.rows, recomputed):
        over_subsets = found.pop("pool")
        (cell,) = (cell for cell in trials.cells if row in cell.rows)
        of_table = {name: trials.estimates.of(cell, name) for name in over_subsets}
        assert over_subsets == pytest.approx({name: of.mean for name, of in of_table.items() if of}, abs=1e-7)
        wanted = ["acc", "ensemble_nll", "ece15", "brier", "auroc_msp__greys", "ts_ensemble_nll", "ts_ece15"]
        wanted += ["debiased_ce15", "members_ts_ensemble_nll", "members_ts_ece15"]
        assert found == pytest.approx({name: row[name] for name in wanted if row[name] is not None}, abs=1e-6)
    flagged = [row["members"] for row in trials.rows if row["temperature_flag"]]
    assert flagged == [0], "the untouched backbone guesses, and any temperature is as good"


@pytest.mark.process
def test_an_archive_gives_the_numbers_of_its_storage(tmp_path):
    storage, archive = make_sweep(tmp_path, {"members": [1, 2, 3]}), tmp_path / "archive"
    pack(storage, ["toy"], archive)
    found = [
        subprocess.run(
            [sys.executable, "-I", str(SCRIPT), place, "toy", "greys"], capture_output=True, check=True
        )
        for place in (storage, str(archive))
    ]
    assert found[0].stdout == found[1].stdout and found[0].stdout.count(b"\n") == 4


@pytest.mark.process
@pytest.mark.parametrize(
    "axes, said",
    [
        ({"combine": ["probs", "logits"]}, "combine='logits' and draws none"),
        ({"regularizers": [(Masksembles(2, 1.5),)]}, "combine='probs' and draws masks-2x1.5"),
    ],
)
def test_rows_that_the_script_does_not_recompute_are_refused(tmp_path, axes, said):
    storage = make_sweep(tmp_path, axes | {"members": [2]})
    command = [sys.executable, "-I", str(SCRIPT), storage, "toy", "greys"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: toy has a row with") and said in line


def test_the_script_is_independent():
    modules = {
        alias.name
        for node in ast.walk(ast.parse(SCRIPT.read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in (node.names if isinstance(node, ast.Import) else [ast.alias(node.module or "")])
    }
    assert {name.split(".")[0] for name in modules} == {
        *("glob", "hashlib", "itertools", "json", "sys", "typing"),
        *("numpy", "pyarrow", "scipy"),
    }
