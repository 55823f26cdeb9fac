"""What members gain over the mean tuned member, on every task of the study, in one figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from analysis.columns import title
from analysis.plotting import Plot, axes_of, look, styled
from analysis.significance import Difference
from analysis.table import Entry, Line, Table

METRIC = "ts_ensemble_nll"
ROW_INCHES = 0.17


@styled
def gains_figure(answers: Table, questions: Sequence[str], margin: float) -> list[Plot]:
    """The difference in NLL after temperature scaling of each ensemble, with its interval; no figure if there
    is none.

    Args:
        answers: the study's answers, see `analysis.study.answers`.
        questions: whose lines are drawn.
        margin: of equivalence, in nats; the axis is linear up to it and logarithmic beyond.
    """
    lines = [line for block in answers.blocks for line in block if _is_drawn(line, questions)]
    if not lines:
        return []
    lines.sort(key=lambda line: _word(line, "task"))  # stable: the order of the questions within a task
    figure, axes = axes_of()
    figure.set_size_inches(2 * figure.get_figwidth(), 0.7 + ROW_INCHES * len(lines))
    tasks = list(dict.fromkeys(_word(line, "task") for line in lines))
    for row, line in enumerate(lines):
        _draw(axes, row, line["answer"], tasks.index(_word(line, "task")))
    axes.axvspan(-margin, margin, color="0.9", linewidth=0, zorder=0)
    axes.axvline(0, color="0.35", linewidth=0.8)
    _scale(axes, margin)
    axes.set_yticks(range(len(lines)), [f"{_word(line, 'task')}: {_word(line, 'line')}" for line in lines])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"Δ {title(METRIC)}, nats (negative: the ensemble is better)")
    caption = (
        f"{title(METRIC)} of an ensemble minus its mean tuned member's; bars: simultaneous 95 % intervals "
        f"over new test examples and trainings. Grey: within the margin of {margin:g}. The axis is linear in "
        "the grey band and logarithmic outside."
    )
    return [Plot("gains", caption, figure)]


def _is_drawn(line: Line, questions: Sequence[str]) -> bool:
    asked = _word(line, "question") in questions and _word(line, "metric") == title(METRIC)
    answer = line.get("answer")
    return asked and isinstance(answer, Difference) and answer.lo is not None


def _word(line: Line, column: str) -> str:
    entry = line.get(column)
    return str(entry.value) if isinstance(entry, Entry) else ""


def _draw(axes: Axes, row: int, answer: object, task: int) -> None:
    assert isinstance(answer, Difference) and answer.lo is not None and answer.hi is not None
    ends = [[answer.value - answer.lo], [answer.hi - answer.value]]
    style: dict[str, Any] = {**look(task), "linestyle": ""}
    axes.errorbar([answer.value], [row], xerr=ends, capsize=2, **style)


def _scale(axes: Axes, margin: float) -> None:
    axes.set_xscale("symlog", linthresh=margin)
    lo, hi = axes.get_xlim()
    decades = [margin * 10**power for power in range(4)]
    ticks = [t for t in [*(-d for d in reversed(decades)), 0.0, *decades] if lo <= t <= hi]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{t:g}" for t in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
