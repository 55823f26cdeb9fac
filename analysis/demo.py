"""The demo's comparison table, NLL and ECE against the number of members, and reliability diagrams.

python -m analysis.demo lorae-results
"""

from __future__ import annotations

import functools
import sys

from analysis.data import Trials
from analysis.figures import standard_figures
from analysis.script import Content, run
from analysis.table import comparison


def content(trials: Trials) -> Content:
    """The comparison of all cells, and the figures that show why."""
    return Content([comparison(trials)], standard_figures(trials))


main = functools.partial(run, "demo", content)

if __name__ == "__main__":
    sys.exit(main())
