"""The store: whole or not at all, checked, and never silently wrong."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from lorae.store.names import RECORD, member_folder
from lorae.store.predictions import prediction_bytes, prediction_file
from lorae.store.storage import Storage
from lorae.store.store import Store

SET = "colours__test__12345678"


def store_with_member(path: Path, member: str = "m0", **arrays) -> Store:
    store = Store(str(path))
    logits = arrays.get("logits", np.arange(12, dtype=np.float32).reshape(1, 4, 3))
    content = prediction_bytes(member, SET, ["a", "b", "c", "d"], [0, 1, 1, 0], [3, 3, 2, 3], logits)
    store.write_entry(
        member_folder(member), {"adapter_model.safetensors": b"w", prediction_file(SET): content}
    )
    return store


def test_predictions_come_back_with_missing_classes_masked(tmp_path):
    store = store_with_member(tmp_path)
    found = store.predictions([member_folder("m0")], SET)
    assert found.example_ids == ("a", "b", "c", "d")
    assert found.labels_N.tolist() == [0, 1, 1, 0]
    expected = np.arange(12, dtype=np.float32).reshape(1, 4, 3)
    expected[0, 2, 2] = -np.inf
    assert np.array_equal(found.logits_MNC, expected)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(2, 8), min_size=1, max_size=9), st.integers(1, 4), st.integers(0, 2**31))
def test_ragged_draws_survive_the_round_trip(classes, draws, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(draws, len(classes), max(classes))).astype(np.float32)
    ids = [f"e{n}" for n in range(len(classes))]
    content = prediction_bytes("m", SET, ids, [0] * len(classes), classes, logits)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        store.write_entry(member_folder("m"), {prediction_file(SET): content})
        back = store.predictions([member_folder("m")], SET).logits_MNC
    for n, count in enumerate(classes):
        assert np.array_equal(back[:, n, :count], logits[:, n, :count])
        assert np.isneginf(back[:, n, count:]).all()


def test_logits_that_are_not_finite_are_refused_by_example(tmp_path):
    logits = np.zeros((1, 4, 3), np.float32)
    logits[0, 1, 1] = np.nan
    with pytest.raises(ValueError, match="on b of"):
        store_with_member(tmp_path, logits=logits)


def test_entries_that_saw_other_examples_are_not_mixed(tmp_path):
    store = store_with_member(tmp_path)
    other = prediction_bytes(
        "m1", SET, ["a", "b", "c", "x"], [0, 1, 1, 0], [3, 3, 2, 3], np.zeros((1, 4, 3), np.float32)
    )
    store.write_entry(member_folder("m1"), {prediction_file(SET): other})
    with pytest.raises(ValueError, match="different examples"):
        store.predictions([member_folder("m0"), member_folder("m1")], SET)


def test_flipped_byte_and_missing_file_are_found(tmp_path):
    store = store_with_member(tmp_path)
    assert store.damage(member_folder("m0")) is None
    path = tmp_path / "members/m0" / prediction_file(SET)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "differs from its checksum" in str(store.damage(member_folder("m0")))
    with pytest.raises(ValueError, match="checksum"):
        store.predictions([member_folder("m0")], SET)
    path.unlink()
    assert "is missing" in str(store.damage(member_folder("m0")))


@pytest.mark.parametrize(
    ("record", "sound"),
    [
        ({"truncated_frac": 0.25}, False),
        ({"truncated_frac": 0.25, "classes": None}, False),
        ({"truncated_frac": 0.25, "classes": None, "cut": "middle"}, True),
        ({"truncated_frac": 0.0}, True),
        ({"truncated_frac": 0.25, "classes": ["a", "b"]}, True),  # an encoder's texts lose their end, as ever
    ],
)
def test_members_whose_prompts_lost_their_beginning_are_trained_again(tmp_path, record, sound):
    """Their identity is that of members whose prompts lose their middle."""
    store, folder = store_with_member(tmp_path), member_folder("m0")
    store.write_entry(folder, {RECORD: json.dumps(record).encode()})
    for changed_only in (True, False):
        found = store.damage(folder, changed_only=changed_only)
        assert found is None if sound else "prompts without their beginning" in str(found)
    store.set_damaged_aside([folder])
    assert store.is_member("m0") == sound


def test_member_without_done_does_not_exist(tmp_path):
    store = store_with_member(tmp_path)
    assert store.is_member("m0")
    (tmp_path / "members/m0/DONE.json").unlink()
    assert not store.is_member("m0") and store.files(member_folder("m0")) == set()


class Refusing:
    """A local file system that lets nobody open a file whose path ends so, the first `times` times."""

    def __init__(self, end: str, times: float) -> None:
        self.filesystem, self.end, self.times = fs.LocalFileSystem(), end, times

    def open_input_file(self, path: str) -> pa.NativeFile:
        if path.endswith(self.end) and self.times > 0:
            self.times -= 1
            raise OSError(errno.EIO, "Input/output error")
        return self.filesystem.open_input_file(path)


def test_a_storage_that_refuses_to_be_read_is_tried_again_and_never_taken_for_an_empty_one(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    store, folder = store_with_member(tmp_path), member_folder("m0")
    for end in ("DONE.json", ".parquet"):
        monkeypatch.setattr(store.storage, "filesystem", Refusing(end, times=2))
        assert store.is_member("m0") and store.damage(folder) is None
        assert store.storage.filesystem.times == 0
    monkeypatch.setattr(store.storage, "retry_seconds", 0.0)
    for end, ask in (
        ("DONE.json", lambda: store.is_member("m0")),
        ("DONE.json", lambda: store.damage(folder)),
        (".parquet", lambda: store.damage(folder)),
    ):
        monkeypatch.setattr(store.storage, "filesystem", Refusing(end, times=math.inf))
        with pytest.raises(OSError, match=rf"refused members/m0/.*{end} .*repeat the command"):
            ask()


@pytest.mark.parametrize("uri", ["mock:///root", "folder", "obstacle"])
def test_what_is_not_there_is_known_at_once(tmp_path, monkeypatch, uri):
    """No such file, no folder that it could be in, a file in place of that folder."""
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("tried again"))
    (tmp_path / "obstacle").mkdir()
    (tmp_path / "obstacle/members").write_text("")
    store = Store(uri if "://" in uri else str(tmp_path / uri))
    assert not store.is_member("m0") and store.damage(member_folder("m0")) is None
    assert store.failure("m0") is None and store.begun() == []
    with pytest.raises(FileNotFoundError):
        store.storage.read("members/m0/DONE.json")


def test_newer_schema_is_refused_by_name(tmp_path):
    store = store_with_member(tmp_path)
    done = tmp_path / "members/m0/DONE.json"
    done.write_text(json.dumps(json.loads(done.read_text()) | {"schema": 99}))
    with pytest.raises(ValueError, match="schema 99"):
        store.files(member_folder("m0"))


def test_write_that_fails_leaves_the_old_content_and_no_litter(tmp_path, monkeypatch):
    storage = Storage(str(tmp_path))
    storage.write("a/b", b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(Storage, "retry_seconds", 0.0)
    with pytest.raises(OSError, match="No space"):
        storage.write("a/b", b"new")
    assert storage.read("a/b") == b"old"
    assert os.listdir(tmp_path / "a") == ["b"]


def test_storage_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        Storage(str(tmp_path / "file")).check_writable()


def test_any_pyarrow_filesystem_serves():
    storage = Storage("mock:///root")
    storage.write("x/y", b"content")
    assert storage.read("x/y") == b"content" and storage.names("x") == ["y"] and storage.exists("x/y")
    storage.delete("x/y")
    assert not storage.exists("x/y") and storage.names("nowhere") == []


@pytest.mark.process
def test_lock_is_exclusive_and_dies_with_its_owner(tmp_path):
    storage = Storage(str(tmp_path))
    code = (
        "import sys, time; from lorae.store.storage import Storage\n"
        f"with Storage({str(tmp_path)!r}).lock('m') as mine:\n    print(mine, flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None and owner.stdout.readline() == "True\n"
    with storage.lock("m") as mine:
        assert not mine
    owner.kill()
    owner.wait()
    with storage.lock("m", wait=True) as mine:
        assert mine
