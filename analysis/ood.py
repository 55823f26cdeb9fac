"""Every trained task against every evaluated one: the grid of pipelines/ood.py.

    python -m analysis.ood lorae-results

Prediction sets that `lorae predict` added later are columns like the others.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import replace

from analysis.data import Trials
from analysis.figures_scores import score_figures
from analysis.plotting import panels
from analysis.script import Content, run
from analysis.table import comparison
from lorae.results import OOD_METRICS, OOD_SEPARATOR


def content(trials: Trials) -> Content:
    """AUROC of each pair of tasks, every score and metric, ROC curves and histograms of the scores."""
    trials = trials.with_stored_ood()
    by_msp = [f"auroc_msp{OOD_SEPARATOR}{task}" for task in trials.ood_tasks]
    grid = comparison(trials, by_msp, costs=(), name="ood-grid")
    every = [f"{name}{OOD_SEPARATOR}{task}" for task in trials.ood_tasks for name in OOD_METRICS]
    scores = comparison(trials, every, costs=(), name="ood-scores")
    tables = [replace(grid, title="OOD detection"), replace(scores, title="OOD detection by every score")]
    return Content(tables, [plot for panel in panels(trials) for plot in score_figures(trials, panel)])


main = functools.partial(run, "ood", content)

if __name__ == "__main__":
    sys.exit(main())
