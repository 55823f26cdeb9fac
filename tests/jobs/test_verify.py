"""What a sweep does beside training: it finds rot and a mount without locks, and counts what it trained."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from victims import SWEEP_FILE, contents, exit_code, lines, lorae_process, printed

from analysis.audit import audit
from jobs import doctor, driver
from jobs.cli import main
from lorae.store.storage import Storage
from lorae.store.store import Store


@pytest.fixture(scope="module")
def words(tiny_llama, data_root, tmp_path_factory) -> list[str]:
    """Of a sweep of two stacks; the storage is to be appended."""
    file = tmp_path_factory.mktemp("sweep") / "toy.py"
    file.write_text(SWEEP_FILE.format(backbone=tiny_llama.path, steps=2))
    return ["sweep", str(file), "--local", "--json", "--data-root", str(data_root), "--storage"]


@pytest.fixture(autouse=True)
def _without_mlflow(monkeypatch) -> None:
    monkeypatch.setattr(driver, "_tracked", lambda *arguments: None)


@pytest.fixture(scope="module")
def swept(words, tmp_path_factory) -> Path:
    storage = tmp_path_factory.mktemp("swept") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "_tracked", lambda *arguments: None)
        assert main([*words, str(storage)]) == 0
    return storage


def rotten(path: Path) -> None:
    """One bit flipped, at the same size and time."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.process
@pytest.mark.parametrize(
    "pattern",
    [
        "members/*/adapter_model.safetensors",
        "members/*/curve.parquet",
        "members/*/predictions/*.parquet",
        "reference/*/predictions/*.parquet",
    ],
)
def test_rot_in_what_is_stored_is_found_by_the_sweep_and_made_again(
    words, swept, tmp_path, capsys, caplog, pattern
):
    """No date shows it, so the plan does not know: nothing is to be trained."""
    storage = tmp_path / "store"
    shutil.copytree(swept, storage)
    path = min(storage.glob(pattern))
    rotten(path)
    assert [f.where for f in audit(str(storage)) if f.status == "failed"]
    assert main([*words, str(storage)]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["trained"] == pattern.startswith("members") and outcome["failed"] == {}
    name = str(path.relative_to(storage))
    assert f"{name} differs from its checksum" in caplog.text and "is set aside as" in caplog.text
    assert contents(storage).keys() == contents(swept).keys()
    assert not [f for f in audit(str(storage)) if f.status == "failed"]


@pytest.mark.slow
def test_a_rotten_member_that_another_process_works_on_is_left_to_it(words, swept, tmp_path):
    store = Store(str(shutil.copytree(swept, tmp_path / "store")))
    member = store.storage.names("members")[0]
    rotten(tmp_path / f"store/members/{member}/adapter_model.safetensors")
    with store.storage.lock(member):
        driver.set_rotten_aside(store, [f"members/{member}"])
        assert store.is_member(member)
    driver.set_rotten_aside(store, [f"members/{member}"])
    assert not store.is_member(member)


@pytest.mark.process
def test_drivers_at_once_count_the_members_that_they_had_trained(words, tmp_path):
    logs = [tmp_path / "log-1", tmp_path / "log-2"]
    drivers = [lorae_process((*words, tmp_path / "store"), log) for log in logs]
    assert [exit_code(d) for d in drivers] == [0, 0], [printed(log) for log in logs]
    counts = [int(found) for log in logs for found in re.findall(r"(\d+) members trained", printed(log))]
    assert sum(counts) == 4 and len(counts) == 2
    assert sum(len(lines(log)) for log in logs) == 4, "two stacks of two steps"


@pytest.fixture
def no_locks(monkeypatch) -> None:
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.process
def test_a_sweep_without_locks_needs_a_promise(words, swept, tmp_path, capsys, no_locks):
    assert main([*words, str(tmp_path / "store")]) == 2
    assert "cannot lock files" in capsys.readouterr().err
    assert not (tmp_path / "store/members").exists()
    assert main([*words, str(tmp_path / "store"), "--single-driver"]) == 0
    assert json.loads(capsys.readouterr().out)["trained"] == 4
    assert contents(tmp_path / "store") == contents(swept)
    assert not (tmp_path / "store/locks/single-driver").exists()


def test_the_plan_and_the_doctor_say_that_a_mount_has_no_locks(words, swept, tmp_path, capsys, no_locks):
    storage = shutil.copytree(swept, tmp_path / "store")
    assert main([*words, str(storage), "--dry-run"]) == 0
    assert "--single-driver" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--single-driver"):
        doctor._storage(str(storage))


def test_the_doctor_says_that_a_storage_can_be_locked(tmp_path):
    assert "can be written and locked, " in doctor._storage(str(tmp_path))
    assert "one sweep at a time" in doctor._storage("mock:///root")
    assert Storage(str(tmp_path)).names("locks") == ["taking"]
