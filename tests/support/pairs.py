"""Toy tasks of sentence pairs: of two classes, and of a number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from toys import WORDS, Colours

from lorae.sources import Files
from lorae.tasks.base import Example, Head, Scoring, Task, Value

OPTIONS = ("no", "yes")


@dataclass(frozen=True, kw_only=True)
class Same(Task):
    """Toy task: do both sentences begin with the same word?"""

    scoring: Scoring = Head()
    val_frac: float = 0.25

    name = "same"
    home = Files("same")
    train = Colours.train
    test = Colours.test
    template: ClassVar[str] = "first : {question} second : {pair} same :"

    def example(self, row: dict[str, Any]) -> Example:
        return Example(row["id"], row["one"], OPTIONS, row["label"], pair=row["two"])


def pair_rows(split: str, count: int, seed: int) -> list[dict[str, Any]]:
    rng, rows = np.random.default_rng(seed), []
    for n in range(count):
        one, two = (rng.choice(WORDS, rng.integers(2, 9)) for _ in range(2))
        two[0] = one[0] if n % 2 else two[0]
        row = {"one": " ".join(one), "two": " ".join(two), "label": int(one[0] == two[0])}
        rows.append({"id": f"{split}-{n}", **row})
    return rows


@dataclass(frozen=True, kw_only=True)
class Alike(Same):
    """Toy task: a number from 0 to 5 that grows with the words that both sentences share."""

    scoring: Scoring = Value()

    def example(self, row: dict[str, Any]) -> Example:
        one, two = (set(row[name].split()) for name in ("one", "two"))
        value = row.get("value", 5 * len(one & two) / len(one | two))
        label = None if value is None else 0
        return Example(row["id"], row["one"], ("alike",), label, pair=row["two"], value=value)


@dataclass(frozen=True, kw_only=True)
class Others(Alike):
    """The OOD twin of `Alike`, whose numbers are not known."""

    name = "others"
    home = Files("others")
    train = None

    def example(self, row: dict[str, Any]) -> Example:
        return super().example(row | {"value": None})
