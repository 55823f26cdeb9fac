"""Figures of a metric against one setting that an axis varied: the rank, a learning rate, a regulariser's
strength."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter

from analysis.columns import title
from analysis.data import Cell, Trials
from analysis.plotting import Plot, axes_of, backbone_line, legend_above, look, slug, styled

FOLLOWS = {"rank": ("alpha",)}  # alpha / rank is usually held, and alpha then no setting of its own


def numeric_settings(trials: Trials) -> list[str]:
    """Settings with three or more different numbers, "rank" or "KL beta" say; not the number of members."""
    found: dict[str, set[Any]] = {}
    for cell in trials.cells:
        for name, value in cell.settings.items():
            if cell.members and name != "members" and isinstance(value, (int, float)):
                found.setdefault(name, set()).add(value)
    followers = {f for name in found for f in FOLLOWS.get(name, ())}
    return [name for name, values in found.items() if len(values) > 2 and name not in followers]


@styled
def metric_against_setting(trials: Trials, setting: str, metric: str) -> list[Plot]:
    """A metric against a setting, one line for each ensemble size and what else varies; by test set.

    Points are means over seeds, bars standard errors. Of a regulariser's strength the dotted lines are the
    same ensembles without any regulariser.
    """
    plots = []
    groups = trials.by_test_set()
    for cells in groups.values():
        lines = _lines(cells, setting)
        if not any(len(line) > 2 for line in lines.values()):
            continue
        figure, axes = axes_of()
        for number, (label, line) in enumerate(lines.items()):
            _draw(axes, line, setting, metric, label=label, **look(number))
            plain = _unregularised(cells, line[0]) if setting not in line[0].factors else None
            if plain and (found := plain.over_seeds(metric)):
                axes.axhline(found.mean, color=look(number)["color"], linestyle=":", linewidth=0.8)
        zero_shot = next((cell for cell in cells if not cell.members), None)
        if zero_shot and (found := zero_shot.over_seeds(metric)):
            backbone_line(axes, found.mean)
        values = sorted({cell.settings[setting] for line in lines.values() for cell in line})
        _scale(axes, values)
        axes.set(xlabel=title(setting), ylabel=f"{title(metric)} (lower is better)")
        legend_above(figure, axes)
        task = f" ({cells[0].factors['task']})" if len(groups) > 1 else ""
        caption = (
            f"{title(metric)} against {title(setting)}{task}; bars: standard error over seeds; dotted: "
            "without a regulariser."
        )
        plots.append(Plot(f"{metric}{slug(setting)}{slug(task)}", caption, figure))
    return plots


def _lines(cells: Sequence[Cell], setting: str) -> dict[str, list[Cell]]:
    """Cells that have the setting, by the values of all other settings that vary among them."""
    inside = [cell for cell in cells if cell.members and setting in cell.settings]
    names = dict.fromkeys(name for cell in inside for name in cell.settings)
    others = [n for n in names if n not in (setting, *FOLLOWS.get(setting, ()))]
    varying = [n for n in others if len({cell.settings.get(n) for cell in inside}) > 1]
    lines: dict[str, list[Cell]] = {}
    for cell in sorted(inside, key=lambda cell: cell.settings[setting]):
        label = ", ".join(_words(name, cell.settings.get(name, 0)) for name in varying) or "all"
        lines.setdefault(label, []).append(cell)
    return lines


def _words(name: str, value: Any) -> str:
    if name == "members":
        return f"M = {value}"
    return value if isinstance(value, str) else f"{name} {value:g}"


def _unregularised(cells: Sequence[Cell], cell: Cell) -> Cell | None:
    wanted = cell.factors | {"regularizers": "none"}
    return next((c for c in cells if c.factors == wanted), None)


def _draw(axes: Axes, line: Sequence[Cell], setting: str, metric: str, **style: Any) -> None:
    points = [(cell.settings[setting], over) for cell in line if (over := cell.over_seeds(metric))]
    bars = [np.nan if over.stderr is None else over.stderr for _, over in points]
    axes.errorbar([x for x, _ in points], [over.mean for _, over in points], bars, capsize=2, **style)


def _scale(axes: Axes, values: Sequence[float]) -> None:
    if values[0] > 0 and values[-1] / values[0] >= 8:
        axes.set_xscale("log")
        axes.xaxis.set(minor_locator=NullLocator(), minor_formatter=NullFormatter())
    axes.xaxis.set(major_locator=FixedLocator(values), major_formatter=ScalarFormatter())
