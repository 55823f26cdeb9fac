"""What a sweep found and how sure that is, in three sentences, from the verdicts of its tables.

for sentence in summary(comparison(trials), [ensembling(trials), regularising(trials)]):
    print(sentence)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from analysis.columns import direction, title
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
    changed = "; ".join(filter(None, (_change(table, metric) for table in changes)))
    return [" ".join(best), *([f"{changed}."] if changed else []), f"{SURE}{_unjudged(whole, metric)}"]


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
    marks = Counter(_entry(line, metric).mark for line in block)
    first = next(line for line in block if _entry(line, metric).mark == "best")
    column = next(column for column in table.columns if column.name == metric)
    told = [f"{marks[m]} {words}" for m, words in _OTHERS.items() if marks[m]]
    tied = f" (and {marks['best'] - 1} more of the same value)" if marks["best"] > 1 else ""
    others = f"; of the others, {_listed(told)}" if told else ""
    return f"{_name(table, first)} has the best {title(metric)}, {text(column, first[metric])}{tied}{others}."


_OTHERS = {"worse": "worse", "equivalent": "equivalent to it", "undecided": "undecided"}


def _name(table: Table, line: Line) -> str:
    """A row by its texts: the model, then what else tells it apart."""
    names = [column.name for column in table.columns if column.kind == "text"]
    others = [name for name in names if name not in ("model", "rival")]
    words = [_entry(line, name).value for name in (*(n for n in names if n not in others), *others)]
    return ", ".join(str(word) for word in words if word not in (None, "", "none"))


def _change(table: Table, metric: str) -> str:
    """How many lines of a table of differences are better, worse, equivalent and undecided, and the largest
    difference that was told."""
    lines = [line for block in table.blocks for line in block]
    found = [(line, d) for line in lines if isinstance(d := line.get(metric), Difference) and d.verdict]
    if not found:
        return ""
    better = direction(metric)
    told = Counter(
        "better" if d.verdict == better else "worse" if _differs(d) else d.verdict for _, d in found
    )
    kinds = ("better", "worse", "equivalent", "undecided")
    heading = table.title.partition(", against")[0]
    counts = _listed([f"{told[kind]} {kind}" for kind in kinds if told[kind]])
    words = f"{heading} ({title(metric)}): of {len(found)} comparisons {counts}"
    sure = [(line, d) for line, d in found if _differs(d)]
    if not sure:
        return words
    line, largest = max(sure, key=lambda place: abs(place[1].value))
    column = next(column for column in table.columns if column.name == metric)
    return f"{words}; the largest change is {text(column, largest)}, of {_name(table, line)}"


def _differs(difference: Difference) -> bool:
    return difference.verdict in ("lower", "higher")


def _unjudged(table: Table, metric: str) -> str:
    """What has no verdict because one ensemble is all that is known of it."""
    num = sum(_entry(line, metric).is_of_these for block in table.blocks for line in block)
    return f" {num} rows (†) are one ensemble each and have no verdict." if num else ""


def _listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
