"""Why a table has "-": the metrics without a value on stored predictions, and the reason of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from analysis.cells import Cell
from analysis.columns import title
from analysis.data import Trials
from analysis.rows import Row, rule
from lorae.metrics import Mixture, Undefined, combine, is_of_values
from lorae.metrics.regression import VALUE_METRICS
from lorae.metrics.summary import METRICS


def undefined_notes(trials: Trials, cells: Sequence[Cell], metrics: Sequence[str]) -> list[str]:
    """A note for each metric and reason, with the models that lack it. Metrics that compare members are not
    named: a single one has none.
    """
    models: dict[tuple[str, str], dict[str, None]] = {}
    for metric in metrics:
        for cell in cells:
            for row in cell.rows:
                if metric in row and row[metric] is None and (why := _reason(trials, row, metric)):
                    models.setdefault((metric, why), {})[cell.name] = None
    return [f"no {title(metric)} of {', '.join(names)}: {why}" for (metric, why), names in models.items()]


def _reason(trials: Trials, row: Row, metric: str) -> str | None:
    """Why a row has no value of a metric; None if it is no metric of such answers."""
    if row["decoding"] is not None or not {metric} & {*METRICS, *VALUE_METRICS}:
        return None
    try:
        if (computed := _metric(trials, row, metric)) is not None:
            computed()
    except Undefined as error:
        return error.reason
    except ValueError:  # predictions that are not stored: another note says so
        return None
    return None


def _metric(trials: Trials, row: Row, metric: str) -> Callable[[], float] | None:
    """The metric of a row's pooled prediction."""
    test = trials.predictions(row)
    if is_of_values(test.labels_N):
        found = VALUE_METRICS.get(metric)
        return found and (lambda: found[1](Mixture.of(test.logits_MNC, rule(row)), test.labels_N))
    of_classes = METRICS.get(metric)
    if of_classes is None or of_classes[1] != "pooled":
        return None
    return lambda: of_classes[2](combine(test.logits_MNC, rule(row)), test.labels_N)
