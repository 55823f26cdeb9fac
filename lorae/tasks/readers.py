"""Rows of a dataset's files: Parquet, Arrow, CSV, TSV, JSON and JSON Lines, the last four also compressed.

Cells of CSV and TSV are always text: no type is guessed, so an empty cell is "" and 007 stays 007. The other
formats have types. A file that is itself an image or a sound is one row.
"""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from lorae.cache import file_sha256
from lorae.tasks.media_files import BATCH_ROWS, lean_rows

COMPRESSED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
BROKEN = (
    OSError,
    EOFError,
    ValueError,
    RecursionError,  # JSON nested too deeply
    csv.Error,
    zlib.error,
    lzma.LZMAError,
)  # ArrowInvalid is a ValueError
LFS = b"version https://git-lfs.github.com/"  # first bytes of a Git LFS pointer


class Malformed(ValueError):
    """A line or row of a file is wrong; the file is not cut off."""


class FileRow(dict[str, Any]):
    """A row that knows where it was read.

    Attributes:
        file: path of the file.
        unit, number: "line" counted from 1, or "row" counted from 0.
    """

    __slots__ = ("file", "number", "unit")

    def __init__(self, cells: Any, file: str, unit: str, number: int) -> None:
        super().__init__(cells)
        self.file, self.unit, self.number = file, unit, number

    def __reduce__(self) -> tuple[Any, ...]:
        return FileRow, (dict(self), self.file, self.unit, self.number)

    @property
    def place(self) -> str:
        return f"{self.unit} {self.number} of {self.file}"


def file_format(name: str) -> str:
    """Suffix that decides how a file is read: ".csv" for "train.csv.gz".

    Raises:
        ValueError: not one of the supported formats.
    """
    path = Path(name.lower())
    suffix = Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix
    if suffix not in (READERS if suffix == path.suffix else TEXT):
        raise ValueError(
            f"{name} has a format that is not read; lorae reads {', '.join(READERS)}, the texts among them "
            f"({', '.join(TEXT)}) also as {', '.join(COMPRESSED)}; convert it to one of these"
        )
    return suffix


def file_rows(path: Path, lean: bool = False) -> list[FileRow]:
    """Rows of one file.

    Args:
        lean: leave bytes of Parquet and Arrow on disk, see `lorae.tasks.media_files`.
    Raises:
        ValueError: another format, or a damaged file; names the line of a text file if possible.
    """
    kind = file_format(path.name)
    read = BATCHES[kind] if lean and kind in BATCHES else READERS[kind]
    try:
        return list(read(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error.reason}); save it as UTF-8") from error
    except Malformed as error:
        raise ValueError(f"{path} {error}; correct it there") from error
    except BROKEN as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> ValueError:
    """The error to raise for a file that cannot be read."""
    with contextlib.suppress(OSError), path.open("rb") as stream:
        if stream.read(len(LFS)) == LFS:
            return ValueError(f"{path} is a pointer of Git LFS, not the file; fetch it with `git lfs pull`")
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ValueError(f"{path} is damaged or cut off ({reason}); copy the file again")


def _lean_parquet_rows(path: Path) -> Iterator[FileRow]:
    from pyarrow.parquet import ParquetFile

    with _arrow_errors(path), ParquetFile(path) as table:
        groups = map(table.read_row_group, range(table.num_row_groups))  # `iter_batches` holds them all
        rows = lean_rows((b for g in groups for b in g.to_batches(BATCH_ROWS)), file_sha256(path)[:32])
    yield from _numbered(path, rows)


def _lean_arrow_rows(path: Path) -> Iterator[FileRow]:
    import pyarrow as pa

    with _arrow_errors(path), pa.memory_map(str(path)) as stream:
        opened = _opened_arrow(stream)
        batches = opened if isinstance(opened, pa.RecordBatchStreamReader) else _of_file(opened)
        parts = (b.slice(n, BATCH_ROWS) for b in batches for n in range(0, b.num_rows, BATCH_ROWS))
        rows = lean_rows(parts, file_sha256(path)[:32])
    yield from _numbered(path, rows)


def _of_file(opened: Any) -> Iterator[Any]:
    return (opened.get_batch(n) for n in range(opened.num_record_batches))


def _parquet_rows(path: Path) -> Iterator[FileRow]:
    from pyarrow.parquet import ParquetFile

    with _arrow_errors(path), ParquetFile(path) as table:
        rows = table.read().to_pylist()
    yield from _numbered(path, rows)


def _arrow_rows(path: Path) -> Iterator[FileRow]:
    """Reads Arrow's streaming format, which `Dataset.save_to_disk` writes, and its file format."""
    import pyarrow as pa

    with _arrow_errors(path), pa.OSFile(str(path)) as stream:
        rows = _opened_arrow(stream).read_all().to_pylist()
    yield from _numbered(path, rows)


def _opened_arrow(stream: Any) -> Any:
    """A reader of Arrow's file format, or of its streaming format."""
    import pyarrow as pa

    beginning = stream.read(6)
    stream.seek(0)
    return pa.ipc.open_file(stream) if beginning == b"ARROW1" else pa.ipc.open_stream(stream)


@contextlib.contextmanager
def _arrow_errors(path: Path) -> Iterator[None]:
    """Convert Arrow's errors: not all of them are a ValueError or OSError."""
    import pyarrow as pa

    try:
        yield
    except pa.ArrowException as error:
        raise damaged(path, error) from error


def _csv_rows(path: Path) -> Iterator[FileRow]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a text may be longer than the default of 128 KiB
    delimiter = "\t" if file_format(path.name) == ".tsv" else ","
    with _opened(path, newline="") as stream:
        # Strict: otherwise an unclosed quotation mark swallows all rows after it
        records = csv.reader(stream, delimiter=delimiter, strict=True)
        try:
            yield from _records(path, records)
        except csv.Error as error:
            raise Malformed(f"line {records.line_num}: {error}") from error


def _records(path: Path, records: Any) -> Iterator[FileRow]:
    header = next(records, [])
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise Malformed(f"has two columns of the name {repeated[0]!r}")
    start = records.line_num + 1
    for cells in records:
        if cells and len(cells) != len(header):
            raise Malformed(f"line {start} has {len(cells)} cells, the header {len(header)}")
        if cells:
            yield FileRow(zip(header, cells), str(path), "line", start)
        start = records.line_num + 1


def _json_rows(path: Path) -> Iterator[FileRow]:
    """One array of objects, or JSON Lines."""
    with _opened(path) as stream:
        if not stream.read(4096).lstrip().startswith("["):
            stream.seek(0)
            yield from _lines(path, stream)
            return
        stream.seek(0)
        yield from _numbered(path, json.load(stream, object_pairs_hook=_object))


def _jsonl_rows(path: Path) -> Iterator[FileRow]:
    with _opened(path) as stream:
        yield from _lines(path, stream)


def _lines(path: Path, stream: TextIO) -> Iterator[FileRow]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line, object_pairs_hook=_object)
        except json.JSONDecodeError as error:
            raise Malformed(f"line {number} is no JSON object: {error}") from error
        if not isinstance(cells, dict):
            raise Malformed(f"line {number} is a JSON {type(cells).__name__}, not an object")
        yield FileRow(cells, str(path), "line", number)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    cells = dict(pairs)
    if len(cells) < len(pairs):
        raise Malformed(f"has an object with a key twice: {', '.join(key for key, _ in pairs)[:200]}")
    return cells


def _numbered(path: Path, rows: Sequence[Any]) -> Iterator[FileRow]:
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise Malformed(f"row {number} is {type(row).__name__}, not an object of columns")
        yield FileRow(row, str(path), "row", number)


def _opened(path: Path, newline: str | None = None) -> TextIO:
    """Open a text file, compressed or not; a byte-order mark is skipped."""
    return COMPRESSED.get(path.suffix.lower(), open)(path, "rt", encoding="utf-8-sig", newline=newline)


def _media_rows(path: Path) -> Iterator[FileRow]:
    """The file as one row, as a dataset's image or audio column has it; in a folder per class, the folder's
    name is the class."""
    cell = "image" if path.suffix.lower() in IMAGES else "audio"
    content = path.read_bytes()
    if content.startswith(LFS):
        raise ValueError("no media")
    cells = {cell: {"bytes": content, "path": str(path)}, "file": str(path), "folder": path.parent.name}
    yield FileRow(cells, str(path), "row", 0)


TEXT = (".csv", ".tsv", ".json", ".jsonl", ".ndjson")
IMAGES = (".png", ".jpg", ".jpeg")
MEDIA = (*IMAGES, ".wav", ".flac", ".ogg")
READERS: dict[str, Callable[[Path], Iterator[FileRow]]] = {
    ".parquet": _parquet_rows,
    ".arrow": _arrow_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
    ".ndjson": _jsonl_rows,
    **dict.fromkeys(MEDIA, _media_rows),
}
BATCHES: dict[str, Callable[[Path], Iterator[FileRow]]] = {
    ".parquet": _lean_parquet_rows,
    ".arrow": _lean_arrow_rows,
}
