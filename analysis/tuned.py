"""How the rows of a table were tuned: over which grid, what was chosen, and what it cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from analysis.cells import Cell
from analysis.rows import Row
from lorae.trial.tuning import left_out, values_text

Tuning = dict[str, Any]  # see `lorae.planning.choice.TUNING`


def tuning_of(row: Row) -> Tuning | None:
    """The tuning that a row records, or None."""
    return json.loads(row["tuning"]) if row["tuning"] else None


def tuning_tokens(cell: Cell) -> int | None:
    """Tokens that all points of the grid were trained on, including members that the row reuses; None for a
    cell that was not tuned."""
    tuning = tuning_of(cell.rows[0])
    return tuning["train_tokens"] if tuning else None


def tuning_notes(cells: Sequence[Cell]) -> list[str]:
    """A line for each grid, with the recipes tuned over it and their choices; and a line that names choices
    at an end of their grid, beyond which a better value may lie."""
    grids: dict[str, dict[str, None]] = {}
    at_end: dict[str, None] = {}
    for cell in cells:
        tuning = tuning_of(cell.rows[0])
        if not tuning or not tuning["axes"]:
            continue
        axes, points = tuning["axes"], [point["values"] for point in tuning["points"]]
        grid = "; ".join(f"{axis} over {_listed(of['values'])}" for axis, of in axes.items())
        if refused := left_out({axis: of["values"] for axis, of in axes.items()}, points):
            grid += f" (refused, so not tried: {' and '.join(map(values_text, refused))})"
        judged = f"{grid}, by the mean validation NLL of {tuning['members']} single members"
        chosen = {axis: of["chosen"] for axis, of in axes.items()}
        recipe = f"{recipe_name(cell)}: {values_text(chosen)}"
        grids.setdefault(judged, {})[recipe] = None
        if any(of["at_end"] for of in axes.values()):
            at_end[recipe] = None
    found = [f"tuned: {grid}. Chosen: {'; '.join(recipes)}" for grid, recipes in grids.items()]
    if at_end:
        found.append(f"chosen at an end of its grid, a better value may lie beyond: {'; '.join(at_end)}")
    return found


def recipe_name(cell: Cell) -> str:
    """A cell's recipe without its number of members."""
    names = ("task", "method", "regularizers", "budget")
    return " ".join(str(cell.factors[name]) for name in names if cell.factors[name] not in (None, "none"))


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(f"{v:g}" if isinstance(v, (int, float)) else str(v) for v in values)
