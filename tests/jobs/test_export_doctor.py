"""`lorae export` and `lorae doctor`."""

from __future__ import annotations

import pytest
import torch

from jobs import doctor
from jobs.cli import main
from lorae.engine.run import run_stack
from lorae.planning.estimate import Devices
from lorae.planning.stack import Stack
from lorae.store.names import WEIGHTS, member_folder

pytestmark = pytest.mark.ray


def test_export_writes_the_stored_adapter_by_the_beginning_of_its_id(tiny_trial, tmp_path, capsys):
    trial, storage = tiny_trial(members=2), tmp_path / "results"
    run_stack(Stack(trial, (0, 1)), str(storage))
    member = trial.member_id(1)
    assert main(["export", str(storage), member[:6], str(tmp_path / "out")]) == 0
    stored = (storage / member_folder(member) / WEIGHTS).read_bytes()
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == stored
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["adapter_config.json", WEIGHTS]
    assert main(["export", str(storage), "", str(tmp_path / "new")]) == 2
    assert "is the beginning of 2 members" in capsys.readouterr().err
    assert main(["export", str(storage), member, str(tmp_path / "out")]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_doctor_names_what_is_broken_and_goes_on(tmp_path, capsys, monkeypatch):
    (tmp_path / "taken").write_text("")
    for slow in ("_ray", "_embedded", "_hub", "_bf16"):
        monkeypatch.setattr(doctor, slow, lambda: "left out of this test")
    assert doctor.run_doctor(str(tmp_path / "taken"), str(tmp_path)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("FAIL")] == [
        "FAIL  storage",
        "FAIL  data root",
    ]
    assert lines[-1].startswith("ok    model hub")


def test_doctor_finds_nothing_wrong_where_nothing_is(tmp_path, data_root, capsys, monkeypatch):
    for slow in ("_ray", "_embedded", "_hub", "_bf16"):
        monkeypatch.setattr(doctor, slow, lambda: "left out of this test")
    assert doctor.run_doctor(str(tmp_path / "new"), str(data_root)) == 0
    assert "colours, greys" in capsys.readouterr().out


def test_doctor_says_that_torch_cannot_use_the_gpus(monkeypatch):
    monkeypatch.setattr(doctor, "local_devices", lambda: Devices("cuda", 2, 4, 2**34))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"2 GPUs, which torch .* cannot use"):
        doctor._devices()


@pytest.mark.process
@pytest.mark.slow
def test_ray_answers():
    assert "answers" in doctor._ray()
