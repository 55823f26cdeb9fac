"""Figures of what an ensemble predicts: metrics against its size, and reliability diagrams."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
from analysis.reliability import Bin, reliability

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
    bins = {cell: reliability(trials, cell) for cell in cells}
    figure = Figure((COLUMN_INCHES, 2.0), layout="constrained")
    shape = {"height_ratios": [3, 1], "gridspec_kw": {"hspace": 0.04}, "squeeze": False}
    grid = figure.subplots(2, len(cells), sharex=True, sharey="row", **shape)
    for place, cell in enumerate(cells):
        ece = trials.estimates.of(cell, "ece15")
        told = f"\nECE-15 {ece.mean:.3f}" if ece else ""
        grid[0, place].set_title(f"{cell.name.replace(' ensemble of ', ' x ')}{told}", fontsize=7)
        _reliability(grid[0, place], grid[1, place], bins[cell])
    lowest = min(found.lo for of_cell in bins.values() for found in of_cell)  # shared by all: none is lower
    grid[0, 0].set(xlim=(lowest, 1), ylabel="accuracy")
    grid[1, 0].set_ylabel("examples")
    figure.supxlabel("confidence", fontsize=8)
    of = f"{label}{panel.suffix}" if label else f"LoRA{panel.suffix}"
    caption = (
        f"Reliability of {of}: accuracy against confidence in those of 15 equal-width bins that have "
        "examples, mean over the ensembles of each pool; bars: standard error over trainings, where it is "
        "known; dotted: the gap to the confidence; below: the examples in each bin; bins with less than one "
        "on average have no point."
    )
    return Plot(f"reliability{panel.slug}{slug(label or 'lora')}", caption, figure)


def _reliability(above: Axes, below: Axes, bins: Sequence[Bin]) -> None:
    points = [b for b in bins if b.count >= 1]
    confidence, accuracy = [b.confidence for b in points], [b.accuracy for b in points]
    bars = [np.nan if b.stderr is None else b.stderr for b in points]
    above.plot([0, 1], [0, 1], **BACKBONE)
    above.vlines(confidence, confidence, accuracy, color="#D55E00", linestyle=":", linewidth=0.8)
    above.errorbar(confidence, accuracy, bars, color="#0072B2", marker="o", markersize=3, linewidth=0.8)
    width = [b.hi - b.lo for b in bins]
    middle = [(b.lo + b.hi) / 2 for b in bins]
    below.bar(middle, [b.count for b in bins], width, color="0.6", edgecolor="black", linewidth=0.4)
