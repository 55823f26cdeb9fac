"""GSM8K: word problems of grade-school mathematics, answered in steps."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from lorae.sources import Hub
from lorae.tasks.base import Example, Generate, Scoring, Task, text_example
from lorae.tasks.data import parquet


@dataclass(frozen=True, kw_only=True)
class GSM8K(Task):
    """Word problems with worked answers (Cobbe et al. 2021, arXiv:2110.14168): 7,473 train, 1,319 test.

    The calculator's notes, <<48/2=24>>, are left out of the answers; the last line is "#### 72".

    Source: openai/gsm8k on the hub, configuration main (MIT).
    Columns: question, answer.
    Example: "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May.
    How many clips did Natalia sell altogether in April and May?" | "Natalia sold 48/2 = 24 clips [...]
    #### 72"
    """

    scoring: Scoring = Generate(max_new_tokens=400)

    name = "gsm8k"
    home = Hub("openai/gsm8k")
    train = parquet("main/train-*", num_rows=7473)
    test = parquet("main/test-*", num_rows=1319)

    def example(self, row: dict[str, Any]) -> Example:
        return text_example(row["question"], re.sub(r"<<.*?>>", "", row["answer"]))
