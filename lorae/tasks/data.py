"""Rows of a dataset from the hub, from a local copy of it, or from a file in a wheel."""

from __future__ import annotations

import bz2
import csv
import functools
import gzip
import re
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from lorae.shards import check_one_set
from lorae.sources import DataSource, Files, Hub, Wheel, file_sha256, unreachable, wheel_file

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class DataFiles:
    """The files of a dataset that make up one of our splits.

    Args:
        patterns: globs inside the hub repository, such as "main/test-*.parquet"; read in this order.
        num_rows: rows that the hub's files have, if known. More of them mean swapped files or another
            dataset.
    """

    patterns: tuple[str, ...]
    num_rows: int | None = None


def parquet(*patterns: str, num_rows: int | None = None) -> DataFiles:
    """`DataFiles` of hub parquet files, written shortly: `parquet("main/test-*", num_rows=500)`."""
    return DataFiles(tuple(f"{p}.parquet" for p in patterns), num_rows)


def local_copy(data_root: Path, name: str, home: DataSource) -> Files | None:
    """The task's folder under a data root, None if there is none: `DIR/<task name>`, for "mmlu/stem" also
    `DIR/mmlu`, or `DIR/<hub owner>/<hub name>`."""
    candidates = [name, name.split("/")[0], *([home.id] if isinstance(home, Hub) else [])]
    return next((Files(str(data_root / c)) for c in candidates if (data_root / c).is_dir()), None)


def read_rows(source: DataSource, files: DataFiles) -> list[dict[str, Any]]:
    """Rows of the files.

    Raises:
        ValueError: a file is missing or damaged, and how to provide it.
    """
    if isinstance(source, Hub):
        return _hub_rows(source, files)
    return [row for path in _paths(source, files) for row in _file_rows(path)]


@functools.lru_cache(maxsize=2)
def shared_rows(source: DataSource, files: DataFiles) -> tuple[dict[str, Any], ...]:
    """`read_rows`, read once for tasks and splits that are parts of the same files."""
    return tuple(read_rows(source, files))


def read_array(source: DataSource, files: DataFiles) -> np.ndarray:
    """The array in a .npy file, or the numbers (rows, columns) of a .csv.gz file without header.

    Raises:
        ValueError: the file is missing or damaged, and how to provide it.
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
        raise _damaged(path, error) from error


def data_fingerprint(source: DataSource, files: DataFiles) -> Any:
    """What the data are, wherever a copy lies: the hub's commit and files, or the checksum of every file."""
    if isinstance(source, Hub):
        return source.fingerprint() | {"files": files.patterns}
    if isinstance(source, Wheel):
        return [source.sha256]
    return [file_sha256(path) for path in _paths(source, files)]


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


def _file_rows(path: Path) -> list[dict[str, Any]]:
    try:
        if path.suffix == ".bz2":
            with bz2.open(path, "rt", encoding="utf-8", newline="") as stream:
                return list(csv.DictReader(stream))
        from pyarrow.parquet import ParquetFile

        with ParquetFile(path) as table:
            return table.read().to_pylist()
    except (OSError, EOFError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ValueError(f"{path} is damaged or cut off ({reason}); copy the file again")


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
    return rows.to_list()
