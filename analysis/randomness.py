"""Sources of randomness crossed with regularisation: the table of pipelines/randomness.py.

python -m analysis.randomness lorae-results
"""

from __future__ import annotations

import functools
import sys

from analysis.columns import DIVERSITY_METRICS, default_metrics
from analysis.data import Trials
from analysis.differences import regularising
from analysis.figures_sweep import diversity_against_gain
from analysis.script import Content, run
from analysis.table import comparison


def content(trials: Trials) -> Content:
    """Quality and diversity of the 2 x 2 factorial; members that share both sources are one member."""
    metrics = [*default_metrics(trials), *DIVERSITY_METRICS]
    tables = [comparison(trials, metrics, costs=()), regularising(trials)]
    return Content(tables, diversity_against_gain(trials))


main = functools.partial(run, "randomness", content)

if __name__ == "__main__":
    sys.exit(main())
