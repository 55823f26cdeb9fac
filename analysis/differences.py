"""How much something changes: each cell minus a named baseline, with its interval.

ensembling(trials, resampling)       ensembles minus the single member of the same setting
regularising(trials, resampling)     regularised cells minus the unregularised of the same size
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from analysis.columns import Column, default_metrics
from analysis.data import Cell, Trials
from analysis.resampling import Resampling
from analysis.significance import Difference, holm
from analysis.table import Entry, Line, Table, cell_columns, cell_line, made_by, setting

INTERVALS = (
    "Difference [95 % interval] by the paired bootstrap over test examples, 10,000 resamples; bold: p ≤ 0.05 "
    "after Holm's correction over the column."
)


def ensembling(trials: Trials, resampling: Resampling) -> Table:
    """What ensembling changes: each ensemble minus the single member of its setting."""
    return differences(
        trials,
        resampling,
        lambda cell: cell.factors | {"members": 1} if cell.members > 1 else None,
        name="ensembling",
        title="What ensembling changes, against the single member of the same setting",
    )


def regularising(trials: Trials, resampling: Resampling) -> Table:
    """What regularising changes: each regularised cell minus the unregularised one of its size."""
    return differences(
        trials,
        resampling,
        lambda cell: cell.factors | {"regularizers": "none"} if cell.regularised else None,
        name="regularising",
        title="What regularising changes, against no regulariser at the same number of members",
    )


def differences(
    trials: Trials,
    resampling: Resampling,
    baseline: Callable[[Cell], dict[str, Any] | None],
    name: str,
    title: str,
) -> Table:
    """A table of cells minus their baselines; no lines where no cell has one.

    Args:
        baseline: factors of the cell to subtract; None leaves the cell out.
    """
    columns = [Column(metric, "difference") for metric in default_metrics(trials)]
    cells = {tuple(cell.factors.items()): cell for cell in trials.cells}
    blocks: dict[str, list[Line]] = {}
    for cell in trials.cells:
        factors = baseline(cell)
        other = cells.get(tuple(factors.items())) if factors else None
        if other:
            found = {c.name: resampling.difference(cell, other, c.name) or Entry(None) for c in columns}
            blocks.setdefault(cell.test_set, []).append(cell_line(cell) | found)
    return Table(
        name=name,
        title=title,
        caption=f"{setting(trials)} {INTERVALS} {made_by(trials)}",
        columns=(*cell_columns(trials), *columns),
        blocks=tuple(_corrected(lines, columns) for lines in blocks.values()),
        notes=resampling.notes,
    )


def _corrected(lines: list[Line], columns: list[Column]) -> tuple[Line, ...]:
    """The lines with the p-values of each column corrected for their number."""
    for column in columns:
        found = [(line, e) for line in lines if isinstance(e := line[column.name], Difference)]
        for (line, entry), p_value in zip(found, holm([entry.p_value for _, entry in found]), strict=True):
            line[column.name] = replace(entry, p_value=p_value)
    return tuple(lines)
