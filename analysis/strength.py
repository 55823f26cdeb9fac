"""NLL and ECE against the strength of each regulariser: the figures of pipelines/strength.py.

python -m analysis.strength lorae-results
"""

from __future__ import annotations

import functools
import sys

from analysis.data import Trials
from analysis.differences import regularising
from analysis.figures import MEMBERS_METRICS
from analysis.figures_setting import metric_against_setting, numeric_settings
from analysis.script import Content, run
from analysis.table import comparison


def content(trials: Trials) -> Content:
    """A curve for each regulariser with a strength, and the table of all."""
    plots = [
        plot
        for setting in numeric_settings(trials)
        for metric in MEMBERS_METRICS
        for plot in metric_against_setting(trials, setting, metric)
    ]
    return Content([comparison(trials), regularising(trials)], plots)


main = functools.partial(run, "strength", content)

if __name__ == "__main__":
    sys.exit(main())
