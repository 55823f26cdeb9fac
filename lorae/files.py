"""Files of models and data that are what their names say: there, whole, and no pointer to something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_LFS = b"version https://git-lfs.github.com/spec/"


def check_whole(path: Path) -> None:
    """Refuse a file that is missing or empty, or the pointer that Git leaves where Git LFS is not installed.

    Raises:
        ValueError: the file, and how to get it.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing; copy it there")
    with path.open("rb") as stream:
        start = stream.read(len(_LFS))
    if not start:
        raise ValueError(f"{path} is empty; copy the file again")
    if start == _LFS:
        raise ValueError(
            f"{path} is a pointer of Git LFS, not the file itself; fetch that with `git lfs pull`, or the "
            "repository with `hf download`"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: it is missing, cut off, or no such object.
    """
    check_whole(path)
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); copy the file again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, must be an object; copy the file again")
    return content
