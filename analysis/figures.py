"""Figures of what an ensemble predicts: metrics against its size, and reliability diagrams."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter

from analysis.columns import title
from analysis.data import Cell, Trials
from analysis.data import pool as pool_of
from analysis.plotting import (
    BACKBONE,
    COLUMN_INCHES,
    Panel,
    Plot,
    axes_of,
    backbone_line,
    legend_above,
    look,
    panels,
    slug,
    styled,
)
from lorae import metrics
from lorae.ensemble import PooledMetric, members_curve

MEMBERS_METRICS: dict[str, PooledMetric] = {"ensemble_nll": metrics.ensemble_nll, "ece15": metrics.ece15}
MAX_SUBSETS = 20  # of the pool, for each size


def standard_figures(trials: Trials) -> list[Plot]:
    """NLL and ECE against the number of members, and a reliability diagram for each line of them."""
    plots = []
    for panel in panels(trials):
        plots += [metric_against_members(trials, panel, metric) for metric in MEMBERS_METRICS]
        plots += [reliability_diagram(trials, panel, line) for line in panel.lines]
    return plots


# Against the number of members -----------------------------------------------------------------------------


@styled
def metric_against_members(trials: Trials, panel: Panel, metric: str) -> Plot:
    """A metric against M, one line for each setting.

    Over several seeds the points are their means and the bars standard errors. With one seed the points are
    means over the subsets of the pool of trained members and the bars their standard deviation.
    """
    figure, axes = axes_of()
    several_seeds = any(len(cell.rows) > 1 for line in panel.lines.values() for cell in line)
    points_of = _over_seeds if several_seeds else _over_subsets
    sizes = sorted({cell.members for line in panel.lines.values() for cell in line})
    for number, (label, line) in enumerate(panel.lines.items()):
        points = points_of(trials, line, metric)
        members, value, bar = np.array(points).reshape(-1, 3).T
        shift = 1 + 0.02 * (number - (len(panel.lines) - 1) / 2)  # bars beside, not over each other
        axes.errorbar(members * shift, value, bar, capsize=2, label=label or "LoRA", **look(number))
    if panel.zero_shot and (found := panel.zero_shot.over_seeds(metric)):
        backbone_line(axes, found.mean)
    axes.set(xlabel="members M", ylabel=f"{title(metric)} (lower is better)", xscale="log")
    axes.xaxis.set(major_locator=FixedLocator(sizes), minor_locator=NullLocator())
    axes.xaxis.set(major_formatter=ScalarFormatter(), minor_formatter=NullFormatter())
    legend_above(figure, axes)
    bars = "standard error over seeds" if several_seeds else "standard deviation over subsets of one pool"
    caption = f"{title(metric)} against the number of members{panel.suffix}; bars: {bars}."
    return Plot(f"{metric}-members{panel.slug}", caption, figure)


Point = tuple[float, float, float]  # members, value, bar (NaN: none)


def _over_seeds(trials: Trials, line: Sequence[Cell], metric: str) -> list[Point]:
    found = [(cell.members, over) for cell in line if (over := cell.over_seeds(metric))]
    return [(m, over.mean, np.nan if over.stderr is None else over.stderr) for m, over in found]


def _over_subsets(trials: Trials, line: Sequence[Cell], metric: str) -> list[Point]:
    row = line[-1].rows[0]
    if line[-1].is_soup:  # of each size one was made
        return _over_seeds(trials, line, metric)
    pool = trials.predictions(row)
    curve = members_curve(
        pool.logits_MNC,
        pool.labels_N,
        MEMBERS_METRICS[metric],
        sizes=sorted({cell.members for cell in line}),
        num_draws=len(pool.logits_MNC) // len(pool_of(row)),
        rule=row["combine"],
        max_subsets=MAX_SUBSETS,
    )
    return [(point.members, point.mean, np.nan if point.std is None else point.std) for point in curve]


# Reliability -----------------------------------------------------------------------------------------------


@styled
def reliability_diagram(trials: Trials, panel: Panel, label: str) -> Plot:
    """Accuracy against confidence in 15 bins, examples per bin below: backbone, smallest and largest M."""
    line = panel.lines[label]
    cells = [c for c in dict.fromkeys([panel.zero_shot, line[0], line[-1]]) if c]
    figure = Figure((COLUMN_INCHES, 2.0), layout="constrained")
    grid = figure.subplots(
        2,
        len(cells),
        sharex=True,
        sharey="row",
        height_ratios=[3, 1],
        squeeze=False,
        gridspec_kw={"hspace": 0.04},
    )
    for place, cell in enumerate(cells):
        _reliability(grid[0, place], grid[1, place], trials, cell)
    grid[0, 0].set_ylabel("accuracy")
    grid[1, 0].set_ylabel("examples")
    figure.supxlabel("confidence", fontsize=8)
    of = f"{label}{panel.suffix}" if label else f"LoRA{panel.suffix}"
    caption = (
        f"Reliability of {of}: accuracy (bars) against confidence in 15 equal-width bins; hatched:"
        " the gap to the confidence; below: the examples in each bin. First seed."
    )
    return Plot(f"reliability{panel.slug}{slug(label or 'lora')}", caption, figure)


def _reliability(above: Axes, below: Axes, trials: Trials, cell: Cell) -> None:
    row = cell.rows[0]
    test = trials.predictions(row)
    bins = metrics.reliability_bins(metrics.combine(test.logits_MNC, row["combine"]), test.labels_N)
    width, middle = bins.hi - bins.lo, (bins.lo + bins.hi) / 2
    gap = bins.confidence - bins.accuracy
    above.bar(middle, bins.accuracy, width, color="#56B4E9", edgecolor="black", linewidth=0.4)
    above.bar(
        middle,
        gap,
        width,
        bottom=bins.accuracy,
        color="none",
        edgecolor="#D55E00",
        hatch="/////",
        linewidth=0.4,
    )
    above.plot([0, 1], [0, 1], **BACKBONE)
    above.set_title(f"{cell.name.replace(' ensemble of ', ' x ')}\nECE-15 {row['ece15']:.3f}", fontsize=7)
    above.set(xlim=(0, 1), ylim=(0, 1))
    below.bar(middle, bins.count, width, color="0.6", edgecolor="black", linewidth=0.4)
    below.set_xticks([0, 0.5, 1], ["0", "½", "1"])
