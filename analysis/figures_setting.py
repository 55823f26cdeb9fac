"""Figures of a metric against one setting that an axis varied: the rank, a learning rate, the gain of an
initialisation, a regulariser's strength."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter

from analysis.cells import Cell
from analysis.columns import title
from analysis.data import Trials
from analysis.plotting import MAX_LINES, Plot, axes_of, backbone_line, legend_above, look, slug, styled

FOLLOWS = {"rank": ("alpha",)}  # alpha / rank is usually fixed, so alpha is not a separate setting


def numeric_settings(trials: Trials) -> list[str]:
    """Settings with three or more numbers, such as "rank" or "KL beta"; not the number of members."""
    found: dict[str, set[Any]] = {}
    for cell in trials.cells:
        for name, value in cell.settings.items():
            if cell.members and name != "members" and isinstance(value, (int, float)):
                found.setdefault(name, set()).add(value)
    followers = {f for name in found for f in FOLLOWS.get(name, ())}
    return [name for name, values in found.items() if len(values) > 2 and name not in followers]


@styled
def metric_against_setting(trials: Trials, setting: str, metric: str) -> list[Plot]:
    """A metric against a setting, one line per ensemble size and whatever else varies; by test set.

    A cell that differs from all others in something else is on no line and is left out; lines that do not fit
    go to further figures. Points are estimates, bars standard errors over trainings. For a regulariser's
    strength, dotted lines are the same ensembles without any regulariser.
    """
    plots = []
    groups = trials.by_test_set()
    for cells in groups.values():
        lines = _lines(cells, setting)
        if not any(len(line) > 2 for line in lines.values()):
            continue
        labels = list(lines)
        for part, start in enumerate(range(0, len(labels), MAX_LINES), start=1):
            drawn = {label: lines[label] for label in labels[start : start + MAX_LINES]}
            words = [cells[0].factors["task"]] if len(groups) > 1 else []
            words += [f"part {part}"] if len(labels) > MAX_LINES else []
            plots.append(_figure(trials, cells, drawn, setting, metric, ", ".join(words)))
    return plots


def _figure(
    trials: Trials, cells: Sequence[Cell], lines: dict[str, list[Cell]], setting: str, metric: str, label: str
) -> Plot:
    figure, axes = axes_of()
    for number, (name, line) in enumerate(lines.items()):
        _draw(axes, trials, line, setting, metric, label=name, **look(number))
        of_regulariser = line[-1].regularised and setting not in line[-1].factors
        plain = _unregularised(cells, line[-1]) if of_regulariser else None
        if plain and (found := trials.estimates.of(plain, metric)):
            axes.axhline(found.mean, color=look(number)["color"], linestyle=":", linewidth=0.8)
    zero_shot = next((cell for cell in cells if not cell.members), None)
    if zero_shot and (found := trials.estimates.of(zero_shot, metric)):
        backbone_line(axes, found.mean)
    values = sorted({cell.settings[setting] for line in lines.values() for cell in line})
    _scale(axes, values)
    axes.set(xlabel=title(setting), ylabel=f"{title(metric)} (lower is better)")
    legend_above(figure, axes)
    caption = (
        f"{title(metric)} against {title(setting)}{f' ({label})' if label else ''}; bars: standard error "
        "over trainings; dotted: without a regulariser."
    )
    return Plot(f"{metric}{slug(setting)}{slug(label)}", caption, figure)


def _lines(cells: Sequence[Cell], setting: str) -> dict[str, list[Cell]]:
    """Lines of two or more cells that have the setting, by the values of the other settings in which the
    lines differ."""
    inside = [cell for cell in cells if cell.members and setting in cell.settings]
    names = dict.fromkeys(name for cell in inside for name in cell.settings)
    others = [n for n in names if n not in (setting, *FOLLOWS.get(setting, ()))]
    lines: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in sorted(inside, key=lambda cell: cell.settings[setting]):
        lines.setdefault(tuple(cell.settings.get(name, 0) for name in others), []).append(cell)
    kept = {values: line for values, line in lines.items() if len(line) > 1}
    differing = [n for place, n in enumerate(others) if len({values[place] for values in kept}) > 1]
    told = [n for n in differing if not any(n in FOLLOWS.get(leader, ()) for leader in differing)]
    return {
        ", ".join(_words(name, line[0].settings.get(name, 0)) for name in told) or "all": line
        for line in kept.values()
    }


def _words(name: str, value: Any) -> str:
    if name == "members":
        return f"M = {value}"
    return value if isinstance(value, str) else f"{name} {value:g}"


def _unregularised(cells: Sequence[Cell], cell: Cell) -> Cell | None:
    wanted = cell.factors | {"regularizers": "none"}
    return next((c for c in cells if c.factors == wanted), None)


def _draw(axes: Axes, trials: Trials, line: Sequence[Cell], setting: str, metric: str, **style: Any) -> None:
    points = [(cell.settings[setting], over) for cell in line if (over := trials.estimates.of(cell, metric))]
    bars = [np.nan if over.stderr is None else over.stderr for _, over in points]
    axes.errorbar([x for x, _ in points], [over.mean for _, over in points], bars, capsize=2, **style)


def _scale(axes: Axes, values: Sequence[float]) -> None:
    if values[0] > 0 and values[-1] / values[0] >= 8:
        axes.set_xscale("log")
        axes.xaxis.set(minor_locator=NullLocator(), minor_formatter=NullFormatter())
    axes.xaxis.set(major_locator=FixedLocator(values), major_formatter=ScalarFormatter())
