"""TREC: what kind of answer does a question ask for?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lorae.sources import Hub
from lorae.tasks.base import Example, LabelWords, Scoring, Task, content_id
from lorae.tasks.data import parquet


@dataclass(frozen=True, kw_only=True)
class TREC(Task):
    """Questions in six coarse classes (Li and Roth 2002): 5,452 train, 500 test.

    Source: CogComp/trec on the hub, its Parquet export (the repository is a script); licence not stated.
    Columns: text, coarse_label (0 to 5: ABBR, ENTY, DESC, HUM, LOC, NUM), fine_label.
    Example: "How far is it from Denver to Aspen ?" | 5
    """

    scoring: Scoring = LabelWords()

    name = "trec"
    home = Hub("CogComp/trec", revision="refs/convert/parquet")
    train = parquet("default/train/*", num_rows=5452)
    test = parquet("default/test/*", num_rows=500)
    template = "Question: {question}\nType:"

    def example(self, row: dict[str, Any]) -> Example:
        options = ("abbreviation", "entity", "description", "human", "location", "number")
        return Example(content_id(row["text"]), row["text"], options, row["coarse_label"])
