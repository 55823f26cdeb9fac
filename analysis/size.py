"""How many members are worth training? What the next member gains by the recipe's law, and what it costs.

lorae size lorae-results --sweep members --margin 0.001
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from analysis.cells import Cell
from analysis.columns import Column, ood_columns
from analysis.curves import LAW_METRIC, MARGIN, REACH, Curve, curves
from analysis.data import Trials, load_trials
from analysis.figures_size import size_figures
from analysis.plotting import save
from analysis.render import markdown, save_table
from analysis.significance import Difference
from analysis.table import Entry, Line, Table, cell_columns, cell_line, entry, made_by, setting

DECIMALS = 4  # for NLLs that differ by no more than the margin
LAW_COLUMNS = (
    Column("law", "text"),
    *(Column(name, "data") for name in ("c", "b", "a")),
    Column("next_gain", "estimate", DECIMALS),
    Column("worth", "text"),
)
NOTHING: Line = {column.name: Entry(None) for column in LAW_COLUMNS}


def write_sizes(
    storage: str, sweep: str, margin: float = MARGIN, out: Path | None = None, allow_missing: bool = False
) -> str:
    """The tables of a sweep as Markdown; also writes their files and the figures into `out`.

    Raises:
        ValueError: as `load_trials`, or a margin that is not above 0.
    """
    check_margin(margin)
    trials = load_trials(storage, sweep, allow_missing).with_stored_ood()
    found = curves(trials, margin)
    tables = [recipes(trials, found, margin), sizes(trials, found)]
    if out is not None:
        for table in tables:
            save_table(table, out)
        for plot in size_figures(trials, found):
            save(plot, out)
    return "\n".join(markdown(table) for table in tables)


def check_margin(margin: float) -> None:
    """Refuse a margin that is not above 0, or infinite.

    Raises:
        ValueError: what it must be.
    """
    if not 0 < margin < math.inf:
        raise ValueError(
            f"margin {margin:g}: must be > 0 and finite, the gain in nats below which one more member is not "
            f"worth training, such as {MARGIN}"
        )


# Recipes ---------------------------------------------------------------------------------------------------


def recipes(trials: Trials, found: Sequence[Curve], margin: float) -> Table:
    """A line for each recipe: its law, what the next member gains and costs, how many are worth training."""
    return Table(
        name="size",
        title=f"Members worth training in sweep {trials.sweep}",
        caption=(
            f"{setting(trials)} Law: c + b M^-a (arXiv:2007.08483) through the temperature-scaled NLL of all "
            "sizes up to the pool's. Gain of one more: how much lower the law is with a member more than the "
            "pool has, beside what a member costs. Worth training: the size at which one more gains less "
            f"than {margin:g} nats, by the law (by the ends of the gain's interval), up to {REACH} times the "
            "pool. Intervals: 95 %, over new trainings and new test examples, if the law holds. "
            f"{made_by(trials)}"
        ),
        columns=(
            *recipe_columns(trials),
            *(Column(name, "amount") for name in ("pool", "trainings", "member_tokens", "member_flops")),
            *LAW_COLUMNS,
        ),
        blocks=tuple(_by_test_set(found, lambda curve: [_recipe_line(trials, curve)])),
        notes=(
            *_lacking(found),
            *(f"missing: {what}" for what in trials.missing),
        ),
    )


def _recipe_line(trials: Trials, curve: Curve) -> Line:
    line = cell_line(curve.cell) | NOTHING | {"model": Entry(curve.name), "pool": Entry(curve.pool_size)}
    line |= {"trainings": Entry(trials.estimates.num_trainings(curve.cell))}
    line |= {f"member_{name}": Entry(_of_member(curve.cell, f"train_{name}")) for name in ("tokens", "flops")}
    if curve.missing:
        return line
    law = curve.law
    line |= {"law": Entry(str(law)), "c": Entry(law.c), "b": Entry(law.b), "a": Entry(law.a)}
    return line | {"next_gain": curve.gains[curve.pool_size], "worth": Entry(_worth(curve))}


def _worth(curve: Curve) -> str:
    """How many members are worth training, "5 (3 to > 20)" for a pool of five."""

    def text(size: int | None) -> str:
        return f"> {curve.reach}" if size is None else str(size)

    if curve.gains[1].lo is None:
        return text(curve.enough())
    return f"{text(curve.enough())} ({text(curve.enough('lo'))} to {text(curve.enough('hi'))})"


def _of_member(cell: Cell, cost: str) -> float | None:
    """A cost of one member, mean over the cell's rows; None if a row lacks it."""
    costs = [row.get(cost) for row in cell.rows]
    if any(cost is None for cost in costs):
        return None
    return float(np.mean([cost / row["members"] for cost, row in zip(costs, cell.rows, strict=True)]))


def _lacking(found: Sequence[Curve]) -> list[str]:
    """Why recipes have no law, each reason once."""
    names: dict[str, dict[str, None]] = {}
    for curve in found:
        names.setdefault(curve.missing, {})[curve.name] = None
    return [f"no law of {', '.join(names[why])}: {why}" for why in names if why]


# Sizes -----------------------------------------------------------------------------------------------------


def sizes(trials: Trials, found: Sequence[Curve]) -> Table:
    """A line for each recipe and size: what was measured, the law, and what one more member gains.

    Recipes with a single member have no other sizes, and no line.
    """
    metrics = ["ensemble_nll", "debiased_ce15", *ood_columns(trials)]
    return Table(
        name="size-curve",
        title=f"Ensemble sizes in sweep {trials.sweep}",
        caption=(
            f"{setting(trials)} ±: standard error over trainings. Law: [95 % interval over new trainings, on "
            "these test examples], also of sizes beyond the pool. Gain of one more: how much lower the law "
            "is with another member [95 % interval over new trainings and new test examples]. Train tokens: "
            f"of all members. {made_by(trials)}"
        ),
        columns=(
            *recipe_columns(trials),
            Column("members", "amount"),
            Column(LAW_METRIC, "metric", DECIMALS),
            Column("law_nll", "level", DECIMALS),
            Column("next_gain", "estimate", DECIMALS),
            *(Column(metric, "metric") for metric in metrics),
            Column("train_tokens", "amount"),
        ),
        blocks=tuple(
            _by_test_set(
                [curve for curve in found if curve.pool_size > 1],
                lambda curve: _size_lines(trials, curve, metrics),
            )
        ),
    )


def _size_lines(trials: Trials, curve: Curve, metrics: Sequence[str]) -> list[Line]:
    """The measured sizes, then twice the pool and `reach` by the law alone."""
    beyond = [] if curve.missing else [2 * curve.pool_size, curve.reach]
    tokens, lines = _of_member(curve.cell, "train_tokens"), []
    for size in [*curve.cells, *beyond]:
        cell = curve.cells.get(size)
        line = cell_line(curve.cell) | {"model": Entry(curve.name), "members": Entry(size)}
        line |= {m: entry(trials, cell, m) if cell else Entry(None) for m in (LAW_METRIC, *metrics)}
        line |= {"train_tokens": Entry(None if tokens is None else tokens * size)}
        lines.append(line | _law_entries(curve, size))
    return lines


def _law_entries(curve: Curve, size: int) -> Line:
    if curve.missing:
        return {"law_nll": Entry(None), "next_gain": Entry(None)}
    value, interval = curve.at(size).value, curve.interval(size)
    level = Difference(value, *interval, verdict="undecided") if interval else Difference(value)
    return {"law_nll": level, "next_gain": curve.gains[size]}


def recipe_columns(trials: Trials) -> list[Column]:
    """`cell_columns` without the size."""
    return [column for column in cell_columns(trials) if column.name != "members"]


def _by_test_set(found: Sequence[Curve], lines_of: Callable[[Curve], list[Line]]) -> list[tuple[Line, ...]]:
    """A block for each test set."""
    blocks: dict[str, list[Line]] = {}
    for curve in found:
        blocks.setdefault(curve.cell.test_set, []).extend(lines_of(curve))
    return [tuple(lines) for lines in blocks.values()]
