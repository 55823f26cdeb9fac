"""NLL and ECE against one to twenty members, from one pool: the figure of pipelines/members.py.

python -m analysis.members lorae-results
"""

from __future__ import annotations

import functools
import sys

from analysis.data import Trials
from analysis.differences import ensembling, souping
from analysis.figures import MEMBERS_METRICS, metric_against_members
from analysis.figures_sweep import diversity_against_gain
from analysis.plotting import panels
from analysis.script import Content, run
from analysis.table import comparison


def content(trials: Trials) -> Content:
    """The curves, what ensembling changes, soups against ensembles, and diversity against gain."""
    plots = [
        metric_against_members(trials, panel, metric)
        for panel in panels(trials)
        for metric in MEMBERS_METRICS
    ]
    tables = [make(trials) for make in (comparison, ensembling, souping)]
    return Content(tables, [*plots, *diversity_against_gain(trials)])


main = functools.partial(run, "members", content)

if __name__ == "__main__":
    sys.exit(main())
