"""WinoGrande: which of two names fills the blank of a sentence?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lorae.sources import Hub
from lorae.tasks.base import Example, Prompt, Task, content_id
from lorae.tasks.data import DataFiles, parquet


@dataclass(frozen=True)
class WinoGrande(Task):
    """Two options for a blank (Sakaguchi et al. 2020, arXiv:1907.10641): 640 or 2,558 train, 1,267 test.

    With letters the question is the sentence with its blank. Otherwise the prompt is the sentence up to the
    blank, and an answer is the option with the rest of the sentence: this scores the whole sentence ("full
    scoring" of Trinh and Le 2018, arXiv:1806.02847), and both options share the prompt.

    Source: allenai/winogrande on the hub (CC BY by its authors). Its test rows have no labels: its validation
    is our test.
    Columns: sentence, option1, option2, answer ("1" or "2").
    Example: "Sarah was a much better surgeon than Maria so _ always got the easier cases." | Sarah, Maria | 2

    Args:
        size: one of the nested training sets: "s" has 640 rows, "m" 2,558.
    """

    size: Literal["s", "m"]

    home = Hub("allenai/winogrande")
    template = "Sentence: {question}"

    def __post_init__(self) -> None:
        if self.size not in ("s", "m"):
            raise ValueError(f'size={self.size!r}: must be "s" or "m"; write WinoGrande("s")')
        super().__post_init__()

    @property
    def name(self) -> str:
        return f"winogrande_{self.size}"

    @property
    def train(self) -> DataFiles:
        return parquet(f"{self.name}/train-*", num_rows=640 if self.size == "s" else 2558)

    @property
    def test(self) -> DataFiles:
        return parquet(f"{self.name}/validation-*", num_rows=1267)

    def example(self, row: dict[str, Any]) -> Example:
        sentence, options = row["sentence"], (row["option1"], row["option2"])
        if "_" not in sentence:
            raise ValueError(f"the sentence has no blank _: {sentence!r}")
        return Example(content_id(sentence, *options), sentence, options, int(row["answer"]) - 1)

    def prompt(self, example: Example) -> Prompt:
        if self.scoring.lists_options:
            return super().prompt(example)
        before, _, after = example.question.partition("_")
        text = self.template.format(question=before).rstrip()
        return Prompt(text, tuple(f" {option}{after}" for option in example.options))
