"""What members keep of the gain of the ensembles that they learned from (pipelines/distill.py).

python -m analysis.distill lorae-results
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator

from analysis.cells import Cell
from analysis.columns import Column, direction, tested_metrics, title
from analysis.data import Trials
from analysis.differences import ensembling
from analysis.figures_sweep import quality_against_cost
from analysis.ratio import share
from analysis.script import Content, run
from analysis.table import Entry, Line, Table, comparison, entry, made_by

CAPTION = (
    "The gain of an ensemble over a single member of its recipe, and the share of it that a student keeps: a "
    "member that learned from the ensemble's predictions on the training examples and predicts alone. 1: as "
    "good as the ensemble, 0: as a member without a teacher; below 0: worse. [95 % interval over test "
    "examples and seeds, by Fieller; not corrected for the number of lines; bold: it excludes 0]; of a "
    "calibration error the share of its square. A student costs the training of its teacher and its own, and "
    "one forward pass per prediction. Each at its tuned values."
)


def content(trials: Trials) -> Content:
    """All models with their costs, what ensembling changes, and what students keep of it."""
    tables = [comparison(trials), ensembling(trials), kept_table(trials)]
    return Content(tables, quality_against_cost(trials))


def kept_table(trials: Trials) -> Table:
    """A line for each student and metric that is tested, with what it kept of its teacher's gain."""
    blocks, notes = [], list[str]()
    for student, single, teacher in lessons(trials):
        lines: list[Line] = []
        for metric in tested_metrics(trials):
            of = [trials.estimates.of(cell, metric) for cell in (single, student, teacher)]
            if direction(metric) == "none" or None in of:
                continue
            none, some, all_ = of
            assert none and some and all_
            found = share(none, some, all_)
            if isinstance(found, str):
                notes.append(f"no share of {title(metric)}, {student.factors['regularizers']}: {found}")
            lines.append(
                {
                    "student": Entry(student.factors["regularizers"]),
                    "metric": Entry(title(metric)),
                    "single": entry(trials, single, metric),
                    "distilled": entry(trials, student, metric),
                    "ensemble": entry(trials, teacher, metric),
                    "kept": Entry(None) if isinstance(found, str) else found,
                }
            )
        blocks.append(tuple(lines))
    return Table(
        name="distilled",
        title="What one forward pass keeps of an ensemble",
        caption=f"Sweep {trials.sweep}. {CAPTION} {made_by(trials)}",
        columns=(
            *(Column(name, "text") for name in ("student", "metric")),
            *(Column(name, "metric", decimals=4) for name in ("single", "distilled", "ensemble")),
            Column("kept", "level", decimals=2),
        ),
        blocks=tuple(blocks),
        notes=tuple(notes),
        sweep=trials.sweep,
    )


def lessons(trials: Trials) -> Iterator[tuple[Cell, Cell, Cell]]:
    """Each student with the single member and the ensemble of its teacher's recipe; a teacher of one member
    has no gain to keep, and is compared with the largest ensemble of its recipe.
    """
    cells = [cell for cell in trials.cells if cell.members]
    for student in cells:
        if not (taught_by := _teacher(student)):
            continue
        of_recipe = [
            cell for cell in cells if cell.rows[0]["member_ids"][0] == taught_by[0] and not cell.is_soup
        ]
        sizes = {cell.members: cell for cell in of_recipe if cell.factors["draws"] == "none"}
        size = len(taught_by) if len(taught_by) > 1 else max(sizes, default=0)
        if student.members == 1 and 1 in sizes and size in sizes and size > 1:
            yield student, sizes[1], sizes[size]


def _teacher(cell: Cell) -> list[str]:
    """Members that those of a cell's first row learned from."""
    return json.loads(cell.rows[0]["recipe"]).get("teacher", {}).get("members", [])


main = functools.partial(run, "distill", content)

if __name__ == "__main__":
    sys.exit(main())
