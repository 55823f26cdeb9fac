"""A storage in an object store that is busy, breaks off its answers, or garbles them: what is stored is
judged, not how it travelled."""

from __future__ import annotations

import logging
import random

import pytest
from faulty_s3 import faulty_s3, open_uploads
from victims import SWEEP_FILE, contents, lorae

from lorae.store.objects import MAX_READS, SAME_READS
from lorae.store.storage import Storage
from lorae.store.store import Store

pytest.importorskip("moto", reason="the S3 server of the dev extra")


@pytest.fixture(autouse=True)
def credentials(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)


def sound(content: bytes) -> bytes:
    """Of files that end with their own length, as text of five digits."""
    if int(content[-5:]) != len(content):
        raise ValueError("the end is missing")
    return content


def whole(size: int) -> bytes:
    return random.Random(size).randbytes(size - 5) + f"{size:05}".encode()


@pytest.mark.slow
def test_every_file_comes_back_though_the_store_is_busy_and_cuts_its_answers():
    with faulty_s3(busy_frac=0.1, cut_frac=0.2) as proxy:
        storage = Storage(proxy.uri("folder"))
        sizes = range(10, 60_000, 3_000)
        for size in sizes:
            storage.write(f"f/{size}", whole(size))
        for size in [*sizes] * 5:
            assert storage.read(f"f/{size}") == whole(size)
        assert len(storage.names("f")) == len(storage.details("f")) == len(sizes)
        assert min(proxy.counted["503"], proxy.counted["cut"]) > 10
        assert not open_uploads(proxy)


def test_content_is_refused_when_the_same_came_several_times():
    with faulty_s3() as proxy:
        storage = Storage(proxy.uri("folder"))
        storage.write("short", whole(100)[:-1])
        before = proxy.counted.total()
        with pytest.raises(ValueError, match=r"invalid literal"):
            storage.read_as("short", sound)
        assert proxy.counted.total() - before == 2 * SAME_READS  # its size, then its bytes


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"\0", b"\xff" * 70_000, b"\0" * 70_000, b"x\0\xff"])
def test_a_cut_answer_is_told_from_content_that_looks_like_one(content):
    with faulty_s3(cut_frac=0.5) as proxy:
        storage = Storage(proxy.uri("folder"))
        storage.write("file", content)
        assert [storage.read("file") for _ in range(8)] == [content] * 8


@pytest.mark.slow
def test_a_store_that_always_sends_something_else_is_no_damage():
    with faulty_s3(garbled_frac=1.0) as proxy:
        storage = Storage(proxy.uri("folder"))
        storage.write("file", b"x" * 10_000)
        with pytest.raises(OSError, match=f"other bytes of file at each of {MAX_READS} reads"):
            storage.read_as("file", lambda content: refuse())


def refuse() -> None:
    raise ValueError("not what was written")


def test_a_small_file_is_one_request_that_no_kill_leaves_half_done():
    with faulty_s3() as proxy:
        storage, before = Storage(proxy.uri("folder")), proxy.counted.total()
        storage.write("small", b"x" * 10_000)
        assert proxy.counted.total() == before + 1


@pytest.mark.process
@pytest.mark.slow
def test_a_sweep_through_faults_stores_what_a_folder_would(tiny_llama, data_root, tmp_path):
    """The same bytes; and a second sweep finds every member sound and trains none."""
    file = tmp_path / "through.py"
    file.write_text(SWEEP_FILE.format(backbone=tiny_llama.path, steps=8))
    lorae(
        "sweep", file, "--local", "--storage", tmp_path / "folder", data_root=data_root, num_threads=1
    ).finished(0)
    with faulty_s3(busy_frac=0.1, cut_frac=0.1) as proxy:
        words = ("sweep", file, "--local", "--json", "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db")
        trained = []
        for _ in range(2):
            command = lorae(*words, "--storage", proxy.uri("sweep"), data_root=data_root, num_threads=1)
            outcome, messages = command.finished(0)
            assert "damaged" not in messages
            trained.append(outcome["trained"])
        assert trained == [4, 0] and min(proxy.counted["503"], proxy.counted["cut"]) > 3
        assert not open_uploads(proxy)
        proxy.busy_frac = proxy.cut_frac = 0.0
        store, wanted = Store(proxy.uri("sweep")), contents(tmp_path / "folder")
        assert {name: store.storage.read(name) for name in wanted} == wanted
        assert all(store.damage(f"members/{m}") is None for m in store.storage.names("members"))
