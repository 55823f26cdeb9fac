"""The folder on this machine in which what is fetched or made once is kept."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


def cache_dir() -> Path:
    """Per-user folder for fetched and converted files: $LORAE_CACHE, or ~/.cache/lorae."""
    base = os.environ.get("LORAE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "lorae"
    return Path(base).expanduser()


@contextlib.contextmanager
def alone(target: Path) -> Iterator[None]:
    """Wait for the process that makes `target` now: stacks that start together on one node all want it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f".{target.name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """A backbone's folder in the cache, made on first use; other processes wait for it."""
    folder = cache_dir() / "backbones" / name
    if (folder / "config.json").is_file():
        return folder
    with alone(folder):
        if not (folder / "config.json").is_file():
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                make(Path(scratch) / "out")
                (Path(scratch) / "out").rename(folder)
    return folder


def file_sha256(path: Path) -> str:
    """SHA-256 of a file; remembered per user for files that have kept their size and the time of their last
    change, which no copying tool sets back."""
    stat = path.stat()
    state = f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}"
    key = hashlib.sha256(state.encode()).hexdigest()[:32]
    remembered = cache_dir() / "digests" / key
    if remembered.is_file():
        return remembered.read_text()
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if stat.st_size > 2**20:
        remembered.parent.mkdir(parents=True, exist_ok=True)
        scratch = remembered.with_suffix(f".{os.getpid()}")
        scratch.write_text(found)
        scratch.replace(remembered)
    return found
