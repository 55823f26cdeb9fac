"""Each regulariser and every combination, alone and ensembled: the table of pipelines/regularization.py.

python -m analysis.regularization lorae-results
"""

from __future__ import annotations

import functools
import sys

from analysis.data import Trials
from analysis.differences import ensembling, regularising
from analysis.figures_sweep import quality_against_cost
from analysis.script import Content, run
from analysis.table import comparison


def content(trials: Trials) -> Content:
    """The comparison on every task, and what ensembling and regularising change, with intervals."""
    tables = [make(trials) for make in (comparison, ensembling, regularising)]
    return Content(tables, quality_against_cost(trials))


main = functools.partial(run, "regularization", content)

if __name__ == "__main__":
    sys.exit(main())
