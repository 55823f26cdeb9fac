"""A cross-validated task's numbers: each fold is the test set once, a metric is its mean over the folds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.cells import Cell
from analysis.columns import COST_COLUMNS, Column
from analysis.data import Trials
from analysis.table import Entry, Line, Table, cell_columns, cell_line, made_by, setting


def over_folds(trials: Trials, metrics: Sequence[str]) -> Table:
    """Mean and standard deviation of each metric over the folds, where a fold's value is its mean over seeds;
    mean costs.

    ESC-50 results are published this way. A model that lacks a fold of the sweep is left out and named: its
    mean would be over other test sets.
    """
    models: dict[tuple[tuple[str, object], ...], list[Cell]] = {}
    for cell in trials.cells:
        shared = {name: value for name, value in cell.factors.items() if name != "task"}
        models.setdefault(tuple(shared.items()), []).append(cell)
    folds = list(dict.fromkeys(cell.factors["task"] for cell in trials.cells))
    whole = [cells for cells in models.values() if {c.factors["task"] for c in cells} == set(folds)]
    lacking = [cells[0].name for cells in models.values() if cells not in whole]
    columns = [c for c in cell_columns(trials) if c.name != "task"]
    return Table(
        name="folds",
        title="Means over the folds",
        caption=(
            f"{setting(trials)} Here mean ± sample standard deviation over {len(folds)} folds, of each its "
            f"mean over seeds; costs are of one fold; no test. {made_by(trials)}"
        ),
        columns=(
            *columns,
            *(Column(metric, "pooled") for metric in metrics),
            *(Column(cost, "amount") for cost in COST_COLUMNS),
        ),
        blocks=(tuple(_line(trials, cells, metrics) for cells in whole),) if whole else (),
        notes=tuple(f"left out, as it lacks a fold: {name}" for name in lacking),
    )


def _line(trials: Trials, cells: Sequence[Cell], metrics: Sequence[str]) -> Line:
    line = cell_line(cells[0])
    for column in (*metrics, *COST_COLUMNS):
        found = [of.mean for cell in cells if (of := trials.estimates.of(cell, column))]
        whole = len(found) == len(cells)
        std = float(np.std(found, ddof=1)) if whole and len(found) > 1 else None
        line[column] = Entry(float(np.mean(found)), std=std) if whole else Entry(None)
    return line
