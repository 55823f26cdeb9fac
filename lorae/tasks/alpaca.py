"""Alpaca-cleaned: instructions with answers; MT-Bench's prompts are its OOD set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from lorae.sources import Hub
from lorae.tasks.base import Example, Generate, Scoring, Task, content_id, hash_frac, text_example
from lorae.tasks.data import DataFiles, jsonl, shared_rows

FILE = "alpaca_data_cleaned.json"
INSTRUCTION = "### Instruction:\n{question}\n\n### Response:\n"
OUTPUT_CHARS = 600  # of the longest answer


@dataclass(frozen=True, kw_only=True)
class Alpaca(Task):
    """Instructions that a model wrote and answered, cleaned (Taori et al. 2023): 51,760 rows.

    Answers of more than 600 characters are left out. Of the others about 2 % are test.

    Source: yahma/alpaca-cleaned on the hub (CC BY 4.0).
    Columns: instruction, input (mostly empty), output.
    Example: "Give three tips for staying healthy." | "1. Eat a balanced and nutritious diet [...]"
    """

    scoring: Scoring = Generate(max_new_tokens=320)

    name = "alpaca"
    home = Hub("yahma/alpaca-cleaned")
    train = jsonl(FILE, num_rows=51760)
    test = jsonl(FILE, num_rows=51760)
    template = INSTRUCTION

    def rows(self, split: Literal["train", "test"]) -> list[dict[str, Any]]:
        assert self.source is not None, "call located() first"
        found = [r for r in shared_rows(self.source, self.test) if _is_short(r["output"])]
        return [r for r in found if (hash_frac("test", _question(r)) < 0.02) == (split == "test")]

    def example(self, row: dict[str, Any]) -> Example:
        question = _question(row)
        return text_example(question, row["output"], content_id(question, row["output"]))


def _question(row: dict[str, Any]) -> str:
    return "\n\n".join(filter(None, (row["instruction"].strip(), row["input"].strip())))


def _is_short(text: str) -> bool:
    return 0 < len(text.strip()) <= OUTPUT_CHARS


@dataclass(frozen=True, kw_only=True)
class MTBench(Task):
    """The first turns of MT-Bench's 80 prompts (Zheng et al. 2023, arXiv:2306.05685), to be answered.

    It is only predicted. Of the 39 prompts with references (mathematics, reasoning, coding) those of at most
    600 characters are kept; other answers are for judges to compare.

    Source: HuggingFaceH4/mt_bench_prompts on the hub (Apache-2.0).
    Columns: prompt (two turns), prompt_id, category, reference (of both turns, or empty).
    Example: "Compose an engaging travel blog post about a recent trip to Hawaii [...]" | no reference
    """

    scoring: Scoring = Generate(max_new_tokens=320)

    name = "mt_bench"
    home = Hub("HuggingFaceH4/mt_bench_prompts")
    train: ClassVar[DataFiles | None] = None
    test = DataFiles(("data/train-*.parquet",), num_rows=80)
    template = INSTRUCTION

    def example(self, row: dict[str, Any]) -> Example:
        references = [text for text in row["reference"][:1] if _is_short(text)]
        return text_example(row["prompt"][0], references, str(row["prompt_id"]))
