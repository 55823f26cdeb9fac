"""Ensembles against single adapters of equal cost: the table of pipelines/efficiency.py.

python -m analysis.efficiency lorae-results
"""

from __future__ import annotations

import functools
import sys

from analysis.data import Trials
from analysis.differences import ensembling, same_compute, same_parameters, same_predictions
from analysis.figures_sweep import quality_against_cost
from analysis.script import Content, run
from analysis.table import comparison
from lorae.results import COST


def content(trials: Trials) -> Content:
    """The comparison with its costs, differences at equal parameters, compute and predictions, the Pareto
    front."""
    tables = [
        comparison(trials, costs=tuple(COST)),
        same_parameters(trials),
        same_compute(trials),
        same_predictions(trials),
        ensembling(trials),
    ]
    return Content(tables, quality_against_cost(trials))


main = functools.partial(run, "efficiency", content)

if __name__ == "__main__":
    sys.exit(main())
