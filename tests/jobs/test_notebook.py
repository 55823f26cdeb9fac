"""`import lorae`, `lorae.load` and `lorae.sweep`, as notebooks and scripts use them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sweeps import make_sweep
from toys import Colours

import lorae
from analysis.glossary import meaning
from analysis.notebook import HIDDEN
from jobs import driver
from lorae.regularizers import DecayB
from lorae.results import trial_schema
from lorae.trial import AdamW, Budget, Sweep, Trial

AXES = {"regularizers": [(), (DecayB(strength=0.1),)], "members": [1, 2], "seed": [0, 1]}


@pytest.fixture(scope="module")
def storage(tmp_path_factory) -> str:
    return make_sweep(tmp_path_factory.mktemp("sweep"), AXES)


def test_the_door_has_every_name_that_it_lists_and_no_other():
    for name in lorae.__all__:
        assert getattr(lorae, name).__name__ == name
    assert lorae.Trial is Trial and set(lorae.__all__) <= set(dir(lorae))
    with pytest.raises(AttributeError, match="no attribute 'Tral'"):
        _ = lorae.Tral


@pytest.mark.process
def test_the_door_loads_nothing_but_itself():
    code = "import sys, lorae; print('numpy' in sys.modules, sum(m.startswith('lorae') for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "1"], done.stderr


@pytest.mark.slow
def test_a_loaded_sweep_has_rows_tables_and_figures(storage):
    results = lorae.load(storage)
    frame = results.frame()
    assert len(frame) == len(results.trials.rows) == 9 and not set(HIDDEN) & set(frame)
    assert set(frame["members"]) == {0, 1, 2} and frame.attrs["sweep"] == "toy"
    table = results.table()
    assert str(table).startswith("| model") and "LoRA ensemble of 2" in str(table)
    shown = table._repr_html_()
    assert shown.count("<tr>") == 1 + 5 and "LoRA ensemble of 2" in shown
    few = results.table(["acc"])
    assert "accuracy" in str(few) and "NLL ↓" not in str(few)
    figures = results.figures()
    assert figures and figures._repr_html_().count("<svg") == len(figures)
    assert figures[0]._repr_html_().count("<svg") == 1
    assert "toy" in results._repr_html_()


def test_every_column_of_a_frame_is_explained(storage):
    glossary = lorae.load(storage).glossary
    assert set(lorae.load(storage).frame()) <= set(glossary.index)
    assert not [name for name, row in glossary.iterrows() if len(row["meaning"]) < 8]
    assert glossary.loc["ensemble_nll", "better"] == "lower" and glossary.loc["acc", "better"] == "higher"
    assert "OOD set: greys" in glossary.loc["auroc_msp__greys", "meaning"]
    for name in trial_schema(["greys"]).names:
        assert name in HIDDEN or meaning(name), name


def test_which_sweep_is_meant_must_be_clear(storage, tmp_path):
    with pytest.raises(ValueError, match="has no sweep; run one first"):
        lorae.load(str(tmp_path))
    with pytest.raises(ValueError, match="the storage has the sweeps: toy"):
        lorae.load(storage, "other")


@pytest.fixture
def sweep(tiny_llama, data_root) -> Sweep:
    base = Trial(
        backbone=tiny_llama,
        task=Colours().located(data_root),
        optimizer=AdamW(lr=1e-2),
        budget=Budget(batch_size=4, steps=2),
        precision="fp32",
    )
    return Sweep(base=base, axes={"members": [1, 2]})


@pytest.mark.slow
def test_a_sweep_from_python_is_the_commands(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(driver, "_tracked", lambda *arguments: None)
    results = lorae.sweep(sweep, str(tmp_path), name="mine", local=True)
    frame = results.frame()
    assert list(frame["members"]) == [0, 1, 2] and set(frame["status"]) == {"done"}
    assert "0 stored, 2 to train" in capsys.readouterr().err
    again = lorae.sweep(sweep, str(tmp_path), name="mine", local=True)
    assert "0 members trained" in capsys.readouterr().err
    assert list(again.frame()["ensemble_nll"]) == list(frame["ensemble_nll"])
    found = results.ensemble().predict(["w1 w2", "w5"])
    assert len(found) == 2
    assert "lorae.sweep(SWEEP" in results.trials.rows[0]["provenance"]


def test_a_sweep_from_python_refuses_what_the_command_does(sweep, tmp_path):
    with pytest.raises(ValueError, match="overrides="):
        lorae.sweep(sweep, str(tmp_path), overrides=["members=3"], local=True)
    with pytest.raises(ValueError, match=r"nowhere\.py is no file"):
        lorae.sweep(Path("nowhere.py"), str(tmp_path))
