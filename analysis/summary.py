"""What a sweep found and how sure that is, in three sentences, from the verdicts of its tables.

for sentence in summary(comparison(trials), [ensembling(trials), regularising(trials)]):
    print(sentence)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from analysis.columns import Column, direction, title
from analysis.render import text
from analysis.significance import ALPHA, Difference
from analysis.table import Entry, Line, Table

FIRST = ("ensemble_nll", "ts_ensemble_nll")  # the metrics that are summarised, if they were tested
MAX_TEST_SETS = 3  # with a sentence of their own
SURE = (
    f"A verdict holds for new test examples and new trainings of the same recipes, at {1 - ALPHA:.0%} for "
    "all pairs of a column at once; equivalent: within the margin; undecided: not shown to differ, which is "
    "no proof that they are the same."
)


def summary(whole: Table, changes: Sequence[Table] = ()) -> list[str]:
    """Three sentences: the best row and what is worse than it, what the changes did, what the verdicts mean.

    Args:
        whole: the comparison of all rows.
        changes: tables of differences; those without verdicts have no part.
    Returns:
        Nothing if no row of the comparison has a verdict.
    """
    metric = _metric(whole)
    if metric is None:
        return []
    judged = [block for block in whole.blocks if any(_entry(line, metric).mark for line in block)]
    best = [_best(whole, block, metric) for block in judged[:MAX_TEST_SETS]]
    if more := len(judged) - len(best):
        best.append(f"{more} more test sets are in the table.")
    changed = [found for table in changes if (found := _change(table, metric))]
    told = [f"{'; '.join([*changed[:1], *map(_lower, changed[1:])])}."] if changed else []
    return [" ".join(best), *told, f"{SURE}{_unjudged(whole, metric)}"]


def _metric(table: Table) -> str | None:
    """The column to summarise: the first of `FIRST`, else of all, that has marks."""
    names = [column.name for column in table.columns if column.kind == "metric"]
    lines = [line for block in table.blocks for line in block]
    marked = [name for name in names if any(_entry(line, name).mark for line in lines)]
    return next((name for name in (*FIRST, *marked) if name in marked), None)


def _entry(line: Line, name: str) -> Entry:
    found = line.get(name)
    return found if isinstance(found, Entry) else Entry(None)


def _best(table: Table, block: Sequence[Line], metric: str) -> str:
    """Which row of one test set is best, and what is known of the others."""
    marks = Counter(mark for line in block if (mark := _entry(line, metric).mark))
    first = next(line for line in block if _entry(line, metric).mark == "best")
    told = [f"{marks[mark]} {mark}" for mark in ("worse", "equivalent", "undecided") if marks[mark]]
    tied = f", as {marks['best'] - 1} more have" if marks["best"] > 1 else ""
    others = f"; of {marks.total() - marks['best']} others, {_listed(told)}" if told else ""
    value = text(_column(table, metric), first[metric])
    return f"{_name(table, first)} has the best {title(metric)}, {value}{tied}{others}."


def _column(table: Table, name: str) -> Column:
    return next(column for column in table.columns if column.name == name)


def _name(table: Table, line: Line) -> str:
    """A row by its texts: the model, then what else tells it apart."""
    names = [column.name for column in table.columns if column.kind == "text" and column.name != "flips"]
    words = [_entry(line, n).value for n in sorted(names, key=lambda n: n not in ("model", "rival"))]
    return ", ".join(str(word) for word in words if word not in (None, "", "none"))


def _change(table: Table, metric: str) -> str:
    """How many lines of a table of differences are better, worse, equivalent and undecided, and the largest
    difference that was told."""
    lines = [line for block in table.blocks for line in block]
    found = [(line, d) for line in lines if isinstance(d := line.get(metric), Difference) and d.verdict]
    if not found:
        return ""
    told = Counter(_judged(d, metric) for _, d in found)
    kinds = ("better", "worse", "equivalent", "undecided")
    counts = _listed([f"{told[kind]} {kind}" for kind in kinds if told[kind]])
    words = f"{table.title}: of {len(found)} differences in {title(metric)}, {counts}"
    sure = [(line, d) for line, d in found if _differs(d)]
    if not sure:
        return words
    line, largest = max(sure, key=lambda place: abs(place[1].value))
    return f"{words}, the largest {text(_column(table, metric), largest)} for {_name(table, line)}"


def _judged(difference: Difference, metric: str) -> str | None:
    if not _differs(difference):
        return difference.verdict
    return "better" if difference.verdict == direction(metric) else "worse"


def _differs(difference: Difference) -> bool:
    return difference.verdict in ("lower", "higher")


def _unjudged(table: Table, metric: str) -> str:
    """What has no verdict because one ensemble is all that is known of it."""
    num = sum(_entry(line, metric).is_of_these for block in table.blocks for line in block)
    return f" {num} rows (†) are one ensemble each and have no verdict." if num else ""


def _lower(words: str) -> str:
    return words[:1].lower() + words[1:]


def _listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
