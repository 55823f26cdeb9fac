"""Images and sounds of a large dataset stay on disk: its rows hold where their bytes are, in one file of the
cache for each file of the dataset, and a batch reads what it needs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import IO, TYPE_CHECKING, Any

from lorae.cache import alone, cache_dir
from lorae.media import Part

if TYPE_CHECKING:
    import pyarrow as pa

HELD_BYTES = 2**27  # of a split's files; more are not held in memory
BATCH_ROWS = 32  # read at once


def are_large(num_bytes: Iterable[int]) -> bool:
    """Whether files of these sizes are too large for their rows to be held in memory."""
    return sum(num_bytes) > HELD_BYTES


def lean_rows(batches: Iterable[pa.RecordBatch | pa.Table], name: str) -> list[dict[str, Any]]:
    """Rows whose bytes are `Part`s of a file in the cache, which is written on first use.

    Args:
        name: of that file; equal for equal batches alone.
    """
    target = cache_dir() / "media" / name
    with alone(target):
        scratch = target.with_name(f"{name}.{os.getpid()}")
        try:
            with open(os.devnull if target.is_file() else scratch, "wb") as out:
                rows = _moved(batches, out, str(target))
            if scratch.is_file():
                scratch.replace(target)
        finally:
            scratch.unlink(missing_ok=True)
    return rows


def _moved(batches: Iterable[Any], out: IO[bytes], file: str) -> list[dict[str, Any]]:
    """The rows, with every cell's bytes written to `out` and replaced by their place in `file`."""
    rows, start = [], 0

    def move(data: bytes) -> Part:
        nonlocal start
        out.write(data)
        start += len(data)
        return Part(file, start - len(data), len(data))

    for batch in batches:
        for row in batch.to_pylist():
            for column, cell in row.items():
                if isinstance(cell, bytes):
                    row[column] = move(cell)
                elif isinstance(cell, dict) and isinstance(cell.get("bytes"), bytes):
                    row[column] = cell | {"bytes": move(cell["bytes"])}
            rows.append(row)
    return rows
