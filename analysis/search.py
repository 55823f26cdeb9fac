"""The points of a search and its objective: the tables and figures of pipelines/search.py.

python -m analysis.search lorae-results
"""

from __future__ import annotations

import functools
import json
import sys

from analysis.cells import Cell
from analysis.columns import Column
from analysis.data import Trials
from analysis.figures_setting import metric_against_setting, numeric_settings
from analysis.script import Content, run
from analysis.table import Entry, Table, cell_columns, cell_line, comparison, made_by, setting

OBJECTIVE = "validation_nll"
TABLE_METRICS = ("acc", "ensemble_nll", "ece15")


def content(trials: Trials) -> Content:
    """A table of each study's best point, and one of all points; the objective against the sampled settings.

    Points are chosen on validation; their test metrics are shown, but choose nothing.
    """
    plots = [p for s in numeric_settings(trials) for p in metric_against_setting(trials, s, OBJECTIVE)]
    every = comparison(trials, (OBJECTIVE, *TABLE_METRICS))
    return Content([best_points(trials), every], plots)


def best_points(trials: Trials) -> Table:
    """The point with the lowest objective of each task, method, set of regularisers and size."""
    best: dict[tuple[str, ...], Cell] = {}
    for cell in trials.cells:
        found = best.setdefault(_study(cell), cell)
        if _objective(trials, cell) < _objective(trials, found):
            best[_study(cell)] = cell
    metrics = (OBJECTIVE, *TABLE_METRICS)
    lines = [
        cell_line(cell) | {m: Entry(of.mean) for m in metrics if (of := trials.estimates.of(cell, m))}
        for cell in best.values()
    ]
    return Table(
        name="best",
        title=f"Best points of search {trials.sweep}",
        caption=f"{setting(trials)} Chosen by validation NLL. {made_by(trials)}",
        columns=(*cell_columns(trials), *(Column(metric, "metric") for metric in metrics)),
        blocks=(tuple(lines),),
    )


def _study(cell: Cell) -> tuple[str, ...]:
    """Key of what is tuned separately: it has the kinds of regularisers, but not their sampled strengths."""
    regularizers = json.loads(cell.rows[0]["recipe"])["regularizers"] if cell.members else []
    kinds = "+".join(regularizer["type"] for regularizer in regularizers)
    return cell.test_set, str(cell.factors["method"]), kinds, str(cell.members)


def _objective(trials: Trials, cell: Cell) -> float:
    found = trials.estimates.of(cell, OBJECTIVE)
    return found.mean if found else float("inf")


main = functools.partial(run, "search", content)

if __name__ == "__main__":
    sys.exit(main())
