"""The NLL against the ensemble size with the power law through it, beyond the sizes that were trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from analysis.columns import title
from analysis.curves import LAW_METRIC, REACH, Curve
from analysis.data import Trials
from analysis.plotting import Panel, Plot, axes_of, legend_above, look, members_axis, panels, styled


def size_figures(trials: Trials, found: Sequence[Curve]) -> list[Plot]:
    """A figure for each setting that has a law."""
    by_recipe = {curve.cell.recipe: curve for curve in found if not curve.missing}
    plots = []
    for panel in panels(trials):
        lines = {label: by_recipe.get(cells[0].recipe) for label, cells in panel.lines.items()}
        if known := {label: curve for label, curve in lines.items() if curve}:
            plots.append(_figure(panel, known))
    return plots


@styled
def _figure(panel: Panel, lines: Mapping[str, Curve]) -> Plot:
    figure, axes = axes_of()
    for number, (label, curve) in enumerate(lines.items()):
        _draw(axes, curve, label or "LoRA", number)
    axes.set_ylabel(f"{title(LAW_METRIC)} (lower is better)")
    members_axis(axes, (m for c in lines.values() for m in (1, 2, c.pool_size, 2 * c.pool_size, c.reach)))
    legend_above(figure, axes)
    caption = (
        f"{title(LAW_METRIC)} against the number of members{panel.suffix}, mean over the ensembles of each "
        f"pool; bars: standard error over trainings. Lines: power law, up to {REACH} times the pool; bands: "
        "its 95 % interval over new trainings, on these test examples."
    )
    return Plot(f"size{panel.slug}", caption, figure)


def _draw(axes: Axes, curve: Curve, label: str, number: int) -> None:
    """Measured sizes with their bars, the law as a line, its interval as a band."""
    style = look(number)
    points = curve.points.values()
    bars = [np.nan if point.stderr is None else point.stderr for point in points]
    measured = style | {"linestyle": "", "capsize": 2, "label": label}
    axes.errorbar(list(curve.points), [point.mean for point in points], bars, **measured)
    sizes = np.unique(np.geomspace(1, curve.reach, 60).round()).astype(int).tolist()
    (line,) = axes.plot(sizes, [curve.law.at(size) for size in sizes])
    line.set(color=style["color"], linestyle=style["linestyle"])
    ends = [interval for size in sizes if (interval := curve.interval(size))]
    if ends:
        lower, upper = zip(*ends, strict=True)
        axes.fill_between(sizes, lower, upper, color=style["color"], alpha=0.15, linewidth=0)
