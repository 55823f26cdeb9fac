"""SocialIQA: why people act as they do, and what follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lorae.sources import Hub
from lorae.tasks.base import Example, Task, content_id
from lorae.tasks.data import parquet


@dataclass(frozen=True, kw_only=True)
class SocialIQA(Task):
    """Three options on a situation (Sap et al. 2019, arXiv:1904.09728): 33,410 train, 1,954 test.

    Source: allenai/social_i_qa on the hub, its Parquet export (the repository is a script); licence not
    stated. It has no test rows: its validation is our test.
    Columns: context, question, answerA, answerB, answerC, label ("1", "2", "3").
    Example: "Cameron decided to have a barbecue and gathered her friends together. How would Others feel as a
    result?" | A) like attending B) like staying home C) a good friend to have | 1
    """

    name = "social_iqa"
    home = Hub("allenai/social_i_qa", revision="refs/convert/parquet")
    train = parquet("default/train/*", num_rows=33410)
    test = parquet("default/validation/*", num_rows=1954)

    def example(self, row: dict[str, Any]) -> Example:
        question = f"{row['context']} {row['question']}"
        options = (row["answerA"], row["answerB"], row["answerC"])
        return Example(content_id(question, *options), question, options, int(row["label"]) - 1)
