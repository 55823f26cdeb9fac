"""Figures of what an ensemble's confidence is worth: risk against coverage, and detection of OOD examples."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.cells import Cell
from analysis.data import Trials
from analysis.plotting import BACKBONE, COLUMN_INCHES, Panel, Plot, axes_of, legend_above, look, styled
from analysis.rows import eval_sets, rule
from lorae import metrics
from lorae.results import OOD_SEPARATOR

MAX_POINTS = 200  # of a drawn curve; more would only make the file larger


def score_figures(trials: Trials, panel: Panel) -> list[Plot]:
    """Risk-coverage, and for each OOD task the ROC and the histograms of the scores."""
    plots = [risk_coverage(trials, panel)]
    for task in trials.ood_tasks:
        if _featured(panel, task):
            plots += [ood_roc(trials, panel, task), score_histograms(trials, panel, task)]
    return plots


@styled
def risk_coverage(trials: Trials, panel: Panel) -> Plot:
    """Error rate among the most confident examples against their share."""
    figure, axes = axes_of()
    for (label, cell), style in _featured(panel):
        row = cell.rows[0]
        test = trials.predictions(row)
        logp_NC = metrics.combine(test.logits_MNC, rule(row))
        coverage, risk = thinned(*metrics.risk_coverage(logp_NC, test.labels_N))
        axes.plot(coverage, risk, label=label, **style, markevery=0.2)
    axes.set(xlabel="coverage (share of examples answered)", ylabel="risk (error rate)", xlim=(0, 1))
    axes.set_ylim(bottom=0)
    legend_above(figure, axes)
    caption = f"Risk against coverage{panel.suffix}, by the maximum probability. First seed; lower is better."
    return Plot(f"risk-coverage{panel.slug}", caption, figure)


@styled
def ood_roc(trials: Trials, panel: Panel, task: str) -> Plot:
    """ROC of 1 - maximum probability as a detector of the OOD task's examples."""
    figure, axes = axes_of(height=2.7)
    for (label, cell), style in _featured(panel, task):
        in_N, ood_N = _msp(trials, cell, "test"), _msp(trials, cell, task)
        flagged_in, flagged_ood = thinned(*_roc(in_N, ood_N))
        auroc = cell.rows[0][f"auroc_msp{OOD_SEPARATOR}{task}"]
        axes.plot(flagged_in, flagged_ood, label=f"{label}: {auroc:.3f}", **style, markevery=0.2)
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.6)
    axes.set(
        xlabel="in-distribution examples flagged", ylabel="OOD examples flagged", xlim=(0, 1), ylim=(0, 1)
    )
    legend_above(figure, axes)
    caption = f"ROC of OOD detection, {task}{panel.suffix}, by 1 - maximum probability; AUROC. First seed."
    return Plot(f"ood-roc-{task}{panel.slug}", caption, figure)


@styled
def score_histograms(trials: Trials, panel: Panel, task: str) -> Plot:
    """Distributions of 1 - maximum probability in and out of distribution, of at most four models."""
    featured = _featured(panel, task)[:4]
    figure = Figure((COLUMN_INCHES, 0.4 + 1.1 * -(-len(featured) // 2)), layout="constrained")
    grid = figure.subplots(-(-len(featured) // 2), 2, sharex=True, sharey=True, squeeze=False)
    for axes, ((label, cell), _) in zip(grid.flat, featured):
        _histogram(axes, _msp(trials, cell, "test"), _msp(trials, cell, task))
        axes.set_title(label, fontsize=7)
    for axes in grid.flat[len(featured) :]:
        axes.set_visible(False)
    figure.supxlabel("1 - maximum probability", fontsize=8)
    figure.supylabel("density", fontsize=8)
    legend_above(figure, grid[0, 0])
    caption = f"Scores of test examples and of {task}{panel.suffix}, 1 - maximum probability. First seed."
    return Plot(f"ood-scores-{task}{panel.slug}", caption, figure)


def _histogram(axes: Axes, in_N: np.ndarray, ood_N: np.ndarray) -> None:
    edges = np.linspace(0, max(in_N.max(), ood_N.max()), 21)
    axes.hist(in_N, edges, density=True, color="#56B4E9", alpha=0.7, label="in distribution")
    axes.hist(ood_N, edges, density=True, histtype="step", color="#D55E00", hatch="////", label="OOD")


def _featured(panel: Panel, where: str = "test") -> list[tuple[tuple[str, Cell], dict[str, Any]]]:
    """What a figure compares: backbone, single member of the first line, largest ensemble of each line; only
    those that predicted `where`, "test" or an OOD task."""
    first = panel.first
    found: list[tuple[tuple[str, Cell], dict[str, Any]]] = []
    if panel.zero_shot:
        found.append((("zero-shot", panel.zero_shot), BACKBONE))
    if first.members == 1:
        found.append(((_named(first, next(iter(panel.lines))), first), {"color": "black", "linewidth": 0.8}))
    largest = [(label, line[-1]) for label, line in panel.lines.items() if line[-1] is not first]
    found += [((_named(cell, label), cell), look(n)) for n, (label, cell) in enumerate(largest)]
    return [((label, cell), style) for (label, cell), style in found if where in eval_sets(cell.rows[0])]


def _named(cell: Cell, label: str) -> str:
    size = "single" if cell.members == 1 else f"M={cell.members}"
    return f"{size}, {label}" if label else size


def _msp(trials: Trials, cell: Cell, where: str) -> np.ndarray:
    row = cell.rows[0]
    logits_MNC = trials.predictions(row, where).logits_MNC
    return metrics.score_msp(metrics.combine(logits_MNC, rule(row)))


def _roc(in_N: np.ndarray, ood_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares of both sets at or above each threshold, from the highest."""
    thresholds = np.unique(np.concatenate([in_N, ood_N]))[::-1]
    flagged_in, flagged_ood = (
        1 - np.searchsorted(np.sort(scores), thresholds) / len(scores) for scores in (in_N, ood_N)
    )
    return np.concatenate([[0], flagged_in]), np.concatenate([[0], flagged_ood])


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `MAX_POINTS` of a curve's points, its ends among them."""
    keep = np.unique(np.linspace(0, len(x) - 1, MAX_POINTS).astype(int))
    return x[keep], y[keep]
