"""Figures across the cells of a sweep: diversity against gain, quality against cost, two factors at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import scipy.stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from analysis.cells import Cell
from analysis.columns import title
from analysis.data import Trials
from analysis.figures_setting import FOLLOWS
from analysis.gain import with_gains
from analysis.plotting import (
    COLUMN_INCHES,
    MAX_LINES,
    Plot,
    backbone_line,
    legend_above,
    look,
    method_name,
    slug,
    styled,
)
from analysis.render import amount
from analysis.rows import Row

DIVERSITY = ("disagreement", "mutual_information")
SHOWN_GAINS = {"nll_gain": "NLL", "brier_gain": "Brier", "calibration_gain": "squared CE"}
COSTS = ("train_tokens", "forwards_per_prediction")
QUALITY = "ensemble_nll"
ALL = "all"  # the label where there are too many to tell apart


# Diversity -------------------------------------------------------------------------------------------------


@styled
def diversity_against_gain(trials: Trials) -> list[Plot]:
    """Gain of each ensemble over its mean member in NLL, Brier score and calibration against its diversity;
    no figure for fewer than three ensembles.

    Trials that share members are not independent, so the correlation is a description, not a test.
    """
    gained = trials if all("nll_gain" in row for row in trials.rows) else with_gains(trials)
    rows = [row for row in gained.rows if row["nll_gain"] is not None and np.isfinite(row["nll_gain"])]
    if len(rows) < 3:
        return []
    gains = [gain for gain in SHOWN_GAINS if all(row[gain] is not None for row in rows)]
    figure = Figure((COLUMN_INCHES, 0.5 + 1.5 * len(gains)), layout="constrained")
    grid = figure.subplots(len(gains), len(DIVERSITY), sharex="col", sharey="row", squeeze=False)
    for line, gain in zip(grid, gains):
        for axes, diversity in zip(line, DIVERSITY):
            _scatter(axes, rows, diversity, gain)
            found = correlation_text([row[diversity] for row in rows], [row[gain] for row in rows])
            axes.set_title(found, fontsize=7)
        line[0].set_ylabel(f"gain in {SHOWN_GAINS[gain]}")
    for axes, diversity in zip(grid[-1], DIVERSITY):
        axes.set_xlabel(title(diversity))
    legend_above(figure, grid[0, 0])
    caption = (
        f"Diversity of {len(rows)} ensembles against what they gain over their mean member: its NLL (nats), "
        "Brier score and squared debiased calibration error minus theirs. r: Pearson's, rho: Spearman's "
        "correlation; ensembles that share members are not independent."
    )
    return [Plot("diversity-gain", caption, figure)]


def correlation_text(x: Sequence[float], y: Sequence[float]) -> str:
    """Pearson's and Spearman's correlation, or why there is none."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return "no correlation: constant"
    (_, r), _ = np.corrcoef(x, y)
    (_, rho), _ = np.corrcoef(scipy.stats.rankdata(x), scipy.stats.rankdata(y))
    return f"r = {r:.2f}, rho = {rho:.2f}"


def _scatter(axes: Axes, rows: Sequence[Row], diversity: str, gain: str) -> None:
    kind = _kind(rows)
    for label, style in _groups(map(kind, rows)).items():
        inside = [row for row in rows if label in (kind(row), ALL)]
        points = [(row[diversity], row[gain]) for row in inside]
        axes.plot([x for x, _ in points], [y for _, y in points], label=label, **_points(style))


def _kind(rows: Sequence[Row]) -> Callable[[Row], str]:
    """What a row's marker shows: its method if the rows have several, else its regulariser."""
    if len({row["method"] for row in rows}) > 1:
        return lambda row: method_name(row["method"])
    return lambda row: row["regularizers"]


def _groups(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A marker for each label, or one for all if there are too many to tell apart."""
    names = list(dict.fromkeys(labels))
    names = names if len(names) <= MAX_LINES else [ALL]
    return {label: look(number) for number, label in enumerate(names)}


def _points(style: dict[str, Any]) -> dict[str, Any]:
    return style | {"linestyle": ""}


# Cost ------------------------------------------------------------------------------------------------------


@styled
def quality_against_cost(trials: Trials) -> list[Plot]:
    """NLL against training tokens and against forwards per prediction, with the Pareto front; by test set."""
    plots = []
    groups = trials.by_test_set()
    for cells in groups.values():
        trained = [cell for cell in cells if cell.members and trials.estimates.of(cell, QUALITY)]
        if not trained:
            continue
        backbone = [of.mean for c in cells if not c.members and (of := trials.estimates.of(c, QUALITY))]
        figure = Figure((COLUMN_INCHES, 2.2), layout="constrained")
        grid = figure.subplots(1, len(COSTS), sharey=True)
        for axes, cost in zip(grid, COSTS):
            _cost_axes(axes, trials, trained, cost)
        for axes, value in itertools.product(grid, backbone[:1]):
            backbone_line(axes, value)
        grid[0].set_ylabel(f"{title(QUALITY)} (lower is better)")
        legend_above(figure, grid[0])
        task = cells[0].factors["task"] if len(groups) > 1 else ""
        caption = (
            f"{title(QUALITY)} against what it costs{f' ({task})' if task else ''}. The line is the Pareto "
            "front, where no other cell is as cheap and as good; numbers: its members M."
        )
        plots.append(Plot(f"cost{slug(cells[0].test_set) if task else ''}", caption, figure))
    return plots


def _cost_axes(axes: Axes, trials: Trials, cells: Sequence[Cell], cost: str) -> None:
    of = trials.estimates.of
    found = [(cell, of(cell, cost), of(cell, QUALITY)) for cell in cells]
    points = [(cell, x.mean, y.mean) for cell, x, y in found if x and y]
    kind = _kind([cell.rows[0] for cell, _, _ in points])
    for label, style in _groups(kind(cell.rows[0]) for cell, _, _ in points).items():
        inside = [(x, y) for cell, x, y in points if label in (kind(cell.rows[0]), ALL)]
        axes.plot([x for x, _ in inside], [y for _, y in inside], label=label, **_points(style))
    on_front = [points[place] for place in pareto_front([(x, y) for _, x, y in points])]
    for cell, x, y in on_front:
        axes.annotate(str(cell.members), (x, y), (0, -8), textcoords="offset points", fontsize=6, ha="center")
    axes.step(
        [x for _, x, _ in on_front],
        [y for _, _, y in on_front],
        where="post",
        color="black",
        lw=0.7,
        zorder=1,
    )
    costs = sorted({x for _, x, _ in points})
    if costs and costs[0] == 0:  # nothing was trained
        axes.set_xscale("symlog", linthresh=min(filter(None, costs), default=1))
    else:
        axes.set_xscale("log")
    axes.set_xlabel(title(cost))
    axes.xaxis.set(major_locator=FixedLocator(costs[:: -(-len(costs) // 4)]), minor_locator=NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: amount(value))
    axes.margins(0.15)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other point is as low as in both coordinates, by ascending first one.

    Of equal points, the first is kept.
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
    """NLL over the two numeric settings with the most values, for each choice of the others.

    Numeric settings are members, rank, learning rate and the like, and a regulariser's strength if it has
    three values (0 where it is absent). There is no map if fewer than two vary, or if the second varies only
    together with the first.
    """
    settings = {cell: cell.settings for cell in trials.cells if cell.members}
    values: dict[str, set[Any]] = {}
    for name in dict.fromkeys(name for found in settings.values() for name in found):
        values[name] = {found.get(name, 0) for found in settings.values()}
    factors = trials.cells[0].factors
    numeric = [name for name in values if len(values[name]) >= (2 if name in factors else 3)]
    numeric = [name for name in numeric if all(isinstance(v, (int, float)) for v in values[name])]
    numeric = [name for name in numeric if not any(name in FOLLOWS.get(leader, ()) for leader in numeric)]
    if len(numeric) < 2:
        return []
    down, across = sorted(numeric, key=lambda name: -len(values[name]))[:2]
    hidden = (down, across, *FOLLOWS.get(down, ()), *FOLLOWS.get(across, ()))
    others = [name for name in values if name not in hidden and len(values[name]) > 1]
    grids: dict[tuple[Any, ...], dict[tuple[float, float], list[Cell]]] = {}
    for cell, found in settings.items():
        grid = grids.setdefault(tuple(found.get(name, 0) for name in others), {})
        grid.setdefault((found.get(down, 0), found.get(across, 0)), []).append(cell)
    whole = {
        key: {place: cells[0] for place, cells in grid.items()}
        for key, grid in grids.items()
        if len(grid) > max(sides := [len({place[side] for place in grid}) for side in (0, 1)])
        and min(sides) > 1
        and all(len(cells) == 1 for cells in grid.values())  # else they differ in a setting without numbers
    }
    told = [place for place in range(len(others)) if len({key[place] for key in whole}) > 1]
    return [
        _heat_map(trials, grid, down, across, ", ".join(f"{others[place]} {key[place]}" for place in told))
        for key, grid in whole.items()
    ]


def _heat_map(
    trials: Trials, grid: dict[tuple[float, float], Cell], down: str, across: str, label: str
) -> Plot:
    rows, columns = sorted({d for d, _ in grid}), sorted({a for _, a in grid})
    value = np.full((len(rows), len(columns)), np.nan)
    for (d, a), cell in grid.items():
        if found := trials.estimates.of(cell, QUALITY):
            value[rows.index(d), columns.index(a)] = found.mean
    figure = Figure((COLUMN_INCHES, 0.9 + 0.28 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(value, cmap="Blues", aspect="auto")
    middle = (np.nanmin(value) + np.nanmax(value)) / 2
    for place in np.argwhere(np.isfinite(value)):
        colour = "white" if value[tuple(place)] > middle else "black"
        axes.text(place[1], place[0], f"{value[tuple(place)]:.3f}", ha="center", va="center", color=colour)
    axes.set_yticks(range(len(rows)), [f"{v:g}" for v in rows])
    axes.set_xticks(range(len(columns)), [f"{v:g}" for v in columns])
    axes.set(xlabel=title(across), ylabel=title(down))
    axes.grid(False)
    suffix = f" ({label})" if label else ""
    caption = f"{title(QUALITY)} over {title(down)} and {title(across)}{suffix}; lighter is better."
    return Plot(f"heat{slug(down)}{slug(across)}{slug(label)}", caption, figure)
