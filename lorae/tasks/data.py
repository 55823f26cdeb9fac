"""Rows of a dataset from the hub, from a local copy of it, or from a file in a wheel."""

from __future__ import annotations

import functools
import gzip
import hashlib
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from lorae.cache import file_sha256
from lorae.shards import check_one_set
from lorae.sources import DataSource, Files, Hub, Wheel, unreachable, wheel_file
from lorae.tasks.media_files import BATCH_ROWS, are_large, lean_rows
from lorae.tasks.readers import MEDIA, FileRow, damaged, file_format, file_rows

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class DataFiles:
    """The files of a dataset that make up one of our splits.

    Args:
        patterns: globs inside the hub repository, such as "main/test-*.parquet" or "test/*/*.jpg", or file
            names; read in this order, each by its suffix, see `lorae.tasks.readers`.
        num_rows: number of rows in the hub's files, if known. More rows mean swapped files or another
            dataset.
    """

    patterns: tuple[str, ...]
    num_rows: int | None = None


def parquet(*patterns: str, num_rows: int | None = None) -> DataFiles:
    """Shorthand for `DataFiles` of hub parquet files: `parquet("main/test-*", num_rows=500)`."""
    return DataFiles(tuple(f"{p}.parquet" for p in patterns), num_rows)


def csv(*patterns: str, num_rows: int | None = None) -> DataFiles:
    """`DataFiles` of CSV or TSV files, compressed or not, with a header and text cells:
    `csv("train.csv")`."""
    return _of_formats("csv", patterns, num_rows, (".csv", ".tsv"))


def jsonl(*patterns: str, num_rows: int | None = None) -> DataFiles:
    """`DataFiles` of JSON Lines, or of JSON arrays of objects, compressed or not:
    `jsonl("train.jsonl.gz")`."""
    return _of_formats("jsonl", patterns, num_rows, (".jsonl", ".ndjson", ".json"))


def _of_formats(
    maker: str, patterns: Sequence[str], num_rows: int | None, formats: Sequence[str]
) -> DataFiles:
    for pattern in patterns:
        if file_format(pattern) not in formats:
            known = " or ".join(formats)
            raise ValueError(f'{maker}("{pattern}"): must be {known}; write {maker}("train{formats[0]}")')
    return DataFiles(tuple(patterns), num_rows)


def local_copy(data_root: Path, name: str, home: DataSource) -> Files | None:
    """The task's folder under a data root, None if there is none: `DIR/<task name>`, for "mmlu/stem" also
    `DIR/mmlu`, or `DIR/<hub owner>/<hub name>`."""
    candidates = [name, name.split("/")[0], *([home.id] if isinstance(home, Hub) else [])]
    return next((Files(str(data_root / c)) for c in candidates if (data_root / c).is_dir()), None)


def read_rows(source: DataSource, files: DataFiles) -> list[dict[str, Any]]:
    """Rows of the files, each a `FileRow`.

    Raises:
        ValueError: a file is missing, damaged or of another format; says how to provide it.
    """
    if isinstance(source, Hub):
        if all(pattern.endswith(".parquet") for pattern in files.patterns):
            return _hub_rows(source, files)
        source = _hub_copy(source, files)
    paths = _paths(source, files)
    lean = are_large(path.stat().st_size for path in paths)
    return [row for path in paths for row in file_rows(path, lean)]


@functools.lru_cache(maxsize=2)
def shared_rows(source: DataSource, files: DataFiles) -> tuple[dict[str, Any], ...]:
    """`read_rows`, read once for tasks and splits that are parts of the same files."""
    return tuple(read_rows(source, files))


def read_array(source: DataSource, files: DataFiles) -> np.ndarray:
    """The array in a .npy file, or the numbers (rows, columns) of a .csv.gz file without header.

    Raises:
        ValueError: the file is missing or damaged; says how to provide it.
    """
    import numpy as np

    assert not isinstance(source, Hub), "datasets of the hub are parquet files"
    (path,) = _paths(source, files)
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        with gzip.open(path, "rt") as stream:
            return np.loadtxt(stream, delimiter=",", ndmin=2)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise damaged(path, error) from error


def data_fingerprint(source: DataSource, files: DataFiles) -> Any:
    """Identity of the data, wherever a copy lies: the hub's commit and files, or every file's checksum."""
    if isinstance(source, Hub):
        return source.fingerprint() | {"files": files.patterns}
    if isinstance(source, Wheel):
        return [source.sha256]
    return [_content(path, Path(source.path)) for path in _paths(source, files)]


def _content(path: Path, folder: Path) -> str:
    """A file's checksum; of an image or sound also its place, which may be its class."""
    place = f"{path.relative_to(folder).as_posix()} " if path.suffix.lower() in MEDIA else ""
    return place + file_sha256(path)


def _paths(source: Files | Wheel, files: DataFiles) -> list[Path]:
    if isinstance(source, Wheel):
        return [wheel_file(source)]
    return [path for pattern in files.patterns for path in _matches(Path(source.path), pattern)]


def _matches(folder: Path, pattern: str) -> list[Path]:
    """Files of a local copy: in hub layout (`main/test-*.parquet`), or without shards and folders
    (`test.parquet`)."""
    whole = re.sub(r"[-/]\*\.parquet$", ".parquet", pattern)  # main/test.parquet
    names = list(dict.fromkeys([pattern, whole, whole.rsplit("/", 1)[-1]]))
    found = [files for name in names if (files := sorted(folder.glob(name)))]
    if not found:
        raise ValueError(f"{folder} has no {' or '.join(names)}; copy that file of the dataset there")
    if len(found) > 1:
        both = " and ".join(str(files[0].relative_to(folder)) for files in found)
        raise ValueError(
            f"{folder} has {both}, which are one split twice; remove all but those that are meant"
        )
    check_one_set(found[0])
    return found[0]


def _hub_rows(source: Hub, files: DataFiles) -> list[dict[str, Any]]:
    import datasets

    try:
        builder = datasets.load_dataset_builder(
            source.id, data_files={"rows": list(files.patterns)}, revision=source.revision
        )
        builder.download_and_prepare(verification_mode="no_checks")
        rows = builder.as_dataset(split="rows")
    except Exception as error:
        raise ValueError(
            f"{', '.join(files.patterns[:3])} of {unreachable(source, 'dataset', error)}"
        ) from error
    assert isinstance(rows, datasets.Dataset)
    paths = [PurePath(path) for path in (builder.config.data_files or {}).get("rows", ())]
    for pattern in files.patterns:
        check_one_set(path for path in paths if path.match(pattern))
    for name, feature in rows.features.items():
        if isinstance(feature, (datasets.Image, datasets.Audio)):  # as the files have it: {bytes, path}
            rows = rows.cast_column(name, type(feature)(decode=False))
    where = f"{source.id} {files.patterns[0]}"
    found = _lean_hub_rows(rows, source, files) if are_large([rows.data.nbytes]) else rows.to_list()
    return [FileRow(row, where, "row", number) for number, row in enumerate(found)]


def _lean_hub_rows(rows: Any, source: Hub, files: DataFiles) -> list[dict[str, Any]]:
    """Rows without their bytes."""
    words = (source.id, source.revision, *files.patterns)
    name = hashlib.sha256("\0".join(words).encode()).hexdigest()[:32]
    return lean_rows(rows.with_format("arrow").iter(BATCH_ROWS), name)


def _hub_copy(source: Hub, files: DataFiles) -> Files:
    """The files in the hub's cache, for our own readers: `datasets` would guess the types in text files."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            source.id, repo_type="dataset", revision=source.revision, allow_patterns=list(files.patterns)
        )
    except Exception as error:
        raise ValueError(
            f"{', '.join(files.patterns[:3])} of {unreachable(source, 'dataset', error)}"
        ) from error
    return Files(folder)
