"""A sweep's rows from storage, and the cells of its tables: rows that differ only in their seed.

trials = load_trials("lorae-results", "demo")
for cell in trials.cells:
    cell.name, cell.factors["regularizers"], trials.estimates.of(cell, "ensemble_nll")
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

from analysis.cells import PROMPTED, Cell
from analysis.pooling import Estimates
from analysis.rows import (
    Row,
    describe,
    eval_sets,
    fill_command,
    missing_text,
    ood_sets,
    pool,
    rule,
)
from lorae.draws import plain_set
from lorae.metrics import is_of_values, ood_summary, value_ood_summary
from lorae.results import FACTORS, OOD_METRICS, OOD_SEPARATOR, read_trials
from lorae.store.predictions import Predictions, prediction_sets
from lorae.store.store import Store

SHARED_FACTORS = ("backbone", "task", "scoring", "precision", "max_tokens")  # a zero-shot row has these


@dataclass(frozen=True, eq=False)
class Trials:
    """The finished rows of one sweep, and the storage that they came from."""

    store: Store
    sweep: str
    rows: tuple[Row, ...]
    missing: tuple[str, ...]  # what `allow_missing` left out, in words
    pruned: tuple[str, ...] = ()  # what a search stopped, in words; its ensembles are unfinished
    margins: Mapping[str, float] = field(default_factory=dict)  # by metric, in place of `columns.MARGINS`

    @cached_property
    def estimates(self) -> Estimates:
        """Every number of the cells, with its uncertainty."""
        return Estimates(self.store, self.rows, self.margins)

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Rows pooled over seeds, in the sweep's order."""
        return tuple(_cells(self.rows))

    @cached_property
    def varying(self) -> tuple[str, ...]:
        """Factors that take more than one value in this sweep, without seed and members."""
        return tuple(f for f in self._factors if len(self._values(f)) > 1)

    @cached_property
    def constant(self) -> dict[str, Any]:
        """Factors that have one value throughout."""
        return {f: next(iter(self._values(f))) for f in self._factors if len(self._values(f)) == 1}

    @property
    def ood_tasks(self) -> tuple[str, ...]:
        """Tasks on which OOD detection was measured."""
        return tuple(dict.fromkeys(task for row in self.rows for task in ood_sets(row)))

    @property
    def of_classes(self) -> Trials:
        """The rows whose answers are classes, which have an accuracy."""
        rows = tuple(row for row in self.rows if row["acc"] is not None)
        return self if len(rows) == len(self.rows) else replace(self, rows=rows)

    def with_stored_ood(self) -> Trials:
        """The same rows with OOD metrics on every other task that all members of all seeds have predicted.

        `lorae predict` adds such sets; members shared with another sweep may also have them. Sets that only
        some seeds of a cell have are left out, and a task that the sweep itself names is not added twice.
        """
        added: dict[str, Row] = {}
        for cells in self.by_test_set().values():
            for cell, sets in _stored_ood(self, cells).items():
                added |= {row["trial_id"]: _ood_columns(self, row, sets) for row in cell.rows}
        rows = [row | added[row["trial_id"]] for row in self.rows]
        columns = dict.fromkeys(name for row in rows for name in row)
        return replace(self, rows=tuple(dict.fromkeys(columns) | row for row in rows))

    def by_test_set(self) -> dict[str, list[Cell]]:
        """Cells that can be compared with each other, in the sweep's order."""
        groups: dict[str, list[Cell]] = {}
        for cell in self.cells:
            groups.setdefault(cell.test_set, []).append(cell)
        return groups

    @property
    def _factors(self) -> list[str]:
        return [f for f in self.cells[0].factors if f != "members"] if self.cells else []

    def _values(self, factor: str) -> dict[Any, None]:
        return dict.fromkeys(c.factors[factor] for c in self.cells if c.factors[factor] is not None)

    def predictions(self, row: Row, where: str = "test") -> Predictions:
        """Stored logits of a row's draws on "test", "validation" or an OOD task.

        Raises:
            ValueError: they are not in the storage, or damaged.
        """
        return self.store.predictions(pool(row), eval_sets(row)[where])


def load_trials(
    storage: str, sweep: str, allow_missing: bool = False, margins: Mapping[str, float] = MappingProxyType({})
) -> Trials:
    """The finished rows of `sweeps/<sweep>/trials.parquet`; those that a search stopped are listed
    separately.

    Args:
        storage: path or URI of the storage.
        allow_missing: leave out failed trials and missing seeds and list them in `missing`, instead of
            refusing.
        margins: the largest differences that do not matter, by metric, in place of `columns.MARGINS`.
    Raises:
        ValueError: there is no such sweep, its table cannot be read, a trial occurs twice, or trials failed
            or are missing; the message names them and the command that fills them.
    """
    store = Store(storage)
    rows = read_trials(store, sweep).to_pylist()
    times = Counter(row["trial_id"] for row in rows)
    if repeated := {describe(row): None for row in rows if times[row["trial_id"]] > 1}:
        raise ValueError(
            f"trials.parquet of sweep {sweep} has {len(repeated)} trials more than once "
            f"({'; '.join(repeated)}), which would count as seeds; repeat the sweep, which rebuilds the table"
        )
    pruned = [f"{describe(row)}: {row['error']}" for row in rows if row["status"] == "pruned"]
    rows = [row for row in rows if row["status"] != "pruned"]
    done = [row for row in rows if row["status"] == "done"]
    missing = [
        f"{describe(row)}: {' '.join(row['error'].split())}" for row in rows if row["status"] != "done"
    ]
    missing += _missing_seeds(_cells(rows))
    if missing and not (allow_missing and done):
        raise ValueError(missing_text(sweep, missing, fill_command(rows[0])))
    if not done:
        raise ValueError(f"sweep {sweep} of {store.storage.uri} has no trials; repeat the sweep that made it")
    return Trials(store, sweep, tuple(done), tuple(missing), tuple(pruned), margins)


def _stored_ood(trials: Trials, cells: Sequence[Cell]) -> dict[Cell, dict[str, str]]:
    """Further OOD tasks of each cell of one test set, and the prediction set that all of its draws have.

    A column is of one set of examples: of a task's versions, the one that most cells have, or the first if
    several do. A set that the backbone alone has compares nothing.
    """
    stored = {cell: _further_sets(trials, cell) for cell in cells}
    compared = [sets for cell, sets in stored.items() if cell.members] or stored.values()
    num_cells = Counter(name for sets in compared for name in sets)
    version: dict[str, str] = {}
    for name in sorted(num_cells, key=lambda name: (-num_cells[name], name)):
        version.setdefault(name.rsplit("__", 2)[0], name)
    return {
        cell: {task: sets[name] for task, name in sorted(version.items()) if name in sets}
        for cell, sets in stored.items()
    }


def _further_sets(trials: Trials, cell: Cell) -> dict[str, str]:
    """Test sets of other tasks that all draws of all rows of a cell have: plain name -> name."""
    folders = dict.fromkeys(folder for row in cell.rows for folder in pool(row))
    stored = set.intersection(*(prediction_sets(trials.store.files(folder)) for folder in folders))
    own = {name.rsplit("__", 2)[0] for name in eval_sets(cell.rows[0]).values()}
    draws = _suffix(eval_sets(cell.rows[0])["test"])
    found: dict[str, str] = {}
    for name in stored:
        task, split, _ = name.rsplit("__", 2)
        if split == "test" and task not in own and _suffix(name) == draws:
            found[plain_set(name)] = name
    return found


def _ood_columns(trials: Trials, row: Row, sets: dict[str, str]) -> Row:
    """OOD columns of a row on further prediction sets by task, and its `eval_sets` with them."""
    if not sets:
        return {}
    columns: Row = {"eval_sets": json.dumps(eval_sets(row) | sets)}
    test = trials.predictions(row)
    for task in sets:
        ood = trials.predictions(row | columns, task)
        if is_of_values(test.labels_N):
            scores = value_ood_summary(test.logits_MNC, ood.logits_MNC)
        else:
            scores = ood_summary(test.logits_MNC, ood.logits_MNC, rule(row))
        found = dict.fromkeys(OOD_METRICS) | scores
        columns |= {f"{metric}{OOD_SEPARATOR}{task}": value for metric, value in found.items()}
    return columns


def _suffix(eval_set: str) -> str:
    """The part of a prediction set's name that describes its draws."""
    return eval_set.removeprefix(plain_set(eval_set))


def _missing_seeds(cells: Iterable[Cell]) -> list[str]:
    trained = [cell for cell in cells if cell.members > 0]
    seeds = {row["seed"] for cell in trained for row in cell.rows}
    return [
        f"{describe(cell.rows[0] | {'seed': seed})}: not in the table"
        for cell in trained
        for seed in sorted(seeds - {row["seed"] for row in cell.rows})
    ]


# Cells -----------------------------------------------------------------------------------------------------


def is_shared(factor: str) -> bool:
    """Whether the untouched backbone has this factor too."""
    return factor in SHARED_FACTORS or factor.startswith(("backbone.", "task."))


def _cells(rows: Sequence[Row]) -> list[Cell]:
    unnamed = _unnamed_settings(rows)
    names = [f for f in FACTORS if f != "seed"]
    pools: dict[tuple[str, str], tuple[dict[str, Any], list[Row]]] = {}
    for row in rows:
        factors = {f: row[f] for f in names} | {f: _flat(row["recipe"]).get(f, "none") for f in unnamed}
        if row["members"] == 0:
            factors = {f: v if f == "members" or is_shared(f) else None for f, v in factors.items()}
        elif row["method"] in PROMPTED:
            factors |= dict.fromkeys(_OF_TRAINING)
        key = json.dumps(factors), row["eval_sets"]  # subsets of one test split share every factor
        pools.setdefault(key, (factors, []))[1].append(row)
    return [
        Cell(factors, tuple(sorted(pool, key=lambda row: row["seed"]))) for factors, pool in pools.values()
    ]


_OF_TRAINING = (  # factors that in-context learning lacks
    *("targets", "rank", "alpha", "budget"),
    *("schedule", "lr", "warmup_frac", "weight_decay", "max_grad_norm"),
)


def _unnamed_settings(rows: Sequence[Row]) -> list[str]:
    """Parts of the recipe (`optimizer.eps`) that distinguish rows with equal factors.

    Without them, such rows would be pooled as if they differed only in their seed.
    """
    recipes: dict[tuple[Any, ...], set[str]] = {}
    for row in rows:
        recipes.setdefault(tuple(row[f] for f in FACTORS), set()).add(row["recipe"])
    differing: dict[str, None] = {}
    for same_factors in recipes.values():
        flat = [_flat(recipe) for recipe in sorted(same_factors)]
        for setting in dict.fromkeys(s for settings in flat for s in settings):
            if len({settings.get(setting) for settings in flat}) > 1:
                differing[setting] = None
    return list(differing)


def _flat(recipe: str) -> dict[str, Any]:
    """Dotted path -> value of every leaf of a recipe's JSON."""
    leaves: dict[str, Any] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, (dict, list)):
            parts = value.items() if isinstance(value, dict) else enumerate(value)
            for name, part in parts:
                walk(part, f"{path}.{name}" if path else str(name))
        else:
            leaves[path] = "none" if value is None else value  # None is reserved for what a cell lacks

    walk(json.loads(recipe), "")
    return leaves
