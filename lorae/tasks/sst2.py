"""SST-2: is a sentence of a film review positive?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lorae.sources import Hub
from lorae.tasks.base import Example, LabelWords, Scoring, Task, content_id
from lorae.tasks.data import parquet
from lorae.tasks.rotten_tomatoes import RottenTomatoes


@dataclass(frozen=True, kw_only=True)
class SST2(Task):
    """Sentences of film reviews, positive or negative (Socher et al. 2013): 67,349 train, 872 test.

    Train has whole sentences and phrases. It is not known which phrase comes from which sentence, so
    validation, which is carved from train, is easier than test. The prompt is the one of `RottenTomatoes`, so
    `PlotSummaries` is an OOD set for both.

    Source: stanfordnlp/sst2 on the hub; licence not stated. Its test rows have no labels: its validation is
    our test.
    Columns: idx, sentence, label (0 negative, 1 positive).
    Example: "it 's a charming and often affecting journey . " | 1
    """

    scoring: Scoring = LabelWords()

    name = "sst2"
    home = Hub("stanfordnlp/sst2")
    train = parquet("data/train-*", num_rows=67_349)
    test = parquet("data/validation-*", num_rows=872)
    template = RottenTomatoes.template

    def example(self, row: dict[str, Any]) -> Example:
        sentence = row["sentence"].strip()
        return Example(content_id(sentence), sentence, ("negative", "positive"), row["label"])
