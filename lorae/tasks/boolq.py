"""BoolQ: yes/no questions about a passage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lorae.sources import Hub
from lorae.tasks.base import Example, LabelWords, Scoring, Task, content_id
from lorae.tasks.data import parquet


@dataclass(frozen=True, kw_only=True)
class BoolQ(Task):
    """Questions on a Wikipedia passage (Clark et al. 2019, arXiv:1905.10044): 9,427 train, 3,270 test.

    The passage follows the question, as in the BLoB protocol; a prompt longer than `Budget(max_tokens=...)`
    loses the middle of the two together, which lies in the passage.

    Source: google/boolq on the hub (CC BY-SA 3.0). It has no test rows: its validation is our test.
    Columns: question (lower case, no question mark), answer (bool), passage.
    Example: "do iran and afghanistan speak the same language" | true | "Persian (...), also known by its
    endonym Farsi (...), is one of the Western Iranian languages ..."
    """

    scoring: Scoring = LabelWords()

    name = "boolq"
    home = Hub("google/boolq")
    train = parquet("data/train-*", num_rows=9427)
    test = parquet("data/validation-*", num_rows=3270)
    template = "Answer the question with only True or False: {question}"

    def example(self, row: dict[str, Any]) -> Example:
        question = f"{row['question']} Context: {row['passage']}"
        return Example(content_id(question), question, ("False", "True"), int(row["answer"]))
