"""Test examples worth looking at: the errors that an ensemble is most confident of, and the examples that its
members disagree on most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from analysis.cells import Cell
from analysis.columns import Column
from analysis.data import Trials
from analysis.example_texts import Shown, shown_examples
from analysis.plotting import slug
from analysis.rows import rule
from analysis.table import Entry, Line, Table
from lorae import metrics
from lorae.metrics.diversity import example_mutual_information
from lorae.store.predictions import Predictions
from lorae.tasks.base import Task

MAX_EXAMPLES = 6  # of each kind
ERROR, SPLIT = "confident error", "members disagree"


def example_tables(trials: Trials, tasks: Sequence[Task] = ()) -> list[Table]:
    """A table for each test set with classes, of the ensemble with the lowest validation NLL, first seed.

    Args:
        tasks: where texts may be found, see `example_texts`.
    """
    groups = [[c for c in cells if c.members] for cells in trials.of_classes.by_test_set().values()]
    featured = [_featured(cells) for cells in groups if cells]
    tables = [_table(trials, cell, shown_examples(trials, cell, tasks), len(featured)) for cell in featured]
    return [table for table in tables if table.blocks]


def _featured(cells: Sequence[Cell]) -> Cell:
    """Of several members if there is one; no test example chooses it."""
    several = [c for c in cells if c.members > 1 and not c.is_soup] or cells
    judged = [c for c in several if all(row["validation_nll"] is not None for row in c.rows)]
    return min(judged, key=lambda c: np.mean([row["validation_nll"] for row in c.rows]), default=several[-1])


def _table(trials: Trials, cell: Cell, shown: Shown, num_test_sets: int) -> Table:
    row = cell.rows[0]
    test = trials.predictions(row)
    logp_NC = metrics.combine(test.logits_MNC, rule(row))
    wrong_N = logp_NC.argmax(axis=1) != test.labels_N
    confident = [n for n in np.argsort(-logp_NC.max(axis=1), kind="stable") if wrong_N[n]]
    split: list[int] = []
    if len(test.logits_MNC) > 1:
        information_N = example_mutual_information(test.logits_MNC)
        split = [n for n in np.argsort(-information_N, kind="stable") if information_N[n] > 0]
    blocks = [
        tuple(_line(why, int(n), test, logp_NC, shown) for n in places[:MAX_EXAMPLES])
        for why, places in ((ERROR, confident), (SPLIT, split))
    ]
    called = ", ".join(filter(lambda word: word != "none", (cell.name, cell.factors["regularizers"])))
    return Table(
        name=f"examples{slug(cell.test_set) if num_test_sets > 1 else ''}",
        title="Examples worth looking at",
        caption=(
            f"{called}, seed {row['seed']}, on {row['task']}: the {MAX_EXAMPLES} errors that it is most "
            f"confident of, and the {MAX_EXAMPLES} examples with the largest mutual information (nats) "
            f"between prediction and member. {int(wrong_N.sum())} of {len(wrong_N)} answers are wrong. "
            f"{shown.note}"
        ),
        columns=(
            *(Column(name, "text") for name in ("why", "example", "gold", "predicted")),
            *(Column(name, "metric") for name in ("confidence", "mutual_information")),
            Column("votes", "text"),
        ),
        blocks=tuple(block for block in blocks if block),
        sweep=trials.sweep,
    )


def _line(why: str, place: int, test: Predictions, logp_NC: np.ndarray, shown: Shown) -> Line:
    """One example: what was asked, what the ensemble and each of its members said."""
    name, logits_MC = test.example_ids[place], test.logits_MNC[:, place]
    votes = Counter(shown.answer(name, int(label)) for label in logits_MC.argmax(axis=1))
    several = len(logits_MC) > 1
    information = example_mutual_information(test.logits_MNC[:, [place]])[0] if several else None
    found = {
        "why": why,
        "example": shown.text(name),
        "gold": shown.answer(name, int(test.labels_N[place])),
        "predicted": shown.answer(name, int(logp_NC[place].argmax())),
        "confidence": float(np.exp(logp_NC[place].max())),
        "mutual_information": None if information is None else float(information),
        "votes": ", ".join(f"{num} x {answer}" for answer, num in votes.most_common()) if several else None,
    }
    return {name: Entry(value) for name, value in found.items()}
