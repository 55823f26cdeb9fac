"""Ray's processes and folders."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from victims import (
    PYTHON_PATH,
    STEP_SECONDS,
)


@pytest.fixture(autouse=True)
def ray_folder(monkeypatch) -> Iterator[Path]:
    """A short path, since Ray puts sockets below it; and steps so long that both stacks train at once."""
    folder = tempfile.mkdtemp(prefix="f", dir="/tmp")
    monkeypatch.setenv("RAY_TMPDIR", folder)
    monkeypatch.setenv(STEP_SECONDS, "0.25")
    monkeypatch.setenv("PYTHONPATH", PYTHON_PATH)  # the workers unpickle the toy task
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


def descendants(pid: int | None) -> list[psutil.Process]:
    """All that a process has started; to be asked while it lives."""
    return psutil.Process(pid).children(recursive=True)
