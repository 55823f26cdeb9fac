"""OpenBookQA: elementary science questions that need a fact and common sense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lorae.sources import Hub
from lorae.tasks.base import Example, Task, lettered_example
from lorae.tasks.data import parquet


@dataclass(frozen=True, kw_only=True)
class OpenBookQA(Task):
    """Questions with four options (Mihaylov et al. 2018, arXiv:1809.02789): 4,957 train, 500 test.

    Source: allenai/openbookqa on the hub, configuration main; licence not stated there.
    Columns: id, question_stem, choices {text, label}, answerKey.
    Example: "The sun is responsible for" | A) puppies learning new tricks B) children growing up and getting
    old C) flowers wilting in a vase D) plants sprouting, blooming and wilting | D
    """

    name = "openbookqa"
    home = Hub("allenai/openbookqa")
    train = parquet("main/train-*", num_rows=4957)
    test = parquet("main/test-*", num_rows=500)

    def example(self, row: dict[str, Any]) -> Example:
        return lettered_example(row, row["question_stem"])
