"""Every trained task against every evaluated one: the grid of pipelines/ood.py.

    python -m analysis.ood lorae-results

Prediction sets that `lorae predict` added later are columns like the others.
"""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import replace

from analysis.columns import Column
from analysis.data import Trials
from analysis.figures_scores import score_figures
from analysis.plotting import panels
from analysis.rows import ood_sets
from analysis.script import Content, run
from analysis.table import Entry, Line, Table, cell_columns, cell_line, comparison, made_by
from lorae.results import OOD_METRICS, OOD_SEPARATOR
from lorae.tasks.openood import DISTANCES


def content(trials: Trials) -> Content:
    """AUROC of each pair of tasks, every score and metric, ROC curves and histograms of the scores."""
    trials = trials.with_stored_ood()
    by_msp = [f"auroc_msp{OOD_SEPARATOR}{task}" for task in trials.ood_tasks]
    grid = comparison(trials, by_msp, costs=(), name="ood-grid")
    every = [f"{name}{OOD_SEPARATOR}{task}" for task in trials.ood_tasks for name in OOD_METRICS]
    scores = comparison(trials, every, costs=(), name="ood-scores")
    tables = [replace(grid, title="OOD detection"), replace(scores, title="OOD detection by every score")]
    distances = by_distance(trials)
    tables += [distances] if distances.blocks else []
    return Content(tables, [plot for panel in panels(trials) for plot in score_figures(trials, panel)])


def by_distance(trials: Trials) -> Table:
    """AUROC by the maximum probability, mean over the near and over the far OOD sets, for models trained on a
    task whose OOD sets OpenOOD divides into these."""
    lines: list[Line] = []
    for cell in trials.cells:
        known = DISTANCES.get(json.loads(cell.rows[0]["recipe"])["task"]["task"], {})
        of = {task: known[task] for task in ood_sets(cell.rows[0]) if task in known}
        if not of:
            continue
        line = cell_line(cell)
        for distance in ("near", "far"):
            names = [task for task, how in of.items() if how == distance]
            found = [trials.estimates.of(cell, f"auroc_msp{OOD_SEPARATOR}{task}") for task in names]
            means = [estimate.mean for estimate in found if estimate]
            line[f"auroc_msp {distance}"] = Entry(
                sum(means) / len(names) if means and None not in found else None
            )
            line[f"{distance} sets"] = Entry(", ".join(names) or "-")
        lines.append(line)
    return Table(
        name="ood-distance",
        title="OOD detection, near and far",
        caption=f"Sweep {trials.sweep}. AUROC by the maximum probability, mean over sets that OpenOOD "
        f"(arXiv:2306.09301) counts as near and as far; not tested. {made_by(trials)}",
        columns=(
            *cell_columns(trials),
            *(Column(f"auroc_msp {distance}", "metric") for distance in ("near", "far")),
            *(Column(f"{distance} sets", "text") for distance in ("near", "far")),
        ),
        blocks=(tuple(lines),) if lines else (),
        sweep=trials.sweep,
    )


main = functools.partial(run, "ood", content)

if __name__ == "__main__":
    sys.exit(main())
