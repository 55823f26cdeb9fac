"""TriviaQA: trivia questions that are answered from memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lorae.sources import Hub
from lorae.tasks.base import Example, Generate, Scoring, Task, text_example
from lorae.tasks.data import parquet


@dataclass(frozen=True, kw_only=True)
class TriviaQA(Task):
    """Trivia questions without evidence (Joshi et al. 2017, arXiv:1705.03551): 138,384 train, 17,944 test,
    which is the hub's validation split; the official test split has no answers.

    The answer's `value` is trained on; those of its aliases that differ by more than case and punctuation are
    right as well.

    Source: mandarjoshi/trivia_qa on the hub, configuration rc.nocontext (licence unknown there).
    Columns: question, question_id, answer {value, aliases, normalized_aliases, ...} and evidence that is
    empty here.
    Example: "Which American-born Sinclair won the Nobel Prize for Literature in 1930?" | "Sinclair Lewis"
    """

    scoring: Scoring = Generate(max_new_tokens=48)

    name = "trivia_qa"
    home = Hub("mandarjoshi/trivia_qa")
    train = parquet("rc.nocontext/train-*", num_rows=138384)
    test = parquet("rc.nocontext/validation-*", num_rows=17944)

    def example(self, row: dict[str, Any]) -> Example:
        distinct: dict[str, str] = {}
        for text in (row["answer"]["value"], *row["answer"]["aliases"]):
            distinct.setdefault("".join(c for c in text.casefold() if c.isalnum()), text)
        return text_example(row["question"], [t for key, t in distinct.items() if key], row["question_id"])
