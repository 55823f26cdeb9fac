"""Ensembles against single adapters of equal cost: the table of pipelines/efficiency.py.

python -m analysis.efficiency lorae-results
"""

from __future__ import annotations

import functools
import sys

from analysis.columns import default_metrics
from analysis.data import Trials
from analysis.differences import ensembling, same_compute, same_parameters, same_predictions
from analysis.figures_sweep import quality_against_cost
from analysis.resampling import resample
from analysis.script import Content, run
from analysis.table import comparison
from lorae.results import COST


def content(trials: Trials) -> Content:
    """The comparison with its costs, differences at equal parameters, compute and predictions, the Pareto
    front."""
    resampling = resample(trials, default_metrics(trials))
    tables = [
        comparison(trials, resampling, costs=tuple(COST)),
        same_parameters(trials, resampling),
        same_compute(trials, resampling),
        same_predictions(trials, resampling),
        ensembling(trials, resampling),
    ]
    return Content(tables, quality_against_cost(trials))


main = functools.partial(run, "efficiency", content)

if __name__ == "__main__":
    sys.exit(main())
