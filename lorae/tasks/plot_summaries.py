"""Plot summaries: an OOD set close to film reviews."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from lorae.tasks.base import Example, LabelWords, Scoring, Task, content_id
from lorae.tasks.data import DataFiles, shared_rows
from lorae.tasks.rotten_tomatoes import CORPUS, RottenTomatoes

MAX_CHARS = 255  # the longest review sentence
_ABBREVIATED = "".join(
    rf"(?<!\b{a})" for a in ("[A-Z]", "Mr", "Mrs", "Ms", "Dr", "St", "Jr", "Col", "Capt", "Inc")
)
_SENTENCE = re.compile(rf"""(.*?{_ABBREVIATED}[.!?]["')]*)(?:\s|$)""", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class PlotSummaries(Task):
    """First sentences of 1,026 film summaries: topic and prompt of `RottenTomatoes`, but no verdict.

    Summaries are longer than review sentences (median 503 characters against 108), so length alone would
    give them away. Only the first sentence is kept, if it has at most 255 characters, like review sentences;
    71 summaries that are empty or have no such sentence are left out. Length alone then separates the two
    sets with an AUROC of 0.57 (0.86 if sentences were added up to 255 characters). There are no labels and no
    train split.

    Source: the file of `RottenTomatoes`, category plot; the summaries are from imdb.com.
    Columns: category, text, movie_name, has_plot_and_reviews.
    Example: plot | "Warren Schmidt (Nicholson) is forced to deal with an ambiguous future as he enters
    retirement."
    """

    scoring: Scoring = LabelWords()

    name = "plot_summaries"
    home = RottenTomatoes.home
    train = None
    test = DataFiles((CORPUS,))
    template = RottenTomatoes.template

    def rows(self, split: Literal["train", "test"]) -> list[dict[str, Any]]:
        assert self.source is not None, "call located() first"
        plots = [row for row in shared_rows(self.source, self.test) if row["category"] == "plot"]
        return [r for r in plots if split == "test" and 0 < len(first_sentence(r["text"])) <= MAX_CHARS]

    def example(self, row: dict[str, Any]) -> Example:
        text = first_sentence(row["text"])
        return Example(content_id(text), text, ("negative", "positive"), None, group=row["movie_name"])


def first_sentence(text: str) -> str:
    """The first sentence of a text, on one line; empty if no sentence ends."""
    found = _SENTENCE.match(text.strip())
    return " ".join(found[1].split()) if found else ""
