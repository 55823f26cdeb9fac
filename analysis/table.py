"""The comparison table of a sweep: one line for each cell, with its metrics, their certainty and its cost.

    print(markdown(comparison(load_trials("lorae-results", "demo"))))

Which factors are columns is found from the rows; those that never vary are named once, in the caption.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analysis.cells import PROMPTED, Cell
from analysis.columns import COST_COLUMNS, Column, default_metrics, direction, title
from analysis.data import Trials
from analysis.pooling import SQUARES
from analysis.rows import provenance
from analysis.significance import ALPHA, Difference, Estimate, Mark
from analysis.tuned import tuning_notes, tuning_tokens
from analysis.undefined import undefined_notes
from lorae.results import FACTORS

MARKS = (
    "Best in bold; ≈: equivalent to it within the margin; ?: undecided; unmarked: worse. By simultaneous "
    f"{1 - ALPHA:.0%} intervals over test examples and trainings, one family of all pairs of each column; "
    "margins: {margins}. ±: standard error over trainings."
)
THESE = "†: one ensemble is known, so its numbers hold for these very members and are not compared."
NO_VERDICT = (
    "for verdicts on † train more: `--set seed=0,1,2`, or more `members=` than the largest ensemble has"
)


@dataclass(frozen=True)
class Entry:
    """A number or text, None where undefined.

    Args:
        stderr: its standard error over trainings.
        mark: how it compares with the best of its column.
        std: its standard deviation over folds.
        is_of_these: it holds for these very members: no training beside them was seen.
    """

    value: Any
    stderr: float | None = None
    mark: Mark | None = None
    std: float | None = None
    is_of_these: bool = False


Line = dict[str, Entry | Difference]  # column name -> entry


@dataclass(frozen=True)
class Table:
    """Blocks of lines; values are compared within a block only. Rendered by `analysis.render`.

    Args:
        sweep: part of the label in LaTeX.
    """

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    blocks: tuple[tuple[Line, ...], ...]
    notes: tuple[str, ...] = ()
    sweep: str = ""

    def __str__(self) -> str:
        """Markdown."""
        from analysis.render import markdown

        return markdown(self)

    def _repr_html_(self) -> str:
        """For a notebook."""
        from analysis.page import notebook_html

        return notebook_html(self)


def comparison(
    trials: Trials,
    metrics: Sequence[str] | None = None,
    costs: Sequence[str] = COST_COLUMNS,
    name: str = "table",
) -> Table:
    """Cells in blocks of one test set; in tested columns each is marked by how it compares with the best.

    Args:
        metrics: columns of trials.parquet; None = `default_metrics`.
        costs: the same, of its cost columns.
        name: of the table's files.
    """
    metrics = default_metrics(trials) if metrics is None else metrics
    blocks: dict[str, list[Line]] = {}
    for test_set, cells in trials.by_test_set().items():
        marks = {metric: _marks(trials, cells, metric) for metric in metrics}
        for cell in cells:
            line = cell_line(cell) | {"trainings": Entry(num_trainings(trials, cell))}
            line |= {metric: entry(trials, cell, metric, marks[metric].get(cell)) for metric in metrics}
            line |= {cost: entry(trials, cell, cost) for cost in costs}
            line["tuning_tokens"] = Entry(tuning_tokens(cell))
            blocks.setdefault(test_set, []).append(line)
    return Table(
        name=name,
        title=f"Comparison of sweep {trials.sweep}",
        caption=f"{setting(trials)} {_marks_text(trials, metrics)} {made_by(trials)}",
        columns=(
            *cell_columns(trials),
            Column("trainings", "amount"),
            *(Column(metric, "metric") for metric in metrics),
            *(Column(cost, "amount") for cost in costs),
            *([Column("tuning_tokens", "amount")] if costs and any(map(tuning_tokens, trials.cells)) else []),
        ),
        blocks=tuple(map(tuple, blocks.values())),
        notes=(
            *tuning_notes(trials.cells),
            *notes(trials, trials.cells),
            *undefined_notes(trials, trials.cells, metrics),
            *(f"left out: {what}" for what in trials.pruned),
        ),
        sweep=trials.sweep,
    )


def notes(trials: Trials, cells: Sequence[Cell]) -> tuple[str, ...]:
    """What must be known beside the numbers of some cells."""
    found = [NO_VERDICT] if any(is_of_these(trials, cell) for cell in cells) else []
    flags = {flag: cell for cell in cells if (flag := trials.estimates.flags.get(cell))}
    found += trials.estimates.lacking
    found += [f"no temperature-scaled metrics of {cell.name}: {flag}" for flag, cell in flags.items()]
    scaled_or_not = [trials.estimates.of(cell, name) for cell in cells for name in SQUARES]
    if any(of and of.root and of.value < 0 for of in scaled_or_not):
        found.append("a debiased CE of 0.000: these examples show none, its square is at or below 0")
    if any(
        of and math.isinf(of.value) for cell in cells if (of := trials.estimates.of(cell, "ensemble_nll"))
    ):
        found.append("an NLL of ∞: a gold class has probability 0")
    found += dict.fromkeys(draws.note for cell in cells if (draws := cell.draws) and draws.note)
    return (*found, *(f"missing: {what}" for what in trials.missing))


def is_of_these(trials: Trials, cell: Cell) -> bool:
    """Whether a cell's numbers hold for its very members: nothing says how much others would differ."""
    found = trials.estimates.of(cell, "acc")
    return found is not None and found.is_of_these


def num_trainings(trials: Trials, cell: Cell) -> int:
    """Distinct members that a cell's numbers come from."""
    return trials.estimates.num_trainings(cell)


def cell_line(cell: Cell) -> Line:
    """Entries of a cell's factors and of its name."""
    return {name: Entry(value) for name, value in (cell.factors | {"model": cell.name}).items()}


def cell_columns(trials: Trials) -> list[Column]:
    """What tells cells apart: varying factors, the model, and its regulariser ("none" says something too)."""
    # The model's name has the method, the draws and the shots, and says whether it is a soup
    told = {"method", "draws", "regularizers"}
    if {"probs", "logits"} - {cell.factors["combine"] for cell in trials.cells if cell.members}:
        told.add("combine")
    trained = (c for c in trials.cells if c.members and c.factors["method"] not in PROMPTED)
    if len({cell.factors["init"] for cell in trained}) < 2:
        told.add("init")
    shown = [f for f in trials.varying if f not in told]
    hidden = [f for f in FACTORS if f not in ("seed", "regularizers", *shown)]
    return [
        *(Column(f, "data") for f in hidden),
        *(Column(f, "text") for f in [*shown, "model", "regularizers"]),
    ]


def _marks_text(trials: Trials, metrics: Sequence[str]) -> str:
    """What the marks say, and which columns have none."""
    tested = [metric for metric in metrics if trials.estimates.is_tested(metric)]
    if not tested:
        return "Not tested."
    untested = [title(m) for m in metrics if m not in tested and direction(m) != "none"]
    lacking = f" Not tested: {', '.join(untested)}." if untested else ""
    these = f" {THESE}" if any(is_of_these(trials, cell) for cell in trials.cells) else ""
    return MARKS.format(margins=margins_text(trials, tested)) + these + lacking


def margins_text(trials: Trials, metrics: Sequence[str]) -> str:
    """The margin of each tested column, such as "accuracy 0.01, NLL 0.005"."""
    margins = {title(m).removesuffix(" T-scaled"): f"{trials.estimates.margin(m):g}" for m in metrics}
    return ", ".join(f"{name} {value}" for name, value in margins.items())


def _marks(trials: Trials, cells: Sequence[Cell], metric: str) -> dict[Cell, Mark]:
    """Of the cells of one test set."""
    if direction(metric) == "none" or not trials.estimates.is_tested(metric):
        return {}
    return trials.estimates.family(cells, metric).marks(direction(metric))


def entry(trials: Trials, cell: Cell, column: str, mark: Mark | None = None) -> Entry:
    """A cell's estimate of a column, with its standard error over trainings."""
    found: Estimate | None = trials.estimates.of(cell, column)
    if found is None:
        return Entry(None)
    is_compared = found.is_comparable or math.isinf(found.value) or not trials.estimates.is_tested(column)
    return Entry(found.mean, found.stderr, mark, is_of_these=not is_compared)


def setting(trials: Trials) -> str:
    """Sentences for a caption: sweep, settings that never vary, numbers of examples and seeds."""
    settings = ", ".join(f"{f}={v}" for f, v in trials.constant.items() if f != "regularizers")
    examples = sorted({row["num_examples"] for row in trials.rows})
    seeds = sorted({len(cell.rows) for cell in trials.cells if cell.members})
    sizes = f"{_either(examples)} test examples, {_either(seeds) or 0} seed{'' if seeds == [1] else 's'}"
    means = (
        "A row of M members is the mean over the ensembles of M in each pool of trained members, then over"
    )
    return f"Sweep {trials.sweep}: {settings}. {sizes}. {means} seeds."


def _either(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))


def made_by(trials: Trials) -> str:
    """The command that made the rows, and its commit."""
    record = provenance(trials.rows[0])
    command, commit = record.get("command", "unknown command"), record.get("commit", "unknown")
    return f"Made by `{command}` at commit {commit}."
