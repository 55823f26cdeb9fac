"""The field's published numbers, shown beside ours and kept out of our statistics.

python -m analysis.published --task openbookqa --metric acc

`published.csv` holds them as their sources state them. Its column `suspect` says in words why a number is
doubted: the code of its source computes something else, or it contradicts the numbers beside it.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import string
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from analysis.columns import Column, title
from analysis.data import Trials
from analysis.render import markdown
from analysis.rows import ood_sets
from analysis.table import Entry, Line, Table

CAPTION = (
    "Published numbers as their sources state them: not computed by lorae, not comparable in seeds, splits "
    "or prompts; never used in our statistics."
)
OF_TEXTS = ("bleu", "nist", "meteor", "rouge_l_e2e", "cider", "number_match")
METRICS = ("acc", "ece15", "ece10", "nll", *OF_TEXTS)


@dataclass(frozen=True)
class Published:
    """One number of one paper.

    Args:
        source: where it was read.
        trained_on, evaluated_on: data sets; those that lorae also has by their `Task.name`.
        num_members: of an ensemble, or draws of one member.
        metric: "acc", "ece" (both fractions), "nll" (nats), or a metric of texts in the unit of our column.
        std: over seeds; None = not published.
        ece_bins: equal-width bins of an "ece".
        note: what the source says about its setting.
        suspect: why the number is doubted, reasons separated by "; "; "" if it is not.
    """

    source: str
    backbone: str
    trained_on: str
    evaluated_on: str
    method: str
    num_members: int
    metric: str
    value: float
    std: float | None
    ece_bins: int | None
    note: str
    suspect: str

    @property
    def column(self) -> str:
        """The metric with its binning: "acc", "ece15", "ece10", "nll", "bleu"."""
        return f"{self.metric}{self.ece_bins or ''}"

    @property
    def doubts(self) -> tuple[str, ...]:
        """The reasons in `suspect`, one by one."""
        return tuple(self.suspect.split("; ")) if self.suspect else ()


def published_rows(
    trained_on: str | None = None, evaluated_on: str | None = None, metric: str | None = None
) -> tuple[Published, ...]:
    """The rows of published.csv with these values, in its order; None = any."""
    wanted = {"trained_on": trained_on, "evaluated_on": evaluated_on, "metric": metric}
    given = [(name, value) for name, value in wanted.items() if value is not None]
    return tuple(row for row in _all_rows() if all(getattr(row, name) == value for name, value in given))


@cache
def _all_rows() -> tuple[Published, ...]:
    with Path(__file__).with_name("published.csv").open(newline="", encoding="utf-8") as file:
        return tuple(map(_parsed, csv.DictReader(file)))


def _parsed(texts: dict[str, Any]) -> Published:
    numbers = {
        "num_members": int(texts["num_members"]),
        "value": float(texts["value"]),
        "std": float(texts["std"]) if texts["std"] else None,
        "ece_bins": int(texts["ece_bins"]) if texts["ece_bins"] else None,
    }
    return Published(**(texts | numbers))


def beside(trials: Trials) -> list[Table]:
    """A table of the published rows of a sweep's tasks, in and out of distribution, if there are any."""
    pairs: dict[tuple[str, str], None] = {}
    for row in trials.rows:
        # by name: the factor `task` holds the subset's size, and published numbers are means over folds
        task = dataset(json.loads(row["recipe"])["task"]["task"])
        pairs |= dict.fromkeys((task, evaluated_on) for evaluated_on in (task, *ood_sets(row)))
    rows = [row for pair in pairs for row in published_rows(*pair)]
    return [published_table(rows)] if rows else []


def dataset(task: str) -> str:
    """A task's name without the fold that is its test set: "esc50" of "esc50/fold3"."""
    return re.sub(r"/fold\d+$", "", task)


def published_table(rows: Sequence[Published]) -> Table:
    """A line per setting, in blocks of one training and test set; lines are not compared, so none is best."""
    blocks: dict[tuple[str, str], dict[tuple[Any, ...], list[Published]]] = {}
    for row in rows:
        settings = blocks.setdefault((row.trained_on, row.evaluated_on), {})
        settings.setdefault((row.backbone, row.method, row.num_members, row.source), []).append(row)
    letters = dict(zip(dict.fromkeys(doubt for row in rows for doubt in row.doubts), string.ascii_lowercase))
    lines = [tuple(_line(found, letters) for found in settings.values()) for settings in blocks.values()]
    told = "; ".join(f"({letter}) {doubt}" for doubt, letter in letters.items())
    return Table(
        name="published",
        title="Published numbers",
        caption=CAPTION + (f" Suspect values: {told}." if told else ""),
        columns=_columns([line for block in lines for line in block]),
        blocks=tuple(lines),
    )


def _line(rows: Sequence[Published], letters: dict[str, str]) -> Line:
    """The numbers of one setting, each in the column of its metric."""
    names = ("trained_on", "evaluated_on", "backbone", "method", "source")
    line: Line = {name: Entry(getattr(rows[0], name)) for name in names}
    line |= {"members_or_draws": Entry(rows[0].num_members)}
    line |= {column: Entry(None) for metric in METRICS for column in (metric, f"{metric}_std")}
    for row in rows:
        line |= {row.column: Entry(row.value), f"{row.column}_std": Entry(row.std)}
    texts = {
        "note": dict.fromkeys(row.note for row in rows if row.note),
        "suspect": _marks(rows, letters),
        "suspect_because": dict.fromkeys(doubt for row in rows for doubt in row.doubts),
    }
    return line | {name: Entry("; ".join(parts) or None) for name, parts in texts.items()}


def _marks(rows: Sequence[Published], letters: dict[str, str]) -> list[str]:
    """Which numbers are doubted, and the letters of the reasons: "all (a, b)", "ECE-15, NLL (c)"."""
    doubted: dict[str, list[str]] = {}
    for row in rows:
        if row.doubts:
            why = ", ".join(sorted(letters[doubt] for doubt in row.doubts))
            doubted.setdefault(why, []).append(title(row.column))
    return [
        f"{'all' if len(numbers) == len(rows) else ', '.join(numbers)} ({why})"
        for why, numbers in doubted.items()
    ]


def _columns(lines: Sequence[Line]) -> tuple[Column, ...]:
    """Columns with an entry, and always the one that marks suspect numbers."""
    used = {name for line in lines for name, entry in line.items() if entry.value is not None}
    metrics = [c for m in METRICS for c in (Column(m, "metric"), Column(f"{m}_std", "amount"))]
    return (
        *(Column(name, "text") for name in ("trained_on", "evaluated_on", "backbone", "method")),
        Column("members_or_draws", "amount"),
        *(column for column in metrics if column.name in used),
        Column("source", "text"),
        *([Column("note", "text")] if "note" in used else []),
        Column("suspect", "text"),
        Column("suspect_because", "data"),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the published numbers as Markdown; returns the exit code, 2 if none are known."""
    parser = argparse.ArgumentParser(prog="python -m analysis.published", description=CAPTION)
    parser.add_argument("--task", choices=sorted({row.trained_on for row in _all_rows()}), help="trained on")
    parser.add_argument("--metric", choices=sorted({row.metric for row in _all_rows()}))
    args = parser.parse_args(argv)
    rows = published_rows(trained_on=args.task, metric=args.metric)
    if not rows:
        parser.error(f"no {args.metric} of {args.task} is published; leave --metric or --task out")
    print(markdown(published_table(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
