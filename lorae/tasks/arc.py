"""ARC: science questions of grades 3 to 9, easy and challenge set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lorae.sources import Hub
from lorae.tasks.base import Example, Task, lettered_example
from lorae.tasks.data import parquet


@dataclass(frozen=True, kw_only=True)
class Arc(Task):
    """Base of both sets (Clark et al. 2018, arXiv:1803.05457); use `ArcEasy` or `ArcChallenge`.

    Source: allenai/ai2_arc on the hub (CC BY-SA 4.0).
    Columns: id, question, choices {text, label}, answerKey. Labels are A to E or 1 to 4; most rows have four
    options, some three or five.
    """

    home = Hub("allenai/ai2_arc")

    def example(self, row: dict[str, Any]) -> Example:
        return lettered_example(row, row["question"])


@dataclass(frozen=True, kw_only=True)
class ArcEasy(Arc):
    """ARC-Easy: 2,251 train, 2,376 test; see `Arc` for source, licence and columns.

    Example: "Which factor will most likely cause a person to develop a fever?" | A) a leg muscle relaxing
    after exercise B) a bacterial population in the bloodstream C) several viral particles on the skin D)
    carbohydrates being digested in the stomach | B
    """

    name = "arc_easy"
    train = parquet("ARC-Easy/train-*", num_rows=2251)
    test = parquet("ARC-Easy/test-*", num_rows=2376)


@dataclass(frozen=True, kw_only=True)
class ArcChallenge(Arc):
    """ARC-Challenge, questions that retrieval and co-occurrence miss: 1,119 train, 1,172 test; see `Arc`.

    Example: "George wants to warm his hands quickly by rubbing them. Which skin surface will produce the most
    heat?" | A) dry palms B) wet palms C) palms covered with oil D) palms covered with lotion | A
    """

    name = "arc_challenge"
    train = parquet("ARC-Challenge/train-*", num_rows=1119)
    test = parquet("ARC-Challenge/test-*", num_rows=1172)
