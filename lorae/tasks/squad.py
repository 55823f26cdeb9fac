"""SQuAD: questions that a span of a Wikipedia paragraph answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from lorae.sources import Hub
from lorae.tasks.base import Example, Generate, Scoring, Task, text_example
from lorae.tasks.data import parquet

CONTEXT_CHARS = 700  # of a paragraph's end that are shown


def shown_context(text: str) -> str:
    """The paragraph, or of a long one the whole words of its end."""
    return text if len(text) <= CONTEXT_CHARS else text[-CONTEXT_CHARS:].partition(" ")[2]


def is_answerable(context: str, references: Iterable[str]) -> bool:
    """Whether a reference stands in what is shown of the paragraph."""
    return any(text in shown_context(context) for text in references)


@dataclass(frozen=True, kw_only=True)
class SQuAD(Task):
    """Reading comprehension (Rajpurkar et al. 2016, arXiv:1606.05250): 87,599 train, 10,570 test, which is
    the hub's validation split, with up to five references a question.

    Questions whose answer does not stand in the last 700 characters of the paragraph are left out.
    Validation is carved from train by whole paragraphs.

    Source: rajpurkar/squad on the hub, configuration plain_text (CC BY-SA 4.0).
    Columns: id, title, context, question, answers {text, answer_start}.
    Example: context of "American_Idol", "In what year did American Idol begin?" | "2002"
    """

    scoring: Scoring = Generate(max_new_tokens=48)

    name = "squad"
    home = Hub("rajpurkar/squad")
    train = parquet("plain_text/train-*", num_rows=87599)
    test = parquet("plain_text/validation-*", num_rows=10570)
    template = "{question}\nAnswer:"

    def rows(self, split: Literal["train", "test"]) -> list[dict[str, Any]]:
        return [row for row in super().rows(split) if is_answerable(row["context"], row["answers"]["text"])]

    def example(self, row: dict[str, Any]) -> Example:
        question = f"{shown_context(row['context'])}\nQuestion: {row['question'].strip()}"
        return text_example(question, row["answers"], row["id"], group=row["context"])
