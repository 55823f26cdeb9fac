"""Figures of what an ensemble predicts: metrics against its size, and reliability diagrams."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.cells import Cell
from analysis.columns import title
from analysis.data import Trials
from analysis.plotting import (
    BACKBONE,
    COLUMN_INCHES,
    Panel,
    Plot,
    axes_of,
    backbone_line,
    legend_above,
    look,
    members_axis,
    panels,
    slug,
    styled,
)
from analysis.rows import rule
from lorae import metrics

MEMBERS_METRICS = ("ensemble_nll", "debiased_ce15")


def standard_figures(trials: Trials) -> list[Plot]:
    """NLL and calibration error against the number of members, and a reliability diagram for each line."""
    plots = []
    for panel in panels(trials):
        plots += [metric_against_members(trials, panel, metric) for metric in MEMBERS_METRICS]
        plots += [reliability_diagram(trials, panel, line) for line in panel.lines]
    return plots


# Against the number of members -----------------------------------------------------------------------------


@styled
def metric_against_members(trials: Trials, panel: Panel, metric: str) -> Plot:
    """A metric against M, one line per setting: the tables' estimates, with their standard errors over
    trainings if these are known."""
    figure, axes = axes_of()
    sizes = {cell.members for line in panel.lines.values() for cell in line}
    for number, (label, line) in enumerate(panel.lines.items()):
        found = [(cell.members, of) for cell in line if (of := trials.estimates.of(cell, metric))]
        bars = [np.nan if of.stderr is None else of.stderr for _, of in found]
        shift = 1 + 0.02 * (number - (len(panel.lines) - 1) / 2)  # error bars side by side
        members, values = [m * shift for m, _ in found], [of.mean for _, of in found]
        axes.errorbar(members, values, bars, capsize=2, label=label or "LoRA", **look(number))
    if panel.zero_shot and (backbone := trials.estimates.of(panel.zero_shot, metric)):
        backbone_line(axes, backbone.mean)
    axes.set_ylabel(f"{title(metric)} (lower is better)")
    members_axis(axes, sizes)
    legend_above(figure, axes)
    caption = (
        f"{title(metric)} against the number of members{panel.suffix}, mean over the ensembles of each pool; "
        "bars: standard error over trainings, where it is known."
    )
    return Plot(f"{metric}-members{panel.slug}", caption, figure)


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
    bins = metrics.reliability_bins(metrics.combine(test.logits_MNC, rule(row)), test.labels_N)
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
