"""Temporary folders that are deleted even if their process is killed: by the next process that needs one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "lorae-scratch-"


@contextlib.contextmanager
def scratch_folder() -> Iterator[str]:
    """A temporary folder that is locked while this process lives; folders of dead processes are deleted."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        _delete_abandoned(left)
    folder, descriptor = _locked_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _locked_folder() -> tuple[str, int]:
    while True:
        folder = tempfile.mkdtemp(prefix=PREFIX)
        with contextlib.suppress(FileNotFoundError):  # deleted as abandoned before it was locked
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            if _lock(descriptor) and os.path.isdir(folder):
                return folder, descriptor
            os.close(descriptor)


def _delete_abandoned(folder: Path) -> None:
    """Delete a folder of this user that no living process has locked."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # another user's, or gone
        return
    try:
        if os.fstat(descriptor).st_uid == os.geteuid() and _lock(descriptor):
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
