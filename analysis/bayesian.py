"""LoRA ensembles against Bayesian LoRA: the tables of pipelines/bayesian.py.

python -m analysis.bayesian lorae-results
"""

from __future__ import annotations

import functools
import sys

from analysis.data import Trials
from analysis.differences import against_rivals, ensembling, regularising, same_predictions
from analysis.figures_sweep import quality_against_cost
from analysis.published import beside
from analysis.script import Content, run
from analysis.table import comparison
from lorae.results import COST


def content(trials: Trials) -> Content:
    """The comparison with its costs; the largest ensemble against each rival; what ensembling and
    regularising change; the published numbers."""
    changes = (against_rivals, ensembling, regularising, same_predictions)
    tables = [
        comparison(trials, costs=tuple(COST)),
        *(make(trials) for make in changes),
        *beside(trials),
    ]
    return Content(tables, quality_against_cost(trials))


main = functools.partial(run, "bayesian", content)

if __name__ == "__main__":
    sys.exit(main())
