"""The tables and figures of pipelines/vera_parameters.py: LoRA and VeRA by their trained parameters, and what
each layer of their best members learned.

python -m analysis.vera_parameters lorae-results
"""

from __future__ import annotations

import functools
import sys

from analysis.columns import default_metrics, direction, title
from analysis.data import Trials
from analysis.figures_sweep import quality_against_cost
from analysis.layers import cosines_table, learned, norms_figure, norms_table
from analysis.plotting import Plot, axes_of, legend_above, look, method_name, slug, styled
from analysis.published import beside
from analysis.script import Content, run
from analysis.table import comparison

PARAMETERS = "trainable_parameters"


def content(trials: Trials) -> Content:
    """All ranks by every metric with their costs; accuracy against parameters; the updates of the best rank
    of each method, layer by layer, and their directions beside each other's."""
    found, notes = learned(trials)
    tables = [
        comparison(trials, default_metrics(trials)),
        norms_table(trials, found, notes),
        cosines_table(trials, found),
        *beside(trials),
    ]
    plots = [
        *(plot for metric in ("acc", "ensemble_nll") for plot in quality_against_parameters(trials, metric)),
        *norms_figure(found),
        *quality_against_cost(trials),
    ]
    return Content([table for table in tables if table.blocks], plots)


@styled
def quality_against_parameters(trials: Trials, metric: str) -> list[Plot]:
    """A metric against the trained parameters of all members together, heads included: a line for each
    method, its matrices and its ensemble size; a figure for each test set in which a line has two points."""
    plots = []
    groups = trials.by_test_set()
    for cells in groups.values():
        lines: dict[str, list[tuple[float, float, float]]] = {}
        for cell in cells:
            x, y = (trials.estimates.of(cell, name) for name in (PARAMETERS, metric))
            if cell.members and x and y:
                projection = cell.factors["init"].rpartition("+")[2].replace("_", " ")
                words = [method_name(cell.factors["method"])]
                words += [projection] if projection == "per layer" else []
                words += [f"M = {cell.members}"] if cell.members > 1 else []
                lines.setdefault(", ".join(words), []).append((x.mean, y.mean, y.stderr or 0.0))
        if not any(len(line) > 1 for line in lines.values()):
            continue
        figure, axes = axes_of()
        for number, (label, line) in enumerate(lines.items()):
            xs, ys, errors = zip(*sorted(line))
            axes.errorbar(xs, ys, errors, label=label, capsize=1.5, **look(number))
        better = direction(metric)
        axes.set(xlabel="trained parameters", ylabel=f"{title(metric)} ({better} is better)", xscale="log")
        legend_above(figure, axes)
        caption = (
            f"{title(metric)} against trained parameters, heads included ({cells[0].factors['task']}); bars: "
            "standard error over trainings."
        )
        where = slug(cells[0].test_set) if len(groups) > 1 else ""
        plots.append(Plot(f"{metric}-parameters{where}", caption, figure))
    return plots


main = functools.partial(run, "vera_parameters", content)

if __name__ == "__main__":
    sys.exit(main())
