"""Does the law of five members predict ten and twenty? The tables and figures of pipelines/extrapolation.py.

python -m analysis.extrapolation lorae-results
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.cells import Cell
from analysis.columns import Column, title
from analysis.curves import LAW_METRIC, MARGIN, Curve, curve_of, curves, half_width, of_size
from analysis.data import Trials
from analysis.figures_size import size_figures
from analysis.pooling import INDEPENDENT, Estimates
from analysis.rows import Row
from analysis.script import Content, run
from analysis.significance import Estimate, Family
from analysis.size import DECIMALS, recipe_columns, recipes, sizes
from analysis.table import Entry, Line, Table, cell_line, comparison, made_by, setting
from lorae.store.predictions import Predictions
from lorae.store.store import Store

FITTED = 5  # members of a pool that a law is fitted to
TESTED = (10, 20)
ROUNDS = 5  # in each, a seed's members are dealt into new pools
METRICS = (LAW_METRIC, "ensemble_nll")


def content(trials: Trials) -> Content:
    """All rows, the laws of whole pools, and the law of five members against the ensembles of the others."""
    found = curves(trials)
    tables = [comparison(trials), recipes(trials, found, MARGIN), sizes(trials, found)]
    checked = out_of_sample(trials, found)
    return Content([*tables, *([checked] if checked.blocks else [])], size_figures(trials, found))


def out_of_sample(trials: Trials, found: Sequence[Curve]) -> Table:
    """How far off the laws of five members are, for each recipe with enough members to tell."""
    lines = [line for curve in found if _has_others(curve) for line in _lines(trials, curve)]
    numbers = ("error", "absolute_error", "absolute_error_without_law", "covered")
    gains = ("gain", "absolute_error_of_gain", "gain_covered")
    return Table(
        name="extrapolation",
        title=f"The law of {FITTED} members, out of sample",
        caption=(
            f"{setting(trials)} {ROUNDS} times each seed's members are dealt into pools of {FITTED}. Error: "
            "the law of a pool minus the mean ensemble of all other members, on the same half of the test "
            f"examples; without law: the pool's own ensemble of {FITTED} in its place. Gain: from {FITTED} "
            "members on, of the others on the other half of the examples, and the law's error. Covered: "
            "share of pools whose 95 % interval, widened by that of what it is compared with, covers it. "
            f"Pools share members and examples, so they are no independent trials. {made_by(trials)}"
        ),
        columns=(
            *recipe_columns(trials),
            Column("metric", "text"),
            Column("members", "amount"),
            Column("pools", "amount"),
            *(Column(name, "metric", 2 if "covered" in name else DECIMALS) for name in (*numbers, *gains)),
        ),
        blocks=(tuple(lines),) if lines else (),
    )


def _has_others(curve: Curve) -> bool:
    rows = curve.cell.rows
    num_others = sum(len(row["member_ids"]) for row in rows) - FITTED
    independent = all(row["diversity"] == INDEPENDENT for row in rows)
    return independent and curve.pool_size >= 2 * FITTED and num_others >= max(TESTED)


def _lines(trials: Trials, curve: Curve) -> Iterator[Line]:
    checks: dict[tuple[str, int], list[Check]] = {}
    for pool, others in _deals(curve.cell.rows):
        for key, check in _checks(trials.store, curve.cell, pool, others):
            checks.setdefault(key, []).append(check)
    for (metric, members), of in checks.items():
        yield cell_line(curve.cell) | {
            "model": Entry(curve.name),
            "metric": Entry(title(metric)),
            "members": Entry(members),
            "pools": Entry(len(of)),
            "error": _mean(check.error for check in of),
            "absolute_error": _mean(abs(check.error) for check in of),
            "absolute_error_without_law": _mean(abs(check.error_without_law) for check in of),
            "covered": _mean(check.is_covered for check in of),
            "gain": _mean(check.gain for check in of),
            "absolute_error_of_gain": _mean(abs(check.gain_error) for check in of),
            "gain_covered": _mean(check.is_gain_covered for check in of),
        }


def _mean(values: Iterable[float]) -> Entry:
    return Entry(float(np.mean(list(values))))


# One pool ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """The law of one pool against the ensembles of the other members, in nats."""

    error: float
    error_without_law: float
    is_covered: bool
    gain: float
    gain_error: float
    is_gain_covered: bool


class HalfOfTest(Store):
    """A storage that shows every second example, beginning with the `first`, 0 or 1."""

    def __init__(self, store: Store, first: int) -> None:
        super().__init__(store.storage)
        self.first = first

    def predictions(self, folders: Sequence[str], eval_set: str) -> Predictions:
        found, seen = super().predictions(folders, eval_set), slice(self.first, None, 2)
        return Predictions(found.logits_MNC[:, seen], found.labels_N[seen], found.example_ids[seen])


def _deals(rows: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
    """Each pool that a seed's members are dealt into, and all other members of all seeds, as rows."""
    everyone = [member for row in rows for member in row["member_ids"]]
    for row in rows:
        rng = np.random.default_rng(row["seed"])
        for _ in range(ROUNDS):
            dealt = rng.permutation(row["member_ids"]).tolist()
            for start in range(0, len(dealt) - FITTED + 1, FITTED):
                pool = dealt[start : start + FITTED]
                others = [member for member in everyone if member not in pool]
                yield _with_members(row, pool), _with_members(row, others)


def _with_members(row: Row, members: list[str]) -> Row:
    return row | {"members": len(members), "member_ids": members}


def _checks(store: Store, cell: Cell, pool: Row, others: Row) -> Iterator[tuple[tuple[str, int], Check]]:
    """One check for each metric and size with a meaningful temperature."""
    here, there = HalfOfTest(store, 0), HalfOfTest(store, 1)
    fitted, same, new = (
        Estimates(s, [row], {}) for s, row in ((here, pool), (here, others), (there, others))
    )
    cells = {size: of_size(Cell(cell.factors, (others,)), size) for size in (FITTED, *TESTED)}
    for metric in METRICS:
        curve = curve_of(fitted, Cell(cell.factors, (pool,)), metric=metric)
        for size in TESTED:
            measured, start, end = (
                same.of(cells[size], metric),
                *(new.of(cells[m], metric) for m in (FITTED, size)),
            )
            if not curve.missing and measured and start and end:
                yield (metric, size), _check(curve, size, measured, start, end)


def _check(curve: Curve, size: int, measured: Estimate, start: Estimate, end: Estimate) -> Check:
    """
    Args:
        measured: the other members' ensembles of this size, on the examples of the fit.
        start, end: their ensembles of `FITTED` and of this size, on the other examples.
    """
    error = curve.law.at(size) - measured.value
    gain, foreseen = Family({0: start, 1: end}, MARGIN).difference(0, 1), curve.gain(FITTED, size)
    halves = [(d.hi - d.lo) / 2 for d in (gain, foreseen) if d.lo is not None and d.hi is not None]
    return Check(
        error,
        curve.points[FITTED].value - measured.value,
        abs(error) <= math.hypot(half_width(curve.at(size)), half_width(measured)),
        gain.value,
        foreseen.value - gain.value,
        abs(foreseen.value - gain.value) <= math.hypot(*halves),
    )


main = functools.partial(run, "extrapolation", content)

if __name__ == "__main__":
    sys.exit(main())
