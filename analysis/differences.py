"""How much something changes: each cell minus a named baseline, with its interval.

ensembling(trials, resampling)         ensembles minus the single member of the same setting
regularising(trials, resampling)       regularised cells minus the unregularised of the same size
same_parameters(trials, resampling)    ensembles minus the single LoRA of rank M * r
same_compute(trials, resampling)       ensembles minus the single adapter trained M times as long
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from analysis.columns import Column, default_metrics
from analysis.data import Cell, Trials
from analysis.resampling import Resampling
from analysis.significance import Difference, holm
from analysis.table import Entry, Line, Table, cell_columns, cell_line, made_by, setting
from lorae.identity import spec_of
from lorae.trial import Budget

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


def same_parameters(trials: Trials, resampling: Resampling) -> Table:
    """Each ensemble minus the single adapter that has as many parameters, where the sweep has one."""

    def larger(cell: Cell) -> dict[str, Any] | None:
        if cell.members < 2 or not cell.factors["rank"]:
            return None
        rank, alpha = (cell.members * cell.factors[name] for name in ("rank", "alpha"))
        return cell.factors | {"members": 1, "rank": rank, "alpha": alpha}

    title = "Ensembles against a single adapter with as many parameters (rank M r)"
    return differences(trials, resampling, larger, name="same-parameters", title=title)


def same_compute(trials: Trials, resampling: Resampling) -> Table:
    """Each ensemble minus the single adapter whose training cost as much, where the sweep has one."""

    def longer(cell: Cell) -> dict[str, Any] | None:
        if cell.members < 2:
            return None
        budget: Budget = spec_of(json.loads(cell.rows[0]["recipe"])["budget"], [Budget])
        return cell.factors | {"members": 1, "budget": budget.times(cell.members).label}

    title = "Ensembles against a single adapter trained M times as long"
    return differences(trials, resampling, longer, name="same-compute", title=title)


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
        blocks=tuple(corrected(lines, columns) for lines in blocks.values()),
        notes=resampling.notes,
    )


def corrected(lines: list[Line], columns: list[Column]) -> tuple[Line, ...]:
    """The lines with the p-values of each column corrected for their number."""
    for column in columns:
        found = [(line, e) for line in lines if isinstance(e := line[column.name], Difference)]
        for (line, entry), p_value in zip(found, holm([entry.p_value for _, entry in found]), strict=True):
            line[column.name] = replace(entry, p_value=p_value)
    return tuple(lines)
