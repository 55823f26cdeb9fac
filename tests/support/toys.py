"""A toy task in parquet files, cheap enough for every test and importable by worker processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lorae.sources import Hub, Wheel
from lorae.tasks.base import Example, LabelWords, Scoring, Task
from lorae.tasks.data import DataFiles, parquet

WORDS = [f"w{i}" for i in range(40)]
OPTIONS = ("red", "green", "blue")


@dataclass(frozen=True, kw_only=True)
class Colours(Task):
    """Toy task: `{"id": "train-0", "text": "w3 w17 w5", "label": 1}`; the first word decides the colour."""

    scoring: Scoring = LabelWords()
    val_frac: float = 0.25

    name: ClassVar[str] = "colours"
    home: ClassVar[Hub | Wheel] = Hub("toy/colours")
    train: ClassVar[DataFiles | None] = parquet("data/train-*")
    test: ClassVar[DataFiles] = parquet("data/test-*")
    template: ClassVar[str] = "words : {question} colour :"

    def example(self, row: dict[str, Any]) -> Example:
        return Example(row["id"], row["text"], OPTIONS[: row.get("options", 3)], row["label"])


@dataclass(frozen=True, kw_only=True)
class Greys(Colours):
    """The OOD twin of `Colours`: other words, no labels, no training split."""

    name: ClassVar[str] = "greys"
    train: ClassVar[DataFiles | None] = None

    def example(self, row: dict[str, Any]) -> Example:
        return Example(row["id"], row["text"], OPTIONS, None)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_split(folder: Path, split: str, rows: list[dict[str, Any]]) -> None:
    write_rows(folder / f"{split}.parquet", rows)


def colour_rows(split: str, count: int, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = []
    for n in range(count):
        words = rng.choice(len(WORDS), rng.integers(2, 12))
        text = " ".join(WORDS[w] for w in words)
        rows.append({"id": f"{split}-{n}", "text": text, "label": int(words[0] % 3)})
    return rows
