"""The tables and figures of pipelines/vera_images.py: images with ten examples of each class.

python -m analysis.vera_images lorae-results
"""

from __future__ import annotations

import functools
import sys

from analysis.columns import default_metrics
from analysis.data import Trials
from analysis.differences import ensembling
from analysis.figures_sweep import quality_against_cost
from analysis.glue import tasks_table
from analysis.published import beside
from analysis.script import Content, run
from analysis.table import comparison


def content(trials: Trials) -> Content:
    """All methods by every metric with their costs; the accuracy on each task and its mean; what ensembling
    gains; the published numbers."""
    tasks = tasks_table(trials, "images", "Accuracy on images", "Each task by its accuracy.")
    gained = ensembling(trials)
    changes = [gained] if gained.blocks else []
    tables = [comparison(trials, default_metrics(trials)), tasks, *changes, *beside(trials)]
    return Content(tables, quality_against_cost(trials))


main = functools.partial(run, "vera_images", content)

if __name__ == "__main__":
    sys.exit(main())
