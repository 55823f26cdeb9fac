"""NLL and ECE against the rank, for one adapter and for an ensemble: the figure of pipelines/rank.py.

python -m analysis.rank lorae-results
"""

from __future__ import annotations

import functools
import sys

from analysis.data import Trials
from analysis.differences import ensembling
from analysis.figures import MEMBERS_METRICS
from analysis.figures_setting import metric_against_setting
from analysis.figures_sweep import quality_against_cost
from analysis.script import Content, run
from analysis.table import comparison


def content(trials: Trials) -> Content:
    """The curves, and the table of all ranks with what they cost."""
    plots = [plot for m in MEMBERS_METRICS for plot in metric_against_setting(trials, "rank", m)]
    tables = [comparison(trials), ensembling(trials)]
    return Content(tables, [*plots, *quality_against_cost(trials)])


main = functools.partial(run, "rank", content)

if __name__ == "__main__":
    sys.exit(main())
