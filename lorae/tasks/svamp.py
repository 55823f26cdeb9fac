"""SVAMP: short word problems of arithmetic, answered by a number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lorae.sources import Hub
from lorae.tasks.base import Example, Generate, Scoring, Task, text_example
from lorae.tasks.data import parquet


@dataclass(frozen=True, kw_only=True)
class SVAMP(Task):
    """Word problems of one step, varied so that no keyword gives the operation away (Patel et al. 2021,
    arXiv:2103.07191): 700 train, 300 test.

    Source: ChilleD/SVAMP on the hub (MIT).
    Columns: ID, Body, Question, Equation, Answer (a decimal number as text), Type.
    Example: "There are 87 oranges and 290 bananas in Philip's collection. If the bananas are organized into 2
    groups and oranges are organized into 93 groups How big is each group of bananas?" | "145"
    """

    scoring: Scoring = Generate(max_new_tokens=16)

    name = "svamp"
    home = Hub("ChilleD/SVAMP")
    train = parquet("data/train-*", num_rows=700)
    test = parquet("data/test-*", num_rows=300)

    def example(self, row: dict[str, Any]) -> Example:
        return text_example(f"{row['Body']} {row['Question']}", f"{float(row['Answer']):.10g}", row["ID"])
