"""Every cell of a table resampled on the same test examples: which is best, and by how much cells differ.

Compared are cells with the same test set. A cell's seeds are averaged on each resample, so a verdict speaks
about these trained members and the sampling of examples; the standard error over seeds stands beside it.
Where seeds are missing, a verdict is about each cell's own, and a difference about those that both have.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from analysis.columns import direction
from analysis.data import Cell, Row, Trials, eval_sets
from analysis.significance import (
    Bootstrap,
    Difference,
    Verdict,
    WeightedMetric,
    averaged,
    bootstrap,
    difference,
    verdicts,
    weighted_ood_summary,
    weighted_summary,
)
from lorae.ensemble import scale
from lorae.metrics import combine
from lorae.results import OOD_SEPARATOR, SCALED

ROW_EXAMPLES = 200_000  # rows x examples; 10,000 resamples of so many take about a minute
MAX_ROW_EXAMPLES = 5_000_000  # 1,000 resamples, the fewest, of so many take several minutes


@dataclass(frozen=True, eq=False)
class Resampling:
    """Bootstraps by test set and column, their rows named by trial; notes say what is lacking and why."""

    bootstraps: dict[tuple[str, str], Bootstrap]
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> str:
        """How many resamples there are, in words; columns of many rows and examples have fewer."""
        numbers = {boot.num_resamples for boot in self.bootstraps.values()} or {0}
        return " to ".join(f"{number:,}" for number in sorted({min(numbers), max(numbers)})) + " resamples"

    def has(self, cells: Sequence[Cell], column: str) -> bool:
        """Whether the column was resampled on the cells' test set."""
        return (cells[0].test_set, column) in self.bootstraps

    def verdicts(self, cells: Sequence[Cell], column: str) -> dict[Cell, Verdict]:
        """Best, tied with the best, or worse: each of the cells of one test set; empty if not resampled."""
        boot = self.bootstraps.get((cells[0].test_set, column), Bootstrap({}, {}))
        rows = {str(number): _names(cell.rows) for number, cell in enumerate(cells)}
        rows = {number: names for number, names in rows.items() if boot.value.keys() >= set(names)}
        found = verdicts(averaged(boot, rows), direction(column)) if rows else {}
        return {cells[int(number)]: verdict for number, verdict in found.items()}

    def difference(self, cell: Cell, baseline: Cell, column: str) -> Difference | None:
        """`cell` minus `baseline`, over the seeds that both have; None where one has no such column."""
        boot = self.bootstraps.get((cell.test_set, column))
        seeds = {row["seed"] for row in cell.rows} & {row["seed"] for row in baseline.rows}
        ours, theirs = (_names(row for row in c.rows if row["seed"] in seeds) for c in (cell, baseline))
        if boot is None or not seeds or not boot.value.keys() >= {*ours, *theirs}:
            return None
        return difference(averaged(boot, {"cell": ours, "baseline": theirs}), "cell", "baseline")


def _names(rows: Iterable[Row]) -> list[str]:
    """What rows are called in a bootstrap."""
    return [row["trial_id"] for row in rows]


def resample(trials: Trials, columns: Sequence[str]) -> Resampling:
    """Resamples of the columns that are functions of stored logits; other columns are left out."""
    bootstraps: dict[tuple[str, str], Bootstrap] = {}
    notes: list[str] = []
    for test_set, cells in trials.by_test_set().items() if columns else ():
        rows = [row for cell in cells for row in cell.rows]
        num_examples = rows[0]["num_examples"]
        if len(rows) * num_examples > MAX_ROW_EXAMPLES:
            notes.append(
                f"no verdicts on {test_set}: {len(rows)} rows x {num_examples} examples are too many"
            )
            continue
        try:
            found = _bootstraps(trials, rows, columns)
        except ValueError as error:
            notes.append(f"no verdicts on {test_set}: {error}")
        else:
            bootstraps |= {(test_set, column): boot for column, boot in found.items()}
    return Resampling(bootstraps, tuple(notes))


def num_resamples(row_examples: int) -> int:
    """10,000; of more than `ROW_EXAMPLES` so many thousands as take no longer, and at least 1,000."""
    return 1000 * max(1, min(10, 10 * ROW_EXAMPLES // row_examples))


def _bootstraps(trials: Trials, rows: Sequence[Row], columns: Sequence[str]) -> dict[str, Bootstrap]:
    """Of the rows of one test set, by column."""
    found: dict[str, Bootstrap] = {}
    for where in ("test", *trials.ood_tasks):
        suffix = "" if where == "test" else where
        wanted = [c for c in columns if c.partition(OOD_SEPARATOR)[2] == suffix]
        metrics: dict[str, WeightedMetric] = {}  # "<column>\0<trial>"
        strata: list[int] = []
        here = [row for row in rows if wanted and where in eval_sets(row)]
        for row in here:
            named, strata = _weighted(trials, row, where)
            for column in wanted:
                if metric := named.get(column):
                    metrics[f"{column}\0{row['trial_id']}"] = metric
        if metrics:
            found |= _by_column(bootstrap(metrics, strata, num_resamples(len(here) * sum(strata))))
    return found


def _by_column(boot: Bootstrap) -> dict[str, Bootstrap]:
    """One bootstrap of rows "<column>\\0<trial>" taken apart; all columns have seen the same resamples."""
    columns: dict[str, Bootstrap] = {}
    for key, value in boot.value.items():
        column, trial = key.split("\0")
        part = columns.setdefault(column, Bootstrap({}, {}))
        part.value[trial], part.resampled[trial] = value, boot.resampled[key]
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
