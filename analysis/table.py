"""The comparison table of a sweep: one line for each cell, with its metrics, their certainty and its cost.

    trials = load_trials("lorae-results", "demo")
    table = comparison(trials, resample(trials, default_metrics(trials)))
    print(markdown(table))

Which factors are columns is found from the rows; those that never vary are named once, in the caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analysis.columns import COST_COLUMNS, Column, default_metrics, direction, title
from analysis.data import IN_CONTEXT, Cell, Trials, provenance
from analysis.resampling import Resampling
from analysis.significance import Difference, Verdict
from lorae.results import FACTORS

TESTED = "Best in bold; ≈: not distinguishable from the best (paired bootstrap, {}, Holm, 5 %)."
UNTESTED = "Best value in bold, without a test."


@dataclass(frozen=True)
class Entry:
    """A number or text, None where undefined, with its standard error over seeds and its verdict, or with its
    standard deviation over folds."""

    value: Any
    stderr: float | None = None
    verdict: Verdict | None = None
    std: float | None = None


Line = dict[str, Entry | Difference]  # column name -> entry


@dataclass(frozen=True)
class Table:
    """Blocks of lines; values are compared within a block only. Rendered by `analysis.render`."""

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    blocks: tuple[tuple[Line, ...], ...]
    notes: tuple[str, ...] = ()


def comparison(
    trials: Trials,
    resampling: Resampling,
    metrics: Sequence[str] | None = None,
    costs: Sequence[str] = COST_COLUMNS,
    name: str = "table",
) -> Table:
    """Cells in blocks of one test set, with the best value of each metric and its rivals marked.

    Args:
        resampling: of the cells; columns that it lacks have their best value marked alone.
        metrics: columns of trials.parquet; None = `default_metrics`.
        costs: the same, of its cost columns.
        name: of the table's files.
    """
    metrics = default_metrics(trials) if metrics is None else metrics
    blocks: dict[str, list[Line]] = {}
    for test_set, cells in trials.by_test_set().items():
        verdicts = {metric: _verdicts(cells, metric, resampling) for metric in metrics}
        for cell in cells:
            line = cell_line(cell) | {"seeds": Entry(len(cell.rows))}
            line |= {metric: mean_entry(cell, metric, verdicts[metric].get(cell)) for metric in metrics}
            line |= {cost: mean_entry(cell, cost) for cost in costs}
            blocks.setdefault(test_set, []).append(line)
    differing = len({len(cell.rows) for cell in trials.cells}) > 1
    amounts = [Column("seeds", "amount")] if differing else []
    own = " Cells that lack seeds are compared by their own." if lacks_seeds(trials) else ""
    return Table(
        name=name,
        title=f"Comparison of sweep {trials.sweep}",
        caption=f"{setting(trials)} {_marks(trials, resampling, metrics)}{own} {made_by(trials)}",
        columns=(
            *cell_columns(trials),
            *amounts,
            *(Column(metric, "metric") for metric in metrics),
            *(Column(cost, "amount") for cost in costs),
        ),
        blocks=tuple(map(tuple, blocks.values())),
        notes=(
            *resampling.notes,
            *(f"missing: {what}" for what in trials.missing),
            *(f"left out: {what}" for what in trials.pruned),
        ),
    )


def cell_line(cell: Cell) -> Line:
    """Entries of a cell's factors and of its name."""
    return {name: Entry(value) for name, value in (cell.factors | {"model": cell.name}).items()}


def cell_columns(trials: Trials) -> list[Column]:
    """What tells cells apart: varying factors, the model, and its regulariser ("none" says something too)."""
    # The model's name has the method, the draws and the shots, and says whether it is a soup
    told = {"method", "draws", "regularizers"}
    if {"probs", "logits"} - {cell.factors["combine"] for cell in trials.cells if cell.members}:
        told.add("combine")
    if len({c.factors["init"] for c in trials.cells if c.members and c.factors["method"] != IN_CONTEXT}) < 2:
        told.add("init")
    shown = [f for f in trials.varying if f not in told]
    hidden = [f for f in FACTORS if f not in ("seed", "regularizers", *shown)]
    return [
        *(Column(f, "data") for f in hidden),
        *(Column(f, "text") for f in [*shown, "model", "regularizers"]),
    ]


def _marks(trials: Trials, resampling: Resampling, metrics: Sequence[str]) -> str:
    """What the marks of the metrics say, and of which they are without a test."""
    groups = trials.by_test_set().values()
    groups = [cells for cells in groups if any(resampling.has(cells, metric) for metric in metrics)]
    if not groups:
        return UNTESTED

    def is_untested(metric: str, cells: Sequence[Cell]) -> bool:
        return not resampling.has(cells, metric) and any(cell.over_seeds(metric) for cell in cells)

    directed = [metric for metric in metrics if direction(metric) != "none"]
    untested = [title(m) for m in directed if any(is_untested(m, cells) for cells in groups)]
    where = " on every test set" if len(groups) > 1 else ""
    lacking = f" Not tested{where}, so only the best in bold: {', '.join(untested)}." if untested else ""
    return TESTED.format(resampling.size) + lacking


def _verdicts(cells: Sequence[Cell], metric: str, resampling: Resampling) -> dict[Cell, Verdict]:
    """Of the cells of one test set; where they were not resampled, the best value alone."""
    if direction(metric) == "none":
        return {}
    found = resampling.verdicts(cells, metric)
    if found:
        return found
    values = {cell: over.mean for cell in cells if (over := cell.over_seeds(metric))}
    best = (min if direction(metric) == "lower" else max)(values.values(), default=None)
    return {cell: "best" for cell, value in values.items() if value == best}


def mean_entry(cell: Cell, column: str, verdict: Verdict | None = None) -> Entry:
    """Mean and standard error over the cell's seeds."""
    found = cell.over_seeds(column)
    return Entry(found.mean, found.stderr, verdict) if found else Entry(None)


def setting(trials: Trials) -> str:
    """Sentences for a caption: sweep, settings that never vary, numbers of examples and seeds."""
    settings = ", ".join(f"{f}={v}" for f, v in trials.constant.items() if f != "regularizers")
    examples = sorted({row["num_examples"] for row in trials.rows})
    seeds = sorted({len(cell.rows) for cell in trials.cells if cell.members})
    errors = "; mean ± standard error over seeds" if max(seeds, default=0) > 1 else ""
    sizes = f"{_either(examples)} test examples, {_either(seeds) or 0} seed{'' if seeds == [1] else 's'}"
    return f"Sweep {trials.sweep}: {settings}. {sizes}{errors}."


def lacks_seeds(trials: Trials) -> bool:
    """Whether trained cells have different seeds."""
    return len({tuple(row["seed"] for row in cell.rows) for cell in trials.cells if cell.members}) > 1


def _either(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))


def made_by(trials: Trials) -> str:
    """The command that made the rows, and its commit."""
    record = provenance(trials.rows[0])
    command, commit = record.get("command", "unknown command"), record.get("commit", "unknown")
    return f"Made by `{command}` at commit {commit}."
