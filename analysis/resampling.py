"""Every cell of a table resampled on the same test examples: which is best, and by how much cells differ.

Compared are cells with the same test set. A cell's seeds are averaged on each resample, so a verdict speaks
about these trained members and the sampling of examples; the standard error over seeds stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.data import Cell, Row, Trials, eval_sets
from analysis.significance import (
    Bootstrap,
    Verdict,
    WeightedMetric,
    bootstrap,
    mean_metric,
    verdicts,
    weighted_ood_summary,
    weighted_summary,
)
from lorae.ensemble import scale
from lorae.metrics import DIRECTION, Direction, combine
from lorae.results import OOD_SEPARATOR, SCALED

MAX_ROW_EXAMPLES = 200_000  # rows x examples; 10,000 resamples of so many take about a minute


def direction(column: str) -> Direction:
    """Whether lower or higher is better in a column of trials.parquet; "none" for costs and the like."""
    name = column.split(OOD_SEPARATOR)[0].removeprefix("ts_")
    return DIRECTION.get("ensemble_nll" if name == "validation_nll" else name, "none")


@dataclass(frozen=True, eq=False)
class Resampled:
    """Bootstraps of cells that share a test set, by column; a row is named by its cell's place in `cells`."""

    cells: tuple[Cell, ...]
    columns: dict[str, Bootstrap]

    def verdicts(self, column: str) -> dict[Cell, Verdict]:
        """Best, tied with the best, or worse: every cell that has this column."""
        if column not in self.columns or direction(column) == "none":
            return {}
        found = verdicts(self.columns[column], direction(column))
        return {self.cells[int(place)]: verdict for place, verdict in found.items()}


def resample(trials: Trials, columns: Sequence[str]) -> tuple[list[Resampled], list[str]]:
    """Bootstraps of the columns that are functions of stored logits, for each test set.

    Returns:
        one `Resampled` for each test set, and notes on what could not be resampled and why.
    """
    groups: dict[str, list[Cell]] = {}
    for cell in trials.cells:
        groups.setdefault(cell.test_set, []).append(cell)
    resampled: list[Resampled] = []
    notes: list[str] = []
    for test_set, cells in groups.items():
        num_rows, num_examples = sum(len(cell.rows) for cell in cells), cells[0].rows[0]["num_examples"]
        if num_rows * num_examples > MAX_ROW_EXAMPLES:
            notes.append(f"no verdicts on {test_set}: {num_rows} rows x {num_examples} examples are too many")
            continue
        try:
            resampled.append(Resampled(tuple(cells), _bootstraps(trials, cells, columns)))
        except ValueError as error:
            notes.append(f"no verdicts on {test_set}: {error}")
    return resampled, notes


def _bootstraps(trials: Trials, cells: Sequence[Cell], columns: Sequence[str]) -> dict[str, Bootstrap]:
    found: dict[str, Bootstrap] = {}
    for where in ("test", *trials.ood_tasks):
        suffix = "" if where == "test" else where
        wanted = [c for c in columns if c.partition(OOD_SEPARATOR)[2] == suffix]
        metrics: dict[str, WeightedMetric] = {}  # "<column>\\0<place of the cell>"
        strata: list[int] = []
        for place, cell in enumerate(cells):
            if not wanted or where not in eval_sets(cell.rows[0]):
                continue
            of_rows = [_weighted(trials, row, where) for row in cell.rows]
            strata = of_rows[0][1]
            for column in wanted:
                parts = [metric for named, _ in of_rows if (metric := named.get(column))]
                if len(parts) == len(of_rows):
                    metrics[f"{column}\0{place}"] = mean_metric(parts)
        if metrics:
            found |= _by_column(bootstrap(metrics, strata))
    return found


def _by_column(boot: Bootstrap) -> dict[str, Bootstrap]:
    """One bootstrap of rows "<column>\\0<place>" taken apart; all columns have seen the same resamples."""
    columns: dict[str, Bootstrap] = {}
    for key, value in boot.value.items():
        column, place = key.split("\0")
        part = columns.setdefault(column, Bootstrap({}, {}))
        part.value[place], part.resampled[place] = value, boot.resampled[key]
    return columns


def _weighted(trials: Trials, row: Row, where: str) -> tuple[dict[str, WeightedMetric | None], list[int]]:
    """A row's columns of one evaluation set as functions of the examples' counts, and the strata of those."""
    test, rule = trials.predictions(row), row["combine"]
    if where == "test":
        metrics = weighted_summary(test.logits_MNC, test.labels_N, rule)
        logp_NC = scale(combine(test.logits_MNC, rule), row["temperature"])
        scaled = weighted_summary(logp_NC[None], test.labels_N)
        names = [name.removeprefix("ts_") for name in SCALED if name.startswith("ts_")]
        return metrics | {f"ts_{name}": scaled[name] for name in names}, [len(test.labels_N)]
    ood = trials.predictions(row, where)
    metrics = weighted_ood_summary(test.logits_MNC, ood.logits_MNC, rule)
    named = {f"{name}{OOD_SEPARATOR}{where}": metric for name, metric in metrics.items()}
    return named, [len(test.labels_N), len(ood.labels_N)]
