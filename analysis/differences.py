"""How much something changes: each cell minus a named baseline, with its interval.

ensembling(trials, resampling)         ensembles minus the single member of the same setting
regularising(trials, resampling)       regularised cells minus the unregularised of the same size
same_parameters(trials, resampling)    ensembles minus the single LoRA of rank M * r
same_compute(trials, resampling)       ensembles minus the single adapter trained M times as long
same_predictions(trials, resampling)   ensembles minus M samples of a single member
souping(trials, resampling)            soups minus the ensemble of the same members
against_rivals(trials, resampling)     the largest LoRA ensemble minus each other way to its accuracy
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from analysis.columns import COST_COLUMNS, FEW_TASKS, Column, default_metrics, title
from analysis.data import Cell, Trials, draws_name
from analysis.render import text
from analysis.resampling import Resampling
from analysis.significance import Difference, holm
from analysis.table import (
    Entry,
    Line,
    Table,
    cell_columns,
    cell_line,
    lacks_seeds,
    made_by,
    mean_entry,
    setting,
)
from lorae.draws import TFB
from lorae.identity import spec_of
from lorae.results import OOD_SEPARATOR
from lorae.trial import Budget

INTERVALS = (
    "Difference [95 % interval] by the paired bootstrap over test examples (percentile and basic together), "
    "{}; bold: p ≤ 0.05 after Holm's correction over the column of each test set. Chance adds to a "
    "calibration error: differences in ECE still favour the model whose confidences are surer or fill fewer "
    "bins."
)


def ensembling(trials: Trials, resampling: Resampling) -> Table:
    """What ensembling changes: each ensemble minus the single member of its setting."""
    return differences(
        trials,
        resampling,
        lambda cell: _averaging(cell) | {"members": 1} if cell.members > 1 else None,
        name="ensembling",
        heading="What ensembling changes, against the single member of the same setting",
    )


def _averaging(cell: Cell) -> dict[str, Any]:
    """Factors of the cell that averages predictions, of a soup the ensemble of its members."""
    return cell.factors | ({"combine": "probs"} if cell.is_soup else {})


def regularising(trials: Trials, resampling: Resampling) -> Table:
    """What regularising changes: each regularised cell minus the unregularised one of its size."""
    return differences(
        trials,
        resampling,
        lambda cell: cell.factors | {"regularizers": "none"} if cell.regularised else None,
        name="regularising",
        heading="What regularising changes, against no regulariser at the same number of members",
    )


def same_parameters(trials: Trials, resampling: Resampling) -> Table:
    """Each ensemble minus the single adapter that has as many parameters, where the sweep has one."""

    def larger(cell: Cell) -> dict[str, Any] | None:
        if cell.members < 2 or not cell.factors["rank"]:
            return None
        rank, alpha = (cell.members * cell.factors[name] for name in ("rank", "alpha"))
        return _averaging(cell) | {"members": 1, "rank": rank, "alpha": alpha}

    heading = "Ensembles against a single adapter with as many parameters (rank M r)"
    return differences(trials, resampling, larger, "same-parameters", heading, own_lr=True)


def same_compute(trials: Trials, resampling: Resampling) -> Table:
    """Each ensemble minus the single adapter whose training cost as much, where the sweep has one."""

    def longer(cell: Cell) -> dict[str, Any] | None:
        if cell.members < 2:
            return None
        budget: Budget = spec_of(json.loads(cell.rows[0]["recipe"])["budget"], [Budget])
        return _averaging(cell) | {"members": 1, "budget": budget.times(cell.members).label}

    heading = "Ensembles against a single adapter trained M times as long"
    return differences(trials, resampling, longer, "same-compute", heading, own_lr=True)


def same_predictions(trials: Trials, resampling: Resampling) -> Table:
    """Each ensemble minus as many samples of its first member, where the sweep has them: equal forward passes
    for a prediction."""

    def sampled(cell: Cell) -> dict[str, Any] | None:
        if cell.members < 2 or cell.is_soup or cell.factors["draws"] != "none":
            return None
        return cell.factors | {"members": 1, "draws": TFB(cell.members).label}

    heading = "Ensembles against M samples of a single member (TFB)"
    return differences(trials, resampling, sampled, "same-predictions", heading)


def souping(trials: Trials, resampling: Resampling) -> Table:
    """What averaging the members' weights changes: each soup minus the ensemble of the same members."""
    return differences(
        trials,
        resampling,
        lambda cell: _averaging(cell) if cell.is_soup else None,
        name="souping",
        heading="Soups, one forward pass, against the ensemble of the same members",
    )


def against_rivals(trials: Trials, resampling: Resampling) -> Table:
    """The largest LoRA ensemble minus each of its rivals, with what the rival costs; no lines where a sweep
    has no rival but single adapters.

    Rivals are the other methods, several draws of one member, the ensemble's own member and soup, and the
    single adapters of as many parameters or of more training. Of several LoRA ensembles of that size it is
    the one with which they share most settings.
    """
    few = trials.ood_tasks if len(trials.ood_tasks) <= FEW_TASKS else ()
    ood = [f"auroc_msp{OOD_SEPARATOR}{task}" for task in few]
    columns = [
        Column(name, "difference") for name in ("ensemble_nll", "ts_ensemble_nll", "ece15", "acc", *ood)
    ]
    blocks: list[tuple[Line, ...]] = []
    ensembles: dict[str, None] = {}
    for cells in trials.by_test_set().values():
        ensemble, rivals = _rivals(cells)
        if ensemble is None or all(_is_plain(rival) or rival.is_soup for rival in rivals):
            continue
        lines: list[Line] = []
        for rival in rivals:
            line = cell_line(rival) | {"rival": Entry(_told_apart(rival, ensemble))}
            line |= {cost: mean_entry(rival, cost) for cost in COST_COLUMNS}
            line |= {c.name: resampling.difference(ensemble, rival, c.name) or Entry(None) for c in columns}
            lines.append(line)
        blocks.append(corrected(lines, columns))
        costs = ((cost, text(Column(cost, "amount"), mean_entry(ensemble, cost))) for cost in COST_COLUMNS)
        ensembles[f"{ensemble.name} ({', '.join(f'{title(cost)} {value}' for cost, value in costs)})"] = None
    of = "; ".join(ensembles)
    tasks = [Column("task", "text")] if "task" in trials.varying else []
    return Table(
        name="rivals",
        title="The LoRA ensemble against each rival",
        caption=f"{setting(trials)} {of} minus the rival of the line. {_intervals(trials, resampling)} "
        f"{made_by(trials)}",
        columns=(
            *tasks,
            Column("rival", "text"),
            *(Column(cost, "amount") for cost in COST_COLUMNS),
            *columns,
        ),
        blocks=tuple(blocks),
        notes=resampling.notes,
    )


def _is_plain(cell: Cell) -> bool:
    """LoRA with one draw of each member, no soup."""
    return cell.factors["method"] == "lora" and not draws_name(cell.factors["draws"]) and not cell.is_soup


def _rivals(cells: Sequence[Cell]) -> tuple[Cell | None, list[Cell]]:
    """The LoRA ensemble of one test set that is compared, if there is one, and its rivals."""
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
    """Whether it is the ensemble's own member, or differs from that in its rank, budget and regulariser; of
    another rank or budget it may have a learning rate of its own."""
    ours, theirs = ensemble.factors, cell.factors
    free = {"members", "rank", "alpha", "budget", "regularizers"}
    if (ours["rank"], ours["budget"]) != (theirs["rank"], theirs["budget"]):
        free.add("lr")
    same = all(theirs[f] == value for f, value in ours.items() if f not in free)
    ranks = (ours["rank"], ensemble.members * ours["rank"])
    return _is_plain(cell) and cell.members == 1 and same and theirs["rank"] in ranks


def _told_apart(rival: Cell, ensemble: Cell) -> str:
    """A rival's name with the settings that such a name does not say."""
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
    trials: Trials,
    resampling: Resampling,
    baseline: Callable[[Cell], dict[str, Any] | None],
    name: str,
    heading: str,
    own_lr: bool = False,
) -> Table:
    """A table of cells minus their baselines of the same test set; no lines where no cell has one.

    Args:
        baseline: factors of the cell to subtract; None leaves the cell out.
        own_lr: where no cell has these, the one that has all but the learning rate, if there is one only.
    """
    columns = [Column(metric, "difference") for metric in default_metrics(trials)]
    cells = {_place(cell, cell.factors): cell for cell in trials.cells}
    tuned: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in trials.cells if own_lr else ():
        tuned.setdefault(_place(cell, cell.factors | {"lr": None}), []).append(cell)
    blocks: dict[str, list[Line]] = {}
    for cell in trials.cells:
        factors = baseline(cell)
        other = cells.get(_place(cell, factors)) if factors else None
        if factors and not other:
            found = tuned.get(_place(cell, factors | {"lr": None}), [])
            other = found[0] if len(found) == 1 else None
        if other:
            found = {c.name: resampling.difference(cell, other, c.name) or Entry(None) for c in columns}
            blocks.setdefault(cell.test_set, []).append(cell_line(cell) | found)
    return Table(
        name=name,
        title=heading,
        caption=f"{setting(trials)} {_intervals(trials, resampling)} {made_by(trials)}",
        columns=(*cell_columns(trials), *columns),
        blocks=tuple(corrected(lines, columns) for lines in blocks.values()),
        notes=resampling.notes,
    )


def _place(cell: Cell, factors: dict[str, Any]) -> tuple[Any, ...]:
    """Factors of a cell on the test set of another: subsets of one test split share every factor."""
    return cell.test_set, *factors.items()


def _intervals(trials: Trials, resampling: Resampling) -> str:
    """What a caption says of the differences."""
    shared = " Where seeds are missing, over those that both have." if lacks_seeds(trials) else ""
    return INTERVALS.format(resampling.size) + shared


def corrected(lines: list[Line], columns: list[Column]) -> tuple[Line, ...]:
    """The lines with the p-values of each column corrected for their number."""
    for column in columns:
        found = [(line, e) for line in lines if isinstance(e := line[column.name], Difference)]
        for (line, entry), p_value in zip(found, holm([entry.p_value for _, entry in found]), strict=True):
            line[column.name] = replace(entry, p_value=p_value)
    return tuple(lines)
