"""Every cell of a table resampled on the same test examples: which is best, and by how much cells differ.

Compared are cells with the same test set. A cell's seeds are averaged on each resample, so a verdict speaks
about these trained members and the sampling of examples; the standard error over seeds stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.columns import direction
from analysis.data import Cell, Row, Trials, eval_sets
from analysis.significance import (
    Bootstrap,
    Difference,
    Verdict,
    WeightedMetric,
    bootstrap,
    difference,
    mean_metric,
    verdicts,
    weighted_ood_summary,
    weighted_summary,
)
from lorae.ensemble import scale
from lorae.metrics import combine
from lorae.results import OOD_SEPARATOR, SCALED

MAX_ROW_EXAMPLES = 200_000  # rows x examples; 10,000 resamples of so many take about a minute


@dataclass(frozen=True, eq=False)
class Resampling:
    """Bootstraps by test set and column, their rows named by `place`; notes say what is lacking and why."""

    bootstraps: dict[tuple[str, str], Bootstrap]
    place: dict[Cell, str]
    notes: tuple[str, ...] = ()

    def has(self, column: str) -> bool:
        """Whether the column was resampled on every test set."""
        return all((cell.test_set, column) in self.bootstraps for cell in self.place)

    def verdicts(self, cells: Sequence[Cell], column: str) -> dict[Cell, Verdict]:
        """Best, tied with the best, or worse: each of the cells of one test set; empty if not resampled."""
        boot = self.bootstraps.get((cells[0].test_set, column))
        found = verdicts(boot, direction(column)) if boot else {}
        return {cell: found[self.place[cell]] for cell in cells if self.place[cell] in found}

    def difference(self, cell: Cell, baseline: Cell, column: str) -> Difference | None:
        """`cell` minus `baseline`; None where one of them has no such column."""
        boot = self.bootstraps.get((cell.test_set, column))
        places = self.place[cell], self.place[baseline]
        if boot is None or cell.test_set != baseline.test_set or not set(places) <= set(boot.value):
            return None
        return difference(boot, *places)


def resample(trials: Trials, columns: Sequence[str]) -> Resampling:
    """10,000 resamples of the columns that are functions of stored logits; other columns are left out."""
    place = {cell: str(number) for number, cell in enumerate(trials.cells)}
    bootstraps: dict[tuple[str, str], Bootstrap] = {}
    notes: list[str] = []
    for test_set, cells in trials.by_test_set().items():
        num_rows, num_examples = sum(len(cell.rows) for cell in cells), cells[0].rows[0]["num_examples"]
        if num_rows * num_examples > MAX_ROW_EXAMPLES:
            notes.append(f"no verdicts on {test_set}: {num_rows} rows x {num_examples} examples are too many")
            continue
        try:
            found = _bootstraps(trials, {place[cell]: cell for cell in cells}, columns)
        except ValueError as error:
            notes.append(f"no verdicts on {test_set}: {error}")
        else:
            bootstraps |= {(test_set, column): boot for column, boot in found.items()}
    return Resampling(bootstraps, place, tuple(notes))


def _bootstraps(trials: Trials, cells: dict[str, Cell], columns: Sequence[str]) -> dict[str, Bootstrap]:
    found: dict[str, Bootstrap] = {}
    for where in ("test", *trials.ood_tasks):
        suffix = "" if where == "test" else where
        wanted = [c for c in columns if c.partition(OOD_SEPARATOR)[2] == suffix]
        metrics: dict[str, WeightedMetric] = {}  # "<column>\0<place>"
        strata: list[int] = []
        for place, cell in cells.items():
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
