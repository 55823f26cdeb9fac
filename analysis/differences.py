"""Effects of a change: each cell minus a named baseline, with its interval.

ensembling(trials)         ensembles minus the single member of the same setting
regularising(trials)       regularised cells minus the unregularised of the same size
same_parameters(trials)    ensembles minus the single LoRA of rank M * r
same_compute(trials)       ensembles minus the single adapter trained M times as long
same_predictions(trials)   ensembles minus M samples of a single member
souping(trials)            soups minus the ensemble of the same members
against_rivals(trials)     the largest LoRA ensemble minus each of its rivals

All take their differences from the families of pairs that mark the comparison table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from analysis.cells import Cell, draws_name
from analysis.columns import COST_COLUMNS, Column, ood_columns, tested_metrics, title
from analysis.data import Trials
from analysis.render import text
from analysis.significance import ALPHA
from analysis.table import (
    THESE,
    Entry,
    Line,
    Table,
    cell_columns,
    cell_line,
    entry,
    is_of_these,
    made_by,
    margins_text,
    notes,
    setting,
)
from lorae.draws import TFB
from lorae.identity import spec_of
from lorae.trial import Budget

INTERVALS = (
    f"Difference [simultaneous {1 - ALPHA:.0%} interval over test examples and trainings, one family of all "
    "pairs of each column], of calibration errors of their roots; bold: it excludes 0; ≈: equivalent, it "
    "lies within the margin ({margins})."
)
FLIPS = "Flips: test answers that only the line has right, and only its baseline, expected over ensembles."


def ensembling(trials: Trials) -> Table:
    """What ensembling changes: each ensemble minus the single member of its setting."""
    return differences(
        trials,
        lambda cell: _averaging(cell) | {"members": 1} if cell.members > 1 else None,
        name="ensembling",
        heading="What ensembling changes, against the single member of the same setting",
    )


def _averaging(cell: Cell) -> dict[str, Any]:
    """Factors of the cell that averages predictions; for a soup, the ensemble of its members."""
    return cell.factors | ({"combine": "probs"} if cell.is_soup else {})


def regularising(trials: Trials) -> Table:
    """What regularising changes: each regularised cell minus the unregularised one of its size."""
    return differences(
        trials,
        lambda cell: cell.factors | {"regularizers": "none"} if cell.regularised else None,
        name="regularising",
        heading="What regularising changes, against no regulariser at the same number of members",
    )


def same_parameters(trials: Trials) -> Table:
    """Each ensemble minus the single adapter with as many parameters, if the sweep has one."""

    def larger(cell: Cell) -> dict[str, Any] | None:
        if cell.members < 2 or not cell.factors["rank"]:
            return None
        rank, alpha = (cell.members * cell.factors[name] for name in ("rank", "alpha"))
        return _averaging(cell) | {"members": 1, "rank": rank, "alpha": alpha}

    heading = "Ensembles against a single adapter with as many parameters (rank M r)"
    return differences(trials, larger, "same-parameters", heading)


def same_compute(trials: Trials) -> Table:
    """Each ensemble minus the single adapter whose training cost as much, if the sweep has one."""

    def longer(cell: Cell) -> dict[str, Any] | None:
        if cell.members < 2:
            return None
        budget: Budget = spec_of(json.loads(cell.rows[0]["recipe"])["budget"], [Budget])
        return _averaging(cell) | {"members": 1, "budget": budget.times(cell.members).label}

    heading = "Ensembles against a single adapter trained M times as long"
    return differences(trials, longer, "same-compute", heading)


def same_predictions(trials: Trials) -> Table:
    """Each ensemble minus as many samples of its first member, if the sweep has them: the same number of
    forward passes per prediction."""

    def sampled(cell: Cell) -> dict[str, Any] | None:
        if cell.members < 2 or cell.is_soup or cell.factors["draws"] != "none":
            return None
        return cell.factors | {"members": 1, "draws": TFB(cell.members).label}

    heading = "Ensembles against M samples of a single member (TFB)"
    return differences(trials, sampled, "same-predictions", heading)


def souping(trials: Trials) -> Table:
    """What averaging the members' weights changes: each soup minus the ensemble of the same members."""
    return differences(
        trials,
        lambda cell: _averaging(cell) if cell.is_soup else None,
        name="souping",
        heading="Soups, one forward pass, against the ensemble of the same members",
    )


def against_rivals(trials: Trials) -> Table:
    """The largest LoRA ensemble minus each of its rivals, with the rival's costs; empty if the sweep's only
    rivals are single adapters.

    Rivals are the other methods, several draws of one member, the ensemble's own member and soup, and single
    adapters with as many parameters or more training. If several LoRA ensembles have that size, the one that
    shares most settings with the rivals is taken.
    """
    columns = _columns(["ensemble_nll", "ts_ensemble_nll", "debiased_ce15", "acc", *ood_columns(trials)])
    blocks: list[tuple[Line, ...]] = []
    ensembles: dict[str, None] = {}
    pairs: list[Cell] = []
    for cells in trials.by_test_set().values():
        ensemble, rivals = _rivals(cells)
        if ensemble is None or all(_is_plain(rival) or rival.is_soup for rival in rivals):
            continue
        lines: list[Line] = []
        for rival in rivals:
            line = cell_line(rival) | {"rival": Entry(_told_apart(rival, ensemble))}
            line |= {cost: entry(trials, rival, cost) for cost in COST_COLUMNS}
            lines.append(line | _difference(trials, cells, ensemble, rival, columns))
        blocks.append(tuple(lines))
        pairs += [ensemble, *rivals]
        costs = ((cost, text(Column(cost, "amount"), entry(trials, ensemble, cost))) for cost in COST_COLUMNS)
        ensembles[f"{ensemble.name} ({', '.join(f'{title(cost)} {value}' for cost, value in costs)})"] = None
    of = "; ".join(ensembles)
    tasks = [Column("task", "text")] if "task" in trials.varying else []
    return Table(
        name="rivals",
        title="The LoRA ensemble against each rival",
        caption=f"{setting(trials)} {of} minus the rival of the line. {_intervals(trials, columns, pairs)} "
        f"{made_by(trials)}",
        columns=(
            *tasks,
            Column("rival", "text"),
            *(Column(cost, "amount") for cost in COST_COLUMNS),
            *columns,
        ),
        blocks=tuple(blocks),
        notes=notes(trials, pairs),
    )


def _is_plain(cell: Cell) -> bool:
    """LoRA with one draw of each member, no soup."""
    return cell.factors["method"] == "lora" and not draws_name(cell.factors["draws"]) and not cell.is_soup


def _rivals(cells: Sequence[Cell]) -> tuple[Cell | None, list[Cell]]:
    """The LoRA ensemble to compare on one test set, or None, and its rivals."""
    trained = [cell for cell in cells if cell.members]
    plain = [cell for cell in trained if _is_plain(cell)]
    others = [cell for cell in trained if not _is_plain(cell) and not cell.is_soup]
    largest = max((cell.members for cell in plain), default=0)
    if largest < 2:
        return None, []

    def shared(ensemble: Cell) -> int:
        return sum(other.factors[f] == value for other in others for f, value in ensemble.factors.items())

    ensemble = max((cell for cell in plain if cell.members == largest), key=shared)

    def is_its_soup(cell: Cell) -> bool:
        return cell.is_soup and cell.factors | {"combine": ensemble.factors["combine"]} == ensemble.factors

    return ensemble, [c for c in trained if c in others or is_its_soup(c) or _is_single_rival(c, ensemble)]


def _is_single_rival(cell: Cell, ensemble: Cell) -> bool:
    """Whether it is the ensemble's own member, or differs from it only in rank, budget and regulariser; with
    another rank or budget, or if recipes were tuned, the learning rate may differ too."""
    ours, theirs = ensemble.factors, cell.factors
    free = {"members", "rank", "alpha", "budget", "regularizers"}
    tuned = ensemble.rows[0]["tuning"] is not None
    if tuned or (ours["rank"], ours["budget"]) != (theirs["rank"], theirs["budget"]):
        free.add("lr")
    same = all(theirs[f] == value for f, value in ours.items() if f not in free)
    ranks = (ours["rank"], ensemble.members * ours["rank"])
    return _is_plain(cell) and cell.members == 1 and same and theirs["rank"] in ranks


def _told_apart(rival: Cell, ensemble: Cell) -> str:
    """A rival's name, with the settings that the name does not show."""
    words = [rival.name]
    if _is_plain(rival):
        if rival.factors["rank"] != ensemble.factors["rank"]:
            words.append(f"rank {rival.factors['rank']}")
        if rival.factors["budget"] != ensemble.factors["budget"]:
            words.append(f"budget {rival.factors['budget']}")
        if rival.factors["lr"] != ensemble.factors["lr"]:
            words.append(f"lr {rival.factors['lr']:g}")
        if rival.regularised:
            words.append(rival.factors["regularizers"])
    return ", ".join(words)


def differences(
    trials: Trials, baseline: Callable[[Cell], dict[str, Any] | None], name: str, heading: str
) -> Table:
    """A table of cells minus their baselines on the same test set; empty if no cell has one.

    Args:
        baseline: factors of the cell to subtract; None leaves the cell out. If no cell has them, it is the
            only cell that has all but the learning rate, which may differ between recipes.
    """
    columns = _columns(tested_metrics(trials))
    cells = {_place(cell, cell.factors): cell for cell in trials.cells}
    tuned: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in trials.cells:
        tuned.setdefault(_place(cell, cell.factors | {"lr": None}), []).append(cell)
    groups, pairs = trials.by_test_set(), []
    blocks: dict[str, list[Line]] = {}
    for cell in trials.cells:
        factors = baseline(cell)
        other = cells.get(_place(cell, factors)) if factors else None
        if factors and not other:
            found = tuned.get(_place(cell, factors | {"lr": None}), [])
            other = found[0] if len(found) == 1 else None
        if other:
            found = _difference(trials, groups[cell.test_set], cell, other, columns)
            blocks.setdefault(cell.test_set, []).append(cell_line(cell) | found)
            pairs += [cell, other]
    return Table(
        name=name,
        title=heading,
        caption=f"{setting(trials)} {_intervals(trials, columns, pairs)} {made_by(trials)}",
        columns=(*cell_columns(trials), *columns),
        blocks=tuple(map(tuple, blocks.values())),
        notes=notes(trials, pairs),
    )


def _place(cell: Cell, factors: dict[str, Any]) -> tuple[Any, ...]:
    """Key of these factors on a cell's test set: subsets of one test split share every factor."""
    return cell.test_set, *factors.items()


def _columns(metrics: Sequence[str]) -> list[Column]:
    """A difference for each metric; beside that of accuracy, the answers that flip."""
    found = []
    for metric in metrics:
        found += [Column(metric, "difference"), *([Column("flips", "text")] if metric == "acc" else [])]
    return found


def _difference(
    trials: Trials, cells: Sequence[Cell], cell: Cell, baseline: Cell, columns: Sequence[Column]
) -> Line:
    """Entries of the columns: `cell` minus `baseline`, both of one test set's `cells`."""
    line: Line = {"flips": Entry(_flips(trials, cell, baseline))}
    for column in columns:
        if column.kind == "difference":
            family = trials.estimates.family(cells, column.name)
            both = [family.rows[one] for one in (cell, baseline) if one in family.rows]
            told = len(both) == 2 and all(math.isfinite(one.value) for one in both)
            line[column.name] = family.difference(cell, baseline) if told else Entry(None)
    return line


def _flips(trials: Trials, cell: Cell, baseline: Cell) -> str | None:
    """Test answers that only one side has right, in expectation over each side's ensembles: "+12 -9"."""
    ours_N, theirs_N = (trials.estimates.correct(one) for one in (cell, baseline))
    if ours_N is None or theirs_N is None:
        return None
    gained, lost = float(ours_N @ (1 - theirs_N)), float(theirs_N @ (1 - ours_N))
    return f"+{gained:.3g} -{lost:.3g}"


def _intervals(trials: Trials, columns: Sequence[Column], cells: Sequence[Cell]) -> str:
    """What a caption says about the differences."""
    metrics = [column.name for column in columns if column.kind == "difference"]
    these = f" {THESE}" if any(is_of_these(trials, cell) for cell in cells) else ""
    return f"{INTERVALS.format(margins=margins_text(trials, metrics))}{these} {FLIPS}"
