"""What every sweep on GLUE shows: each task by its own metric, median over seeds beside the mean, and the
mean over tasks that stands for GLUE."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence

from analysis.cells import Cell
from analysis.columns import Column, default_metrics, title
from analysis.data import Trials
from analysis.differences import ensembling
from analysis.figures_sweep import quality_against_cost
from analysis.published import beside
from analysis.script import Content
from analysis.table import Entry, Line, Table, comparison, made_by
from analysis.undefined import undefined_notes

MAIN = {"cola": "mcc", "stsb": "pearson"}  # of a task; accuracy of all others
NAMES = ("backbone", "model", "over seeds")
MEAN = "mean over tasks"


def content(trials: Trials) -> Content:
    """All methods by every metric with their costs; GLUE's own metrics and their mean; what ensembling
    gains; the published numbers."""
    metrics = list(dict.fromkeys([*default_metrics(trials), *_mains(trials)]))
    gained = ensembling(trials)
    changes = [gained] if gained.blocks else []
    tables = [comparison(trials, metrics), glue_table(trials), *changes, *beside(trials)]
    return Content(tables, quality_against_cost(trials))


def task_of(cell: Cell) -> str:
    """Name of a cell's task, without the size of its subset."""
    return json.loads(cell.rows[0]["recipe"])["task"]["task"]


def main_metric(task: str) -> str:
    """The metric that GLUE judges a task by, a column of trials.parquet."""
    return MAIN.get(task, "acc")


def _mains(trials: Trials) -> list[str]:
    return [main_metric(task_of(cell)) for cell in trials.cells]


def glue_table(trials: Trials) -> Table:
    """A line for each model and each way to pool its seeds: the tasks' metrics and their mean."""
    return tasks_table(trials, "glue", "GLUE", "Each task by the metric that GLUE judges it by.")


def tasks_table(trials: Trials, name: str, head: str, metrics: str) -> Table:
    """A line for each model and each way to pool its seeds: the tasks' `main_metric`s and their mean.

    Args:
        name, head: of the table.
        metrics: sentence of the caption that says what a task is judged by.
    """
    models: dict[tuple[str, str], dict[str, Cell]] = {}
    for cell in trials.cells:
        models.setdefault((cell.factors["backbone"], cell.name), {})[task_of(cell)] = cell
    tasks = dict.fromkeys(task for cells in models.values() for task in cells)
    columns = {task: f"{task} {title(main_metric(task))}" for task in tasks}
    lines: list[Line] = []
    for (backbone, model), cells in models.items():
        for pooling, found in (("median", _median), ("mean", _mean)):
            entries = {task: found(trials, cells[task]) if task in cells else Entry(None) for task in tasks}
            line: Line = dict(zip(NAMES, map(Entry, (backbone, model, pooling))))
            line |= {columns[task]: entry for task, entry in entries.items()}
            lines.append(line | {MEAN: mean_over([*entries.values()])})
    return Table(
        name=name,
        title=f"{head} of sweep {trials.sweep}",
        caption=(
            f"{metrics} Median: of the seeds' own rows, as in "
            "arXiv:2310.11454; mean ± standard error over trainings: of all ensembles of so many of the "
            f"members. The mean over tasks is only there where all of them have a value. {made_by(trials)}"
        ),
        columns=(
            *(Column(name, "text") for name in NAMES),
            *(Column(name, "metric") for name in (*columns.values(), MEAN)),
        ),
        blocks=(tuple(lines),),
        notes=tuple(undefined_notes(trials, trials.cells, list(dict.fromkeys(_mains(trials))))),
    )


def _median(trials: Trials, cell: Cell) -> Entry:
    values = [row[main_metric(task_of(cell))] for row in cell.rows]
    return Entry(None if None in values else statistics.median(values))


def _mean(trials: Trials, cell: Cell) -> Entry:
    found = trials.estimates.of(cell, main_metric(task_of(cell)))
    return Entry(None) if found is None else Entry(found.mean, found.stderr)


def mean_over(entries: Sequence[Entry]) -> Entry:
    """The mean of the tasks' numbers, whose trainings are independent; None where one is undefined."""
    if any(entry.value is None for entry in entries):
        return Entry(None)
    errors, num = [entry.stderr for entry in entries], len(entries)
    known = [error for error in errors if error is not None]
    stderr = math.hypot(*known) / num if len(known) == num else None
    return Entry(sum(entry.value for entry in entries) / num, stderr)
