"""The numbers of a sweep's rows: every column of every cell as an `Estimate` from stored logits.

    trials.estimates.of(cell, "ensemble_nll")              what an ensemble of this recipe and size gives
    trials.estimates.family(cells, "ensemble_nll")         every difference between cells of one test set

For each seed, a cell's pool holds all members of its recipe that the sweep has stored: those of its largest
row.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from analysis.columns import MARGINS, margin_name
from analysis.estimates import MAX_SUBSETS, Design, Pool, Subset, estimate
from analysis.influence import Measured, measured, measured_values, of_separation
from analysis.rows import Row, eval_sets, is_soup, ood_sets, pool
from analysis.rows import rule as rule_of
from analysis.significance import Estimate, Family
from lorae.draws import plain_set
from lorae.ensemble import cross_fitted
from lorae.metrics import VALUE_SCORES, Mixture, Rule, Undefined, combine, is_of_values, ood
from lorae.metrics.regression import value_scores
from lorae.recalibration import cross_fitted_variance
from lorae.results import CONFORMAL, METRICS, OOD_METRICS, OOD_SEPARATOR, SCALED, SETS, trial_metrics
from lorae.store.predictions import Predictions
from lorae.store.store import Store

if TYPE_CHECKING:
    from analysis.cells import Cell

NOTHING = np.zeros(0)  # for a number without known contributions of test examples
TESTED = ("acc", "mcc", "ensemble_nll", "brier", "debiased_ce15")
TESTED_SCALED = tuple(f"ts_{name}" for name in TESTED[2:])
TESTED_VALUES = ("rmse", "mae", "crps", "pearson")  # and the NLL, also scaled
SQUARES = ("debiased_ce15", "ts_debiased_ce15", "rmse")  # measured as squares, shown by their roots
INDEPENDENT = "init+order"  # `Diversity.label` where members share no random stream
MAX_NUMBERS = 400_000_000  # members x examples x classes x subsets that are combined for one estimate
_RECOMPUTED = {*METRICS, *SCALED, *CONFORMAL, *SETS, "validation_nll"}

Columns = dict[str, Measured]  # column -> metric of one ensemble


class _NotStored(ValueError):
    """Logits are missing or damaged."""


class Estimates:
    """Estimates of a sweep's cells, each computed once.

    Args:
        store: where the logits are.
        rows: all finished rows of the sweep, which define its pools.
        margins: by metric, in place of `columns.MARGINS`.
    """

    def __init__(self, store: Store, rows: Sequence[Row], margins: Mapping[str, float]) -> None:
        self.store = store
        self.margins = margins
        self.flags: dict[Cell, str] = {}  # why a cell has no temperature-scaled metrics
        self.lacking: list[str] = []  # what is not stored, so that numbers are of a row's own members
        self._largest: dict[str, Row] = {}
        for row in rows:
            known = self._largest.get(_recipe(row))
            if not is_soup(row) and (known is None or row["members"] > known["members"]):
                self._largest[_recipe(row)] = row
        self._found: dict[tuple[Cell, str], Estimate | None] = {}
        self._families: dict[tuple[tuple[Cell, ...], str], Family[Cell]] = {}
        self._predictions = functools.lru_cache(maxsize=8)(self._read)

    def of(self, cell: Cell, column: str) -> Estimate | None:
        """A column of a cell; None if it is undefined for one of the cell's ensembles.

        If logits are not stored, it is the mean of the rows' own numbers, which is not compared.
        """
        if (cell, column) not in self._found:
            try:
                found = self._measured_beside(cell, column)
            except _NotStored as error:
                found = {column: _of_rows(cell, column)}
                note = f"numbers of each row's own members, without verdicts: {error}"
                self.lacking += [note] * (note not in self.lacking)
            for name, estimate in ({column: None} | found).items():
                self._found.setdefault((cell, name), estimate)
        return self._found[cell, column]

    def is_tested(self, column: str) -> bool:
        """Whether differences of a column have intervals."""
        return _source(column) is not None

    def family(self, cells: Sequence[Cell], column: str) -> Family[Cell]:
        """All cells of one test set that have a tested column.

        Raises:
            ValueError: the column is not tested, or its margin is not above 0.
        """
        key = (tuple(cells), column)
        if key not in self._families:
            if not self.is_tested(column):
                every = ", ".join((*TESTED, *TESTED_VALUES))
                raise ValueError(f"{column} is not tested: {every} and AUROCs are")
            found = {cell: self.of(cell, column) for cell in cells}
            rows = {cell: estimate for cell, estimate in found.items() if estimate}
            self._families[key] = Family(rows, self.margin(column), is_share=column == "acc")
        return self._families[key]

    def margin(self, column: str) -> float:
        """The largest difference of a tested column that does not matter."""
        return self.margins.get(margin_name(column), MARGINS[margin_name(column)])

    def num_trainings(self, cell: Cell) -> int:
        """Distinct members in the pools of a cell; 0 for the untouched backbone."""
        return len({member for row in cell.rows for member in self._pool_row(row)["member_ids"]})

    def pool_size(self, cell: Cell) -> int:
        """Members in the smallest pool of a cell; 0 for the untouched backbone."""
        return min(len(self._pool_row(row)["member_ids"]) for row in cell.rows)

    def correct(self, cell: Cell) -> np.ndarray | None:
        """Share of a cell's ensembles that answer each test example right, (N,)."""
        found = self.of(cell, "acc")
        if found is None:
            return None
        num = len(found.examples)
        return found.value + found.examples * np.sqrt(num * max(num - 1, 1))

    def of_ensembles(
        self,
        cell: Cell,
        names: Sequence[str],
        measure: Callable[[np.ndarray, np.ndarray, Rule], dict[str, float]],
    ) -> dict[str, Estimate | None]:
        """Numbers of a figure's own, estimated as the columns are, by name.

        Args:
            measure: gives the numbers of one ensemble from its test set's logits, labels and rule.
        """

        def measured_of(row: Row, subset: Subset) -> Columns:
            test = self._ensemble(row, "test", subset)
            found = measure(test.logits_MNC, test.labels_N, rule_of(row))
            return {name: Measured(value, NOTHING) for name, value in found.items()}

        return self._from_pools(cell, measured_of, names, is_tested=False)

    # Measuring --------------------------------------------------------------------------------------------

    def _measured_beside(self, cell: Cell, column: str) -> dict[str, Estimate | None]:
        """The column, and others that come at no extra cost."""
        metric, source = column.partition(OOD_SEPARATOR)[0], _source(column)
        if source is not None:
            return self._tested(cell, source)
        if metric in _RECOMPUTED or metric in OOD_METRICS:
            return self._untested(cell)
        return {column: _of_rows(cell, column)}

    def _tested(self, cell: Cell, where: str) -> dict[str, Estimate | None]:
        """All tested columns of one evaluation set."""
        if any(where not in eval_sets(row) for row in cell.rows):
            return {f"auroc_{score}{OOD_SEPARATOR}{where}": None for score in (*ood.SCORES, *VALUE_SCORES)}
        names = [*TESTED, *TESTED_SCALED, *TESTED_VALUES]
        if where != "test":
            names = [f"auroc_{score}{OOD_SEPARATOR}{where}" for score in (*ood.SCORES, *VALUE_SCORES)]
        measure = functools.partial(self._tested_columns, cell, where)
        return self._from_pools(cell, measure, names)

    def _tested_columns(self, cell: Cell, where: str, row: Row, subset: Subset) -> Columns:
        test, rule = self._ensemble(row, "test", subset), rule_of(row)
        if where == "test":
            if is_of_values(test.labels_N):
                mixture = Mixture.of(test.logits_MNC, rule)
                return measured_values(mixture, test.labels_N) | self._stretched(cell, mixture, test.labels_N)
            logp_NC = combine(test.logits_MNC, rule)
            return measured(logp_NC, test.labels_N) | self._scaled(cell, logp_NC, test.labels_N)
        others = self._ensemble(row, where, subset)
        in_, out = (_scores(found, rule) for found in (test, others))
        return {f"auroc_{s}{OOD_SEPARATOR}{where}": of_separation(in_[s], out[s]) for s in in_}

    def _scaled(self, cell: Cell, logp_NC: np.ndarray, labels_N: np.ndarray) -> Columns:
        """The same metrics at cross-fitted temperatures; none if a temperature is not meaningful.

        An example contributes only its own term: near the optimum, an error of the temperature moves the NLL
        only in second order.
        """
        try:
            fit = cross_fitted(logp_NC, labels_N)
        except Undefined as error:
            self.flags.setdefault(cell, error.reason)
            return {}
        if fit.flag:
            self.flags.setdefault(cell, fit.flag)
            return {}
        found = measured(fit.logp_NC, labels_N)
        return {name: found[name.removeprefix("ts_")] for name in TESTED_SCALED}

    def _stretched(self, cell: Cell, mixture: Mixture, y_N: np.ndarray) -> Columns:
        """The NLL of a mixture at cross-fitted factors of its standard deviation."""
        try:
            fit = cross_fitted_variance(mixture, y_N)
        except Undefined as error:
            self.flags.setdefault(cell, error.reason)
            return {}
        if fit.flag:
            self.flags.setdefault(cell, fit.flag)
            return {}
        return {"ts_ensemble_nll": measured_values(fit.mixture, y_N)["ensemble_nll"]}

    def _untested(self, cell: Cell) -> dict[str, Estimate | None]:
        """Every column that `trial_metrics` computes, without contributions of the examples."""

        def measure(row: Row, subset: Subset) -> Columns:
            sets = {where: self._ensemble(row, where, subset) for where in eval_sets(row)}
            num_entries = len(subset) or len(pool(row))
            found = trial_metrics(
                sets, list(ood_sets(row)), rule_of(row), num_entries, row["decoding"] is not None
            )
            return {n: Measured(float(v), NOTHING) for n, v in found.items() if isinstance(v, (int, float))}

        names = [*METRICS, *SCALED, *CONFORMAL, *SETS, "validation_nll"]
        names += [f"{n}{OOD_SEPARATOR}{task}" for task in ood_sets(cell.rows[0]) for n in OOD_METRICS]
        names = [name for name in names if _source(name) is None]  # the others have contributions
        return self._from_pools(cell, measure, names, is_tested=False)

    def _from_pools(
        self,
        cell: Cell,
        measure: Callable[[Row, Subset], Columns],
        names: Sequence[str],
        is_tested: bool = True,
    ) -> dict[str, Estimate | None]:
        pools: list[tuple[int, Design, Callable[[Subset], Columns]]] = []
        for row in cell.rows if cell.members else cell.rows[:1]:
            remembered = functools.cache(functools.partial(measure, row))
            design = self._design(row)
            if not is_tested or len(cell.rows) == 1:  # then they are not used
                design = replace(design, deleted=())
            pools.append((row["seed"], design, remembered))
        exchangeable = all(row["diversity"] == INDEPENDENT and not is_soup(row) for row in cell.rows)
        return {
            name: _estimate(pools, name, bool(cell.members), exchangeable, name in SQUARES) for name in names
        }

    # Reading ----------------------------------------------------------------------------------------------

    def _design(self, row: Row) -> Design:
        if not row["members"] or is_soup(row):
            return Design(1, ((),))
        size = len(pool(self._pool_row(row)))
        numbers = row["members"] * row["num_examples"] * self._num_classes(row)
        return Design.of(size, row["members"], max(2 * size, min(MAX_SUBSETS, MAX_NUMBERS // numbers)))

    def _pool_row(self, row: Row) -> Row:
        return row if is_soup(row) else self._largest[_recipe(row)]

    def _num_classes(self, row: Row) -> int:
        return self._predictions(*self._address(row, "test")).logits_MNC.shape[2]

    def _address(self, row: Row, where: str) -> tuple[tuple[str, ...], str]:
        whole = row if is_soup(row) or not row["members"] else self._pool_row(row)
        return tuple(pool(whole)), eval_sets(row)[where]

    def _ensemble(self, row: Row, where: str, subset: Subset) -> Predictions:
        """Predictions of the members of a subset; () means all of them."""
        folders, name = self._address(row, where)
        whole = self._predictions(folders, name)
        if not subset:
            return whole
        num_draws = len(whole.logits_MNC) // len(folders)
        draws = np.arange(len(whole.logits_MNC)).reshape(-1, num_draws)[list(subset)].ravel()
        return Predictions(whole.logits_MNC[draws], whole.labels_N, whole.example_ids)

    def _read(self, folders: tuple[str, ...], eval_set: str) -> Predictions:
        try:
            return self.store.predictions(folders, eval_set)
        except ValueError as error:
            raise _NotStored(str(error)) from error


def _recipe(row: Row) -> str:
    """Key of the rows whose members belong to one pool."""
    draws = eval_sets(row)["test"].removeprefix(plain_set(eval_sets(row)["test"]))
    test = plain_set(eval_sets(row)["test"])
    return json.dumps([row["recipe"], row["seed"], row["diversity"], test, draws, min(row["members"], 1)])


def _source(column: str) -> str | None:
    """The evaluation set of a column whose differences are tested, "test" or an OOD task; otherwise None."""
    metric, _, task = column.partition(OOD_SEPARATOR)
    if metric in (*TESTED, *TESTED_SCALED, *TESTED_VALUES):
        return "test"
    return task if task and metric.startswith("auroc_") else None


def _scores(found: Predictions, rule: Rule) -> dict[str, np.ndarray]:
    """Scores of OOD detection of each example by name."""
    of_values = is_of_values(found.labels_N)
    return value_scores(found.logits_MNC) if of_values else ood.scores(found.logits_MNC, rule)


def _estimate(
    pools: Sequence[tuple[int, Design, Callable[[Subset], Columns]]],
    name: str,
    is_trained: bool,
    exchangeable: bool,
    root: bool,
) -> Estimate | None:
    """One column, estimated from the subsets of each pool; None if one of them lacks it."""
    found = [
        {subset: columns_of(subset).get(name) for subset in (*design.chosen, *design.deleted)}
        for _, design, columns_of in pools
    ]
    values = [one for measured_of in found for one in measured_of.values()]
    if any(one is None for one in values):
        return None
    if not all(math.isfinite(one.value) for one in values if one):
        return Estimate(math.inf, NOTHING)
    if not is_trained:  # the backbone is one model without trainings
        (whole,) = [one for one in values if one]
        return Estimate(whole.value, whole.examples, root=root)
    of_seeds = [
        Pool(seed, design, cast(Callable[[Subset], Measured], measured_of.__getitem__))
        for (seed, design, _), measured_of in zip(pools, found, strict=True)
    ]
    return estimate(of_seeds, exchangeable=exchangeable, root=root)


def _of_rows(cell: Cell, column: str) -> Estimate | None:
    """A cost, or another number that only whole rows have: its mean over seeds."""
    values: list[Any] = [row.get(column) for row in cell.rows]
    if any(value is None for value in values):
        return None
    pools = [
        (row["seed"], Design(1, ((),)), lambda _, value=value: {column: Measured(float(value), NOTHING)})
        for row, value in zip(cell.rows, values, strict=True)
    ]
    return _estimate(pools, column, is_trained=True, exchangeable=False, root=False)
