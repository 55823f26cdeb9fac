"""What the initialisation changes in quality and diversity: the table of pipelines/initialization.py.

python -m analysis.initialization lorae-results
"""

from __future__ import annotations

import functools
import sys

from analysis.columns import DIVERSITY_METRICS, default_metrics
from analysis.data import Trials
from analysis.differences import ensembling
from analysis.figures_sweep import diversity_against_gain
from analysis.script import Content, run
from analysis.table import comparison


def content(trials: Trials) -> Content:
    """Quality and diversity side by side, and the gain that diversity brings."""
    metrics = [*default_metrics(trials), *DIVERSITY_METRICS]
    tables = [comparison(trials, metrics, costs=()), ensembling(trials)]
    return Content(tables, diversity_against_gain(trials))


main = functools.partial(run, "initialization", content)

if __name__ == "__main__":
    sys.exit(main())
