"""Figures across the cells of a sweep: diversity against gain, quality against cost, two factors at a time."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.columns import title
from analysis.data import Cell, Row, Trials
from analysis.plotting import (
    COLUMN_INCHES,
    MAX_LINES,
    Plot,
    backbone_line,
    legend_above,
    look,
    slug,
    styled,
)

DIVERSITY = ("disagreement", "mutual_information")
COSTS = ("train_tokens", "forwards_per_prediction")
QUALITY = "ensemble_nll"


def sweep_figures(trials: Trials) -> list[Plot]:
    """Diversity against gain over all trials, quality against cost for each test set, and heat maps."""
    return [*diversity_against_gain(trials), *quality_against_cost(trials), *heat_maps(trials)]


# Diversity -------------------------------------------------------------------------------------------------


@styled
def diversity_against_gain(trials: Trials) -> list[Plot]:
    """Gain of each ensemble's NLL over its mean member against its diversity; none for fewer than three trials.

    Trials that share members are not independent: the correlation describes, it tests nothing.
    """
    rows = [row for row in trials.rows if row["members"] > 1 and np.isfinite(gain(row))]
    if len(rows) < 3:
        return []
    figure = Figure((COLUMN_INCHES, 2.1), layout="constrained")
    grid = figure.subplots(1, len(DIVERSITY), sharey=True)
    for axes, diversity in zip(grid, DIVERSITY):
        _scatter(axes, rows, diversity)
        axes.set_title(
            correlation_text([row[diversity] for row in rows], [gain(row) for row in rows]), fontsize=7
        )
        axes.set_xlabel(title(diversity))
    grid[0].set_ylabel("gain in NLL over mean member")
    legend_above(figure, grid[0])
    caption = (
        f"Diversity of {len(rows)} ensembles against what they gain over their mean member: mean member's NLL minus "
        "NLL, in nats. r: Pearson's, ρ: Spearman's correlation; ensembles that share members are not independent."
    )
    return [Plot("diversity-gain", caption, figure)]


def gain(row: Row) -> float:
    """What averaging gains over the mean member, in nats; with the "probs" rule never below 0 (Jensen)."""
    return row["mean_member_nll"] - row["ensemble_nll"]


def correlation_text(x: Sequence[float], y: Sequence[float]) -> str:
    """Pearson's and Spearman's correlation, or why there is none."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return "no correlation: constant"
    return f"r = {scipy.stats.pearsonr(x, y).statistic:.2f}, ρ = {scipy.stats.spearmanr(x, y).statistic:.2f}"


def _scatter(axes: Axes, rows: Sequence[Row], diversity: str) -> None:
    for number, (label, style) in enumerate(_groups(rows).items()):
        inside = [row for row in rows if row["regularizers"] == label or label == "trials"]
        points = [(row[diversity], gain(row)) for row in inside]
        axes.plot(*np.array(points).T, label=label, **(style | {"linestyle": "", "zorder": 3 - 0.1 * number}))


def _groups(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """A marker for each regulariser, or one for all where they are too many to tell apart."""
    labels = list(dict.fromkeys(row["regularizers"] for row in rows))
    names = labels if len(labels) <= MAX_LINES else ["trials"]
    return {label: look(number) for number, label in enumerate(names)}


# Cost ------------------------------------------------------------------------------------------------------


@styled
def quality_against_cost(trials: Trials) -> list[Plot]:
    """NLL against training tokens and against forwards per prediction, with the Pareto front; by test set."""
    plots = []
    groups = {key: [c for c in cells if c.members] for key, cells in trials.by_test_set().items()}
    for cells in groups.values():
        label = cells[0].factors["task"] if len(groups) > 1 else ""
        figure = Figure((COLUMN_INCHES, 2.2), layout="constrained")
        grid = figure.subplots(1, len(COSTS), sharey=True)
        for axes, cost in zip(grid, COSTS):
            _cost_axes(axes, cells, cost)
        for cell in trials.by_test_set()[cells[0].test_set]:
            if not cell.members and (found := cell.over_seeds(QUALITY)):
                for axes in grid:
                    backbone_line(axes, found.mean)
                break
        grid[0].set_ylabel(f"{title(QUALITY)} (lower is better)")
        legend_above(figure, grid[0])
        caption = (
            f"{title(QUALITY)} against what it costs{f' ({label})' if label else ''}; numbers: members M. The line is "
            "the Pareto front: no other cell is as cheap and as good."
        )
        plots.append(Plot(f"cost{slug(label)}", caption, figure))
    return plots


def _cost_axes(axes: Axes, cells: Sequence[Cell], cost: str) -> None:
    points = [
        (c, x.mean, y.mean) for c in cells if (x := c.over_seeds(cost)) and (y := c.over_seeds(QUALITY))
    ]
    rows = [cell.rows[0] for cell in cells]
    for label, style in _groups(rows).items():
        inside = [(x, y) for c, x, y in points if c.factors["regularizers"] == label or label == "trials"]
        axes.plot(*np.array(inside).T, label=label, **(style | {"linestyle": ""}))
    for cell, x, y in points:
        axes.annotate(str(cell.members), (x, y), (2.5, 2.5), textcoords="offset points", fontsize=5)
    on_front = [points[i][1:] for i in pareto_front([(x, y) for _, x, y in points])]
    axes.step(*np.array(on_front).T, where="post", color="black", linewidth=0.7, zorder=1)
    axes.set(xscale="log", xlabel=title(cost))


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the points that no other is at least as low as in both coordinates, by rising first one.

    Of equal points the first counts.
    """
    front: list[int] = []
    best = float("inf")
    for place in sorted(range(len(points)), key=lambda i: (points[i], i)):
        if points[place][1] < best:
            front.append(place)
            best = points[place][1]
    return front


# Heat maps -------------------------------------------------------------------------------------------------


@styled
def heat_maps(trials: Trials) -> list[Plot]:
    """NLL over the two numeric factors with the most values, for each setting of the others.

    Numeric are rank, learning rate, members and the like, and a regulariser's strength from three values on
    (0 where it is absent). Nothing where fewer than two vary.
    """
    settings = {cell: numeric_settings(cell) | _other_settings(cell) for cell in trials.cells if cell.members}
    names = dict.fromkeys(name for found in settings.values() for name in found)
    values = {n: list(dict.fromkeys(found.get(n, 0) for found in settings.values())) for n in names}
    fewest = {n: 3 if "." in n else 2 for n in names}
    numeric = [
        n
        for n in names
        if len(values[n]) >= fewest[n] and all(isinstance(v, (int, float)) for v in values[n])
    ]
    if len(numeric) < 2:
        return []
    down, across = sorted(numeric, key=lambda n: -len(values[n]))[:2]
    plots = []
    panels: dict[tuple[Any, ...], list[Cell]] = {}
    others = [n for n in names if n not in (down, across) and len(values[n]) > 1]
    for cell, found in settings.items():
        panels.setdefault(tuple(found.get(n, 0) for n in others), []).append(cell)
    for key, cells in panels.items():
        grid = {(settings[c].get(down, 0), settings[c].get(across, 0)): c for c in cells}
        if len({d for d, _ in grid}) > 1 and len({a for _, a in grid}) > 1:
            label = ", ".join(v if isinstance(v, str) else f"{n} {v:g}" for n, v in zip(others, key))
            plots.append(_heat_map(grid, down, across, label))
    return plots


def numeric_settings(cell: Cell) -> dict[str, float]:
    """Factors with numbers, and each regulariser's strength as `KL.beta`."""
    numbers = {name: value for name, value in cell.factors.items() if isinstance(value, (int, float))}
    for regularizer in json.loads(cell.rows[0]["recipe"])["regularizers"]:
        strength = next(name for name, value in regularizer.items() if isinstance(value, (int, float)))
        numbers[f"{regularizer['type']}.{strength}"] = regularizer[strength]
    return numbers


def _other_settings(cell: Cell) -> dict[str, str]:
    return {n: v for n, v in cell.factors.items() if isinstance(v, str) and n != "regularizers"}


def _heat_map(grid: dict[tuple[float, float], Cell], down: str, across: str, label: str) -> Plot:
    rows, columns = sorted({d for d, _ in grid}), sorted({a for _, a in grid})
    value = np.full((len(rows), len(columns)), np.nan)
    for (d, a), cell in grid.items():
        found = cell.over_seeds(QUALITY)
        value[rows.index(d), columns.index(a)] = found.mean if found else np.nan
    figure = Figure((COLUMN_INCHES, 0.9 + 0.28 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(value, cmap="Greys", aspect="auto")
    for r, c in itertools.product(range(len(rows)), range(len(columns))):
        if np.isfinite(value[r, c]):
            dark = image.norm(value[r, c]) > 0.5
            axes.text(
                c, r, f"{value[r, c]:.3f}", ha="center", va="center", color="white" if dark else "black"
            )
    axes.set_yticks(range(len(rows)), [f"{v:g}" for v in rows])
    axes.set_xticks(range(len(columns)), [f"{v:g}" for v in columns])
    axes.set(xlabel=title(across), ylabel=title(down))
    axes.grid(False)
    suffix = f" ({label})" if label else ""
    caption = f"{title(QUALITY)} over {title(down)} and {title(across)}{suffix}; lighter is better."
    return Plot(f"heat-{slug(down)[1:]}-{slug(across)[1:]}{slug(label)}", caption, figure)
