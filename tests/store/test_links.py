"""Nothing in a storage is read, written, emptied or listed through a symbolic link; what killed processes
leave is swept up, and nothing of the living."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.scratch import PREFIX, scratch_folder
from lorae.store.local_files import LinkError
from lorae.store.objects import FOLDERS
from lorae.store.storage import SINGLE_DRIVER, Storage
from lorae.store.store import Store

KEPT = b"not the storage's"


@pytest.fixture
def outside(tmp_path) -> Path:
    """A folder beside the storage with one file; nothing else may ever be in it."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_bytes(KEPT)
    return folder


def untouched(outside: Path) -> bool:
    return {p.name: p.read_bytes() for p in outside.iterdir()} == {"file": KEPT}


def locked(storage: Storage, name: str) -> None:
    with storage.lock(name, wait=True):
        pass


USES: dict[str, Callable[[Storage], object]] = {
    "read": lambda s: s.read("locks/x"),
    "lock": lambda s: locked(s, "x"),
    "wait": lambda s: s.local_path("locks/x"),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("link", ["file", "folder", "dangling"])
def test_no_link_is_followed(tmp_path, outside, use, link):
    """In place of a file, or of the folder that it is in, or to what would be created."""
    storage = Storage(str(tmp_path / "storage"))
    place = tmp_path / "storage" / ("locks" if link == "folder" else "locks/x")
    place.parent.mkdir(parents=True)
    place.symlink_to({"file": outside / "file", "folder": outside, "dangling": outside / "new"}[link])
    with pytest.raises(ValueError, match="link"):
        USES[use](storage)
    assert untouched(outside)


def test_a_lock_is_not_emptied(tmp_path):
    """Not the file of another name either, of which it may be a hard link."""
    storage = Storage(str(tmp_path))
    storage.write("journal/a.json", b"{}")
    (tmp_path / "locks").mkdir()
    os.link(tmp_path / "journal/a.json", tmp_path / "locks/taking")
    with storage.lock("taking") as mine:
        assert mine
    assert storage.read("journal/a.json") == b"{}"


def test_a_file_that_is_a_link_is_replaced_and_one_behind_a_link_refused(tmp_path, outside):
    storage = Storage(str(tmp_path / "storage"))
    storage.write("a/b", b"1")
    (tmp_path / "storage/a/c").symlink_to(outside / "file")
    storage.write("a/c", b"2")
    assert storage.read("a/c") == b"2"
    (tmp_path / "storage/away").symlink_to(outside)
    for use in (
        lambda: storage.write("away/file", b"3"),
        lambda: storage.delete("away/file"),
        lambda: storage.names("away"),
        lambda: storage.details("away"),
        lambda: storage.set_aside("away/file"),
    ):
        with pytest.raises(LinkError, match="away is a symbolic link"):
            use()
    storage.set_aside("away")  # the link itself
    assert untouched(outside) and not (tmp_path / "storage/away").is_symlink()


def test_the_root_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "storage").symlink_to(tmp_path / "disk")
    storage = Storage(str(tmp_path / "storage"))
    storage.check_writable()
    storage.write("a/b", b"1")
    assert storage.names("a") == ["b"] and (tmp_path / "disk/a/b").read_bytes() == b"1"


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_storage_whose_folders_are_links_is_refused_before_training(tmp_path, outside, folder):
    (tmp_path / folder).symlink_to(outside)
    with pytest.raises(ValueError, match=rf"has links in it \({folder}\)"):
        Storage(str(tmp_path)).check_writable()
    assert untouched(outside)


def test_links_in_a_circle_are_listed_once(tmp_path):
    storage = Storage(str(tmp_path))
    storage.write("members/m/predictions/a", b"12")
    for name in ("one", "two"):
        (tmp_path / "members/m" / name).symlink_to(".")
        (tmp_path / "members/m/predictions" / name).symlink_to("..")
    assert [(name, info.size) for name, info in storage.details("members/m").items()] == [
        ("predictions/a", 2)
    ]


@pytest.mark.parametrize(
    "place", ["members/m", "members/m/weights", "members/m/DONE.json", "members/m/inner"]
)
def test_an_entry_with_a_link_is_damaged_and_set_aside(tmp_path, outside, place):
    """A stray link in a whole entry is nothing's."""
    store = Store(str(tmp_path / "storage"))
    store.write_entry("members/m", {"weights": KEPT, "inner/file": KEPT})
    assert store.damage("members/m") is None
    path = tmp_path / "storage" / place
    if place == "members/m/inner":  # and to the very bytes that it should hold
        (path / "file").unlink()
        path.rmdir()
        path.symlink_to(outside)
    elif place == "members/m":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        content = path.read_bytes()
        path.unlink()
        (tmp_path / "copy").write_bytes(content)
        path.symlink_to(tmp_path / "copy")
    assert "link" in str(store.damage("members/m", changed_only=True))
    store.set_damaged_aside(["members/m"])
    assert store.damage("members/m") is None and store.files("members/m") == set()
    store.write_entry("members/m", {"weights": b"new", "inner/file": b"new"})
    assert store.damage("members/m") is None and untouched(outside)


def test_a_stray_link_in_a_whole_entry_is_nobodys(tmp_path, outside):
    store = Store(str(tmp_path / "storage"))
    store.write_entry("members/m", {"weights": KEPT})
    (tmp_path / "storage/members/m/stray").symlink_to(outside)
    assert store.damage("members/m") is None


# What is left behind ---------------------------------------------------------------------------------------


def process(code: str) -> subprocess.Popen[str]:
    owner = subprocess.Popen(
        [sys.executable, "-c", "import time\n" + code + "\ntime.sleep(60)"], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None and owner.stdout.readline()
    return owner


@pytest.mark.process
def test_scratch_files_of_the_dead_are_swept_up_and_those_of_the_living_kept(tmp_path):
    """Also a driver's token; a hidden file of the user's stays."""
    storage = Storage(str(tmp_path))
    writing = (
        "import os; from lorae.store.storage import Storage\n"
        f"s = Storage({str(tmp_path)!r})\n"
        "def wait(fd):\n    print('writing', flush=True); time.sleep(60)\n"
        "os.fsync = wait\ns.write('checkpoints/a', b'1')"
    )
    driving = (
        f"from lorae.store.storage import Storage\ns = Storage({str(tmp_path)!r})\n"
        "s.write('locks/driver-1', b'1')\nheld = s.lock('driver-1')\nheld.__enter__()\n"
        "print('driving', flush=True)"
    )
    storage.write("checkpoints/.keep", b"")
    owners = [process(writing), process(driving)]
    try:
        storage.sweep()
        assert len(os.listdir(tmp_path / "checkpoints")) == 2 and storage.exists("locks/driver-1")
    finally:
        for owner in owners:
            owner.kill()
            owner.wait()
    storage.sweep()
    assert os.listdir(tmp_path / "checkpoints") == [".keep"] and not storage.exists("locks/driver-1")


def test_scratch_files_in_an_entry_are_swept_up_when_it_is_written(tmp_path):
    store = Store(str(tmp_path))
    for folder in ("members/m", "members/m/predictions"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / ".weights.a1b2c3d4").write_bytes(b"half")
    store.write_entry("members/m", {"predictions/a": b"1"})
    assert sorted(p.name for p in (tmp_path / "members/m").rglob("*")) == ["DONE.json", "a", "predictions"]


def test_a_write_survives_a_sweep_at_any_moment(tmp_path, monkeypatch):
    """Between the creation of the scratch file and its lock it is taken for a dead process's."""
    storage, open_, swept = Storage(str(tmp_path)), os.open, []
    storage.write("a", b"0")

    def sweeping(path, flags, *args, **kwargs):
        descriptor = open_(path, flags, *args, **kwargs)
        if flags & os.O_EXCL and len(swept) < 3:
            swept.append(path)
            storage.local.sweep("")
        return descriptor

    monkeypatch.setattr(os, "open", sweeping)
    storage.write("a", b"1")
    assert storage.read("a") == b"1" and len(swept) == 3 and os.listdir(tmp_path) == ["a"]


@pytest.mark.process
def test_temporary_folders_of_the_dead_are_deleted_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path.parent)
    owner = process(
        "from jobs.scratch import scratch_folder\nc = scratch_folder()\nprint(c.__enter__(), flush=True)"
    )
    (lived,) = (folder for folder in tmp_path.glob(f"{PREFIX}*") if not folder.is_symlink())
    with scratch_folder() as folder:
        assert lived.is_dir() and Path(folder).parent == tmp_path
    assert not Path(folder).exists()
    owner.kill()
    owner.wait()
    with scratch_folder():
        assert not lived.exists()
    assert tmp_path.parent.is_dir()


# A mount without locks -------------------------------------------------------------------------------------


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def no_locks(request, monkeypatch) -> None:
    def refuse(descriptor, operation):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_a_mount_without_locks_is_refused_unless_one_driver_is_promised(tmp_path, no_locks):
    storage = Storage(str(tmp_path))
    with pytest.raises(ValueError, match=r"cannot lock files .*--single-driver"), storage.lock("m"):
        pass
    with pytest.raises(ValueError, match=r"cannot lock files .*--single-driver"), storage.driving(False):
        pass
    assert "--single-driver" in str(storage.locking_fault())
    with storage.driving(True), Storage(str(tmp_path)).lock("m", wait=True) as mine:
        assert mine
        storage.write("a", b"1")
        with pytest.raises(ValueError, match="single-driver is of another driver"), storage.driving(True):
            pass
    with pytest.raises(ValueError, match="cannot lock files"), storage.lock("m"):
        pass


@pytest.mark.parametrize(("owner", "dead"), [({"pid": 2**22 + 1}, True), ({"place": "elsewhere 1"}, False)])
def test_a_single_driver_that_has_died_here_is_followed(tmp_path, no_locks, owner, dead):
    """Of one that ran elsewhere nobody knows."""
    storage = Storage(str(tmp_path))
    with storage.driving(True):
        left = json.loads(storage.read(SINGLE_DRIVER))
    storage.write(SINGLE_DRIVER, json.dumps(left | owner).encode())
    if dead:
        with storage.driving(True):
            assert json.loads(storage.read(SINGLE_DRIVER)) == left
        return
    with pytest.raises(ValueError, match="delete the file if it has ended"), storage.driving(True):
        pass


def test_where_files_can_be_locked_any_number_of_drivers_may_work(tmp_path):
    storage = Storage(str(tmp_path))
    assert storage.locking_fault() is None
    with storage.driving(True), storage.driving(True):
        assert not storage.exists(SINGLE_DRIVER)


def test_without_locks_a_scratch_file_is_told_by_its_age(tmp_path, no_locks):
    storage = Storage(str(tmp_path))
    for name, hours in ((".a.00000000", 1), (".b.00000000", 30)):
        storage.write(name, b"")
        then = os.stat(tmp_path / name).st_mtime - 3600 * hours
        os.utime(tmp_path / name, (then, then))
    storage.sweep()
    assert os.listdir(tmp_path) == [".a.00000000"]
