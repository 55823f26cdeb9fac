"""Near and far OOD sets: means of the AUROCs of each kind, for the tasks that have kinds."""

from __future__ import annotations

import pytest
from sweeps import make_sweep, predict_later

from analysis import ood
from analysis.data import load_trials


def test_aurocs_are_averaged_over_near_and_over_far_sets(tmp_path, monkeypatch):
    storage = make_sweep(tmp_path, {"members": [1]})
    trials = load_trials(storage, "toy")
    for name in ("dusk__test__00000000", "dawn__test__00000001"):
        predict_later(storage, trials.rows, name)
    trials = load_trials(storage, "toy").with_stored_ood()
    assert ood.by_distance(trials).blocks == (), "no kinds are known of the toy task's"
    monkeypatch.setitem(ood.DISTANCES, "colours", {"greys": "near", "dusk": "far", "dawn": "far"})
    (lines,) = ood.by_distance(trials).blocks
    for line, cell in zip(lines, trials.cells, strict=True):
        of = {task: trials.estimates.of(cell, f"auroc_msp__{task}") for task in ("greys", "dusk", "dawn")}
        assert line["auroc_msp near"].value == pytest.approx(of["greys"].mean)
        assert line["auroc_msp far"].value == pytest.approx((of["dusk"].mean + of["dawn"].mean) / 2)
        assert line["near sets"].value == "greys" and set(line["far sets"].value.split(", ")) == {
            "dusk",
            "dawn",
        }
