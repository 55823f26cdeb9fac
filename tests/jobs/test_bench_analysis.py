"""The benchmark compares equal numbers on a real storage, and memory does not grow with the trials."""

from __future__ import annotations

import os
import tracemalloc
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest

from analysis.data import load_trials
from jobs import cli
from jobs.bench import analysis
from jobs.bench.apart import Rounds, apart, forget_peak, peak_bytes
from jobs.bench.synthetic import synthetic_storage
from lorae.results import trials_table
from lorae.store.store import Store


def test_both_sides_compute_the_same_numbers():
    rng = np.random.default_rng(0)
    labels_N = rng.integers(0, 5, 400)
    logits_MNC, ood_MNC = rng.normal(size=(2, 3, 400, 5)).astype(np.float32)
    logits_MNC += 2 * np.eye(5, dtype=np.float32)[labels_N]
    ours = analysis.by_lorae(logits_MNC, labels_N, ood_MNC)
    assert analysis.by_torchmetrics(logits_MNC, labels_N, ood_MNC) == pytest.approx(ours, abs=1e-6)
    assert len(ours) == 5 and ours["acc"] > 0.7 and ours["auroc_msp"] > 0.6


@pytest.mark.slow
def test_the_synthetic_storage_is_one_of_a_sweep(tmp_path):
    storage = str(tmp_path)
    trials = synthetic_storage(storage, {"optimizer.lr": [1e-4, 1e-3], "members": [1, 4]}, 200)
    analysis.tabulate(storage, trials)
    found = load_trials(storage, "bench")
    assert [row["members"] for row in found.rows] == [0, 1, 4, 1, 4]
    assert found.rows[2]["ensemble_nll"] < found.rows[1]["ensemble_nll"]
    assert found.rows[2]["train_tokens"] == 4000
    analysis.render(storage, 12)
    analysis.compare(storage, 4)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_trials(tmp_path, monkeypatch):
    monkeypatch.setattr("lorae.store.ahead.MAX_AHEAD_BYTES", 1)  # else more is read ahead
    trials = synthetic_storage(str(tmp_path), {"optimizer.lr": [1e-5 * n for n in range(1, 13)]}, 2000)
    peaks = []
    for num in (3, 12):
        tracemalloc.start()
        trials_table(Store(str(tmp_path)), "bench", trials[1 : num + 1], {})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def ones(count: int) -> float:
    return np.ones(count).sum()


@pytest.mark.process
def test_apart_measures_the_memory_of_the_function_alone():
    held = np.ones(40_000_000)  # 320 MB of this process
    few, many = apart(ones, 10), apart(ones, 20_000_000)
    assert (few.result, many.result) == (10, 20_000_000)
    assert 150e6 < many.peak_bytes - few.peak_bytes < 170e6
    assert few.peak_bytes < held.nbytes


def peaks() -> tuple[int, int]:
    held = np.ones(20_000_000)
    high = peak_bytes()
    del held
    forget_peak()
    return high, peak_bytes()


@pytest.mark.process
def test_a_peak_can_be_forgotten():
    high, after = apart(peaks).result
    assert high - after > 150e6


def count(first: int):
    while True:
        yield first, os.environ["COUNTED"], os.getpid()
        first += 1


@pytest.mark.process
def test_rounds_are_of_one_process_with_its_own_environment():
    with Rounds(count, 5, environment={"COUNTED": "yes"}) as process:
        process.wait()
        first, second = next(process), next(process)
        assert first == (5, "yes", second[2]) and second[0] == 6 and first[2] != os.getpid()
        assert process.call(peak_bytes) > 1e6
    assert "COUNTED" not in os.environ


@pytest.mark.process
def test_what_a_side_fails_with_is_raised_where_it_is_waited_for():
    with Rounds(count, 5) as process, pytest.raises(KeyError, match="COUNTED"):
        process.wait()


def test_without_torchmetrics_the_command_says_how_to_get_it(monkeypatch, capsys):
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(analysis, "version", missing)
    assert cli.main(["bench", "analysis"]) == 2
    assert "torchmetrics" in capsys.readouterr().err
