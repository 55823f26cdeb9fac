"""The table's numbers are those of a short script that reads the Parquet files and knows nothing of lorae."""

from __future__ import annotations

import ast
import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from sweeps import make_sweep

from analysis.columns import default_metrics
from analysis.data import load_trials
from analysis.render import csv_text
from analysis.resampling import resample
from analysis.table import comparison
from lorae.regularizers import KL, Masksembles

SCRIPT = Path(__file__).parent / "recompute.py"


def test_every_metric_of_a_table_is_that_of_an_independent_script(tmp_path):
    storage = make_sweep(tmp_path, {"regularizers": [(), (KL(),)], "members": [1, 4]})
    trials = load_trials(storage, "toy")
    table = csv.DictReader(io.StringIO(csv_text(comparison(trials, resample(trials, [])))))
    command = [sys.executable, "-I", str(SCRIPT), storage, "toy", "greys"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    recomputed = [json.loads(line) for line in done.stdout.splitlines()]
    lines = list(table)
    assert len(lines) == len(recomputed) == 5
    for line, found in zip(lines, recomputed):
        assert list(found) == default_metrics(trials)
        assert {name: float(line[name]) for name in found} == pytest.approx(found, abs=1e-6)


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
    assert line.startswith("error: sweep toy has a row with") and said in line


def test_the_script_is_independent():
    modules = {
        alias.name
        for node in ast.walk(ast.parse(SCRIPT.read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in (node.names if isinstance(node, ast.Import) else [ast.alias(node.module or "")])
    }
    assert {name.split(".")[0] for name in modules} == {"hashlib", "json", "sys", "numpy", "pyarrow", "scipy"}
