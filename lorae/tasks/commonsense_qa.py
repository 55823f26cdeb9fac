"""CommonsenseQA: everyday questions around a concept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lorae.sources import Hub
from lorae.tasks.base import Example, Task, lettered_example
from lorae.tasks.data import parquet


@dataclass(frozen=True, kw_only=True)
class CommonsenseQA(Task):
    """Questions with five options (Talmor et al. 2019, arXiv:1811.00937): 9,741 train, 1,221 test.

    Source: tau/commonsense_qa on the hub (MIT). Its test rows have no labels: its validation is our test.
    Columns: id, question, question_concept, choices {text, label}, answerKey.
    Example: "The sanctions against the school were a punishing blow, and they seemed to what the efforts the
    school had made to change?" | A) ignore B) enforce C) authoritarian D) yell at E) avoid | A
    """

    name = "commonsense_qa"
    home = Hub("tau/commonsense_qa")
    train = parquet("data/train-*", num_rows=9741)
    test = parquet("data/validation-*", num_rows=1221)

    def example(self, row: dict[str, Any]) -> Example:
        return lettered_example(row, row["question"])
