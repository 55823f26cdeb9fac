"""The comparison table of a sweep: one line for each cell, with its metrics, their certainty and its cost.

    table = comparison(load_trials("lorae-results", "demo"))
    print(markdown(table))                       # analysis.render

Which factors are columns is found from the rows; those that never vary are named once, in the caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from analysis.data import Cell, Trials, provenance
from analysis.resampling import direction, resample
from analysis.significance import Verdict
from lorae.metrics import Direction
from lorae.results import COST, FACTORS, METRICS, OOD_METRICS, OOD_SEPARATOR, SCALED

COST_COLUMNS = ("train_tokens", "train_seconds", "forwards_per_prediction", "trainable_parameters")
TITLES = {
    "acc": "accuracy",
    "f1": "macro F1",
    "ensemble_nll": "NLL",
    "mean_member_nll": "mean member's NLL",
    "validation_nll": "validation NLL",
    "brier": "Brier",
    "classwise_ece15": "classwise ECE-15",
    "aurc": "AURC",
    "jsd": "JSD",
    "train_tokens": "train tokens",
    "train_seconds": "train s",
    "predict_seconds": "predict s",
    "forwards_per_prediction": "forwards",
    "trainable_parameters": "parameters",
    "regularizers": "regulariser",
    "combine": "averaged",
}


@dataclass(frozen=True)
class Column:
    """A column; its `name` is that in trials.parquet.

    Args:
        kind: "text", "metric" (a fraction or nats: three decimals), "amount" (a cost or a count), or
            "data", which is a text for machines and appears in CSV only.
    """

    name: str
    kind: Literal["text", "metric", "amount", "data"]

    @property
    def title(self) -> str:
        """Its head for people."""
        return title(self.name)

    @property
    def direction(self) -> Direction:
        return direction(self.name) if self.kind == "metric" else "none"


@dataclass(frozen=True)
class Entry:
    """A number or text, None where undefined, with its standard error over seeds and its verdict."""

    value: Any
    stderr: float | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Table:
    """Blocks of lines; values are compared within a block only. Rendered by `analysis.render`."""

    name: str
    caption: str
    columns: tuple[Column, ...]
    blocks: tuple[tuple[dict[str, Entry], ...], ...]
    notes: tuple[str, ...] = field(default=())


def title(name: str) -> str:
    """A column's head: `auroc_msp__greys` is "AUROC msp, greys", `ts_ece15` is "ECE-15 T-scaled"."""
    metric, _, task = name.partition(OOD_SEPARATOR)
    base = metric.removeprefix("ts_")
    words = TITLES.get(base) or base.replace("_", " ")
    for acronym in ("auroc", "aupr", "fpr95"):
        words = words.replace(acronym, acronym.upper())
    for error in ("ece", "ace", "mce"):
        if base.startswith(error):
            words = f"{error.upper()}-{base.removeprefix(error)}"
    return words + (" T-scaled" if metric != base else "") + (f", {task}" if task else "")


def default_metrics(trials: Trials) -> list[str]:
    """Accuracy, NLL, calibration and OOD detection by the maximum probability; NLL and ECE also T-scaled."""
    ood = [f"auroc_msp{OOD_SEPARATOR}{task}" for task in trials.ood_tasks]
    return ["acc", "ensemble_nll", "ece15", "brier", *ood, "ts_ensemble_nll", "ts_ece15"]


def all_metrics(trials: Trials) -> list[str]:
    """Every metric column of the sweep's rows."""
    ood = [f"{name}{OOD_SEPARATOR}{task}" for task in trials.ood_tasks for name in OOD_METRICS]
    return [*METRICS, *SCALED, "validation_nll", *ood]


def comparison(
    trials: Trials, metrics: Sequence[str] | None = None, costs: Sequence[str] = COST_COLUMNS
) -> Table:
    """The comparison table: cells in blocks of one test set, best values and their rivals marked.

    Args:
        metrics: columns of trials.parquet; None = `default_metrics`.
        costs: the same, of its cost columns.
    """
    metrics = default_metrics(trials) if metrics is None else metrics
    verdicts, notes = column_verdicts(trials, metrics)
    lines: dict[str, list[dict[str, Entry]]] = {}
    for cell in trials.cells:
        line = {f: Entry(value) for f, value in cell.factors.items()}
        line |= {"model": Entry(cell.name), "seeds": Entry(len(cell.rows))}
        line |= {m: _metric_entry(cell, m, verdicts.get((m, cell))) for m in metrics}
        line |= {c: _cost_entry(cell, c) for c in costs}
        lines.setdefault(cell.test_set, []).append(line)
    return Table(
        name=trials.sweep,
        caption=_caption(trials),
        columns=_columns(trials, metrics, costs),
        blocks=tuple(map(tuple, lines.values())),
        notes=(*notes, *(f"missing: {what}" for what in trials.missing)),
    )


def column_verdicts(
    trials: Trials, metrics: Sequence[str]
) -> tuple[dict[tuple[str, Cell], Verdict], list[str]]:
    """Verdicts by column and cell, from stored logits; the best value alone where there are none."""
    resampled, notes = resample(trials, metrics)
    verdicts = {(m, cell): v for group in resampled for m in metrics for cell, v in group.verdicts(m).items()}
    for test_set in dict.fromkeys(cell.test_set for cell in trials.cells):
        cells = [cell for cell in trials.cells if cell.test_set == test_set]
        for metric in metrics:
            if direction(metric) != "none" and not any((metric, cell) in verdicts for cell in cells):
                verdicts |= {(metric, cell): "best" for cell in _best(cells, metric)}
    return verdicts, notes


def _best(cells: Sequence[Cell], metric: str) -> list[Cell]:
    values = {cell: found.mean for cell in cells if (found := cell.over_seeds(metric))}
    best = (min if direction(metric) == "lower" else max)(values.values(), default=None)
    return [cell for cell, value in values.items() if value == best]


def _metric_entry(cell: Cell, metric: str, verdict: Verdict | None) -> Entry:
    found = cell.over_seeds(metric)
    return Entry(found.mean, found.stderr, verdict) if found else Entry(None)


def _cost_entry(cell: Cell, cost: str) -> Entry:
    found = cell.over_seeds(cost)
    return Entry(found.mean if found else None)


def _columns(trials: Trials, metrics: Sequence[str], costs: Sequence[str]) -> tuple[Column, ...]:
    # The method is part of the model's name; the regulariser is always shown, "none" says something too.
    shown = [f for f in trials.varying if f not in ("method", "regularizers")]
    seeds = ["seeds"] if len({len(cell.rows) for cell in trials.cells}) > 1 else []
    hidden = [f for f in FACTORS if f not in ("seed", "regularizers", *shown)]
    return (
        *(Column(f, "data") for f in hidden),
        *(Column(f, "text") for f in [*shown, "model", "regularizers"]),
        *(Column(c, "amount") for c in seeds),
        *(Column(m, "metric") for m in metrics),
        *(Column(c, "amount") for c in costs),
    )


def _caption(trials: Trials) -> str:
    """Sweep, settings that never vary, examples and seeds, and the command with its commit."""
    settings = ", ".join(f"{f}={v}" for f, v in trials.constant.items() if f != "regularizers")
    examples = sorted({row["num_examples"] for row in trials.rows})
    seeds = sorted({len(cell.rows) for cell in trials.cells if cell.members})
    made_by = provenance(trials.rows[0])
    sentences = [
        f"Sweep {trials.sweep}: {settings}",
        f"{_either(examples)} test examples, {_either(seeds) or 0} seed{'' if seeds == [1] else 's'}"
        + ("; mean ± standard error over seeds" if max(seeds, default=0) > 1 else ""),
        f"Made by `{made_by.get('command', 'unknown command')}` at commit {made_by.get('commit', 'unknown')}",
    ]
    return ". ".join(sentences) + "."


def _either(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))


assert set(COST_COLUMNS) <= set(COST)
