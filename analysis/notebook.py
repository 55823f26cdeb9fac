"""A stored sweep in a notebook: `lorae.load(storage)` gives its rows, its tables and its figures.

results = lorae.load("lorae-results")
results.frame()        # pandas, one row for each trial; results.glossary says what the columns mean
results.table()        # the comparison, as `lorae table` prints it
results.figures()
"""

from __future__ import annotations

import contextlib
import html
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from analysis.archive import opened
from analysis.data import Trials, load_trials
from analysis.figures import standard_figures
from analysis.glossary import glossary
from analysis.page import figure_html
from analysis.plotting import Plot
from analysis.table import Table, comparison
from lorae.lookup import only_sweep
from lorae.results import trial_schema
from lorae.store.store import Store

if TYPE_CHECKING:
    import pandas as pd

    from lorae.engine.ensembles import Ensemble

HIDDEN = ("recipe", "eval_sets", "provenance", "tuning")  # JSON for machines


class Figures(list[Plot]):
    """Figures that show themselves in a notebook, one below the other."""

    def _repr_html_(self) -> str:
        return "\n".join(map(figure_html, self))


@dataclass(frozen=True, eq=False)
class Results:
    """A stored sweep; made by `load`."""

    trials: Trials

    def frame(self) -> pd.DataFrame:
        """One row for each finished trial, with the columns of trials.parquet that people read."""
        import pandas as pd

        rows = [
            {name: value for name, value in row.items() if name not in HIDDEN} for row in self.trials.rows
        ]
        frame = pd.DataFrame(rows)
        frame.attrs = {"sweep": self.trials.sweep, "missing": list(self.trials.missing)}
        return frame

    @property
    def glossary(self) -> pd.DataFrame:
        """What the columns of `frame` mean: title, the better direction, a sentence."""
        import pandas as pd

        columns = [*trial_schema(self.trials.ood_tasks).names]
        return pd.DataFrame(glossary(c for c in columns if c not in HIDDEN)).set_index("column")

    def table(self, metrics: Sequence[str] | None = None) -> Table:
        """The comparison of all rows with their certainty; in a notebook it shows itself, `print` gives
        Markdown.

        Args:
            metrics: columns of `frame`; None = accuracy, NLL, calibration, OOD detection.
        """
        return comparison(self.trials, metrics)

    def figures(self) -> Figures:
        """NLL and calibration error against the number of members, and reliability diagrams."""
        return Figures(standard_figures(self.trials))

    def ensemble(self, trial: str | None = None, **where: Any) -> Ensemble:
        """An ensemble of this sweep, see `lorae.Ensemble.load`."""
        from lorae.engine.ensembles import Ensemble

        return Ensemble.load(self.trials.store, trial, sweep=self.trials.sweep, **where)

    def __repr__(self) -> str:
        return (
            f"<sweep {self.trials.sweep}: {len(self.trials.rows)} trials, {len(self.trials.cells)} settings>"
        )

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self)[1:-1])}</p>{self.table()._repr_html_()}"


def load(
    storage: str,
    sweep: str | None = None,
    *,
    allow_missing: bool = False,
    margins: Mapping[str, float] = MappingProxyType({}),
) -> Results:
    """A stored sweep.

    Args:
        storage: path or URI of a storage, or of an archive of one.
        sweep: its name; None = the only one.
        allow_missing: leave failed trials and missing seeds out instead of refusing;
            `frame().attrs["missing"]` names them.
        margins: the largest differences that do not matter, by metric: {"ensemble_nll": 0.01}.
    Raises:
        ValueError: no such sweep, or an incomplete one.
    """
    unpacked = contextlib.ExitStack()
    folder = unpacked.enter_context(opened(str(storage)))
    try:
        trials = load_trials(folder, sweep or only_sweep(Store(folder)), allow_missing, margins)
    except BaseException:
        unpacked.close()
        raise
    results = Results(trials)
    weakref.finalize(results, unpacked.close)  # an archive lies unpacked as long as the results are used
    return results
