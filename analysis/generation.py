"""Texts that ensembles write: how good they are, and which part of their uncertainty the members add.

python -m analysis.generation lorae-results --sweep generation
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import replace

from analysis.data import Trials
from analysis.figures_texts import prr_bars, quality_against_members, risk_coverage
from analysis.published import OF_TEXTS, dataset, published_rows, published_table
from analysis.rows import Row, eval_sets
from analysis.script import Content, run
from analysis.table import Table, comparison
from analysis.text_examples import examples_table
from analysis.text_tables import added_table, missing, quality_table, scores_table
from analysis.texts import Texts
from lorae.results import TEXT_METRICS, row_answers
from lorae.store.answers import Answer
from lorae.texts import models
from lorae.texts.uncertainty import SCORES, scores_of

MODELS = {
    "nli": "semantic entropy and graph scores by an NLI model, too: a repository of the hub, or a folder",
    "embedding": "the same by an encoder's embeddings: sentence-transformers/all-MiniLM-L6-v2, or a folder",
}


def content(trials: Trials, nli: str | None = None, embedding: str | None = None) -> Content:
    """Quality against the number of members, every score as a detector of wrong answers, what members add."""
    scores = dict(SCORES)
    if nli:
        scores |= scores_of(models.entailment(nli), "nli", models.ENTAILMENT)
    if embedding:
        scores |= scores_of(models.embedding(embedding), "embedding", models.EMBEDDING)
    texts = Texts(trials, functools.partial(stored_answers, trials), scores)
    found = content_of(texts)
    shown = {name for cell in texts.cells for name in texts.of(cell.rows[0]).kind.metrics}
    metrics = [name for name in text_metrics(trials) if name in shown]
    rows = replace(comparison(trials, metrics), notes=missing(trials))  # its notes are on classes
    return replace(found, tables=[rows, *found.tables, *published_beside(trials)])


def writes_texts(trials: Trials) -> bool:
    """Whether a sweep's rows are of texts; what they predict of single tokens is no classification."""
    return any(row["decoding"] for row in trials.rows)


def text_metrics(trials: Trials) -> list[str]:
    """Columns of a sweep's rows that say how good their texts are."""
    return [name for name in TEXT_METRICS if any(row[name] is not None for row in trials.rows)]


def content_of(texts: Texts) -> Content:
    """The tables and figures of a sweep's texts; of the recipes of one test set the first has examples."""
    first = {texts.largest(recipe).test_set: recipe for recipe in reversed(texts.recipes)}
    tables = [quality_table(texts), scores_table(texts), added_table(texts)]
    tables += [examples_table(texts, recipe) for recipe in reversed(first.values())]
    plots = [quality_against_members(texts, recipe) for recipe in reversed(first.values())]
    plots += [make(texts, recipe) for recipe in texts.recipes for make in (risk_coverage, prr_bars)]
    return Content(tables, plots)


def stored_answers(trials: Trials, row: Row, where: str) -> Sequence[Answer] | None:
    """Answers of a row's members to "test", "validation" or an OOD task; None of a scoring without texts.

    Raises:
        ValueError: they are missing or damaged.
    """
    return row_answers(trials.store, row, eval_sets(row)[where]) if row["decoding"] else None


def published_beside(trials: Trials) -> list[Table]:
    """Published numbers of texts on the tasks of a sweep, whatever was trained on."""
    tasks = dict.fromkeys(dataset(json.loads(row["recipe"])["task"]["task"]) for row in trials.rows)
    rows = [row for task in tasks for row in published_rows(evaluated_on=task) if row.metric in OF_TEXTS]
    return [published_table(rows)] if rows else []


main = functools.partial(run, "generation", content, options=MODELS)

if __name__ == "__main__":
    sys.exit(main())
