"""Checks that a model or data file is present and not empty, and is no Git LFS pointer."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

from lorae.untrusted import COPY, MAX_JSON_BYTES, Shape, json_object

EMPTY: Shape = MappingProxyType({})
_LFS = b"version https://git-lfs.github.com/spec/"


def check_whole(path: Path) -> None:
    """Refuse a missing or empty file, or the pointer that Git leaves if Git LFS is not installed.

    Raises:
        ValueError: names the file, and says how to get it.
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


def read_json(path: Path, shape: Shape = EMPTY) -> dict[str, Any]:
    """The object in a model's JSON file.

    Args:
        shape: see `lorae.untrusted.json_object`.
    Raises:
        ValueError: the file is missing, cut off, too large, nested too deeply, or no object of that shape.
    """
    check_whole(path)
    with path.open("rb") as stream:
        content = stream.read(MAX_JSON_BYTES + 1)
    return json_object(content, str(path), shape, COPY, infinite=True)
