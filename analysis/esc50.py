"""The tables and figures of pipelines/esc50.py: LoRA-Ensemble on ESC-50.

    python -m analysis.esc50 lorae-results

First the mean over the five folds, which is what the literature reports on ESC-50; then every fold.
"""

from __future__ import annotations

import functools
import sys

from analysis import lora_ensemble
from analysis.data import Trials
from analysis.folds import over_folds
from analysis.script import Content, run


def content(trials: Trials) -> Content:
    """Means over the folds; and for every fold what all LoRA-Ensemble sweeps show."""
    of_folds = lora_ensemble.content(trials)
    pooled = over_folds(trials, lora_ensemble.metrics_of(trials))
    return Content([pooled, *of_folds.tables], of_folds.plots)


main = functools.partial(run, "esc50", content)

if __name__ == "__main__":
    sys.exit(main())
