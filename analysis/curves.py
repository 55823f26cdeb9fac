"""A recipe's metric by ensemble size, and the power law that it follows.

    for curve in curves(load_trials("lorae-results", "members")):
        curve.name, curve.law, curve.enough()

A curve is the temperature-scaled NLL ("CNLL", Ashukha et al. 2020, arXiv:2002.06470) of the ensembles of each
size in a recipe's pools, whatever sizes its sweep has rows for.

All sizes share the pool's members and the test examples. The jackknife of `analysis.estimates` gives how far
each of them moves the whole curve, and this is carried through the fit. A size near the pool's adds little to
the smaller ones: it moves as they do, and makes the law no more certain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
from scipy import stats

from analysis.cells import Cell
from analysis.columns import title
from analysis.data import Trials
from analysis.pooling import Estimates
from analysis.power_law import PowerLaw, fit_power_law
from analysis.significance import ALPHA, Difference, Estimate, Family, Moves
from lorae.combinations import SOUPS
from lorae.results import METRICS, OOD_SEPARATOR, SCALED

LAW_METRIC = "ts_ensemble_nll"
MARGIN = 0.001  # nats
MIN_POOL = 3  # sizes needed to fit a law of three parameters
REACH = 4  # times the pool, as far as the law was tested out of sample (docs/measurements.md)


@dataclass(frozen=True, eq=False)
class Curve:
    """A metric of a recipe's ensembles by their size.

    Args:
        cell: the recipe's largest row.
        margin: a smaller gain is not worth a member, in the unit of the metric.
        cells: by size, up to the smallest pool's: what a row of that many members would be.
        points: the metric of each cell.
        missing: why there are no points; "" otherwise.
    """

    cell: Cell
    margin: float
    cells: Mapping[int, Cell]
    points: Mapping[int, Estimate] = field(default_factory=dict)
    missing: str = ""

    @property
    def name(self) -> str:
        """The recipe in plain words."""
        return self.cells[1].name.removeprefix("single ").removesuffix(" member")

    @property
    def pool_size(self) -> int:
        return max(self.cells)

    @property
    def reach(self) -> int:
        """The largest size that is predicted."""
        return REACH * self.pool_size

    @cached_property
    def law(self) -> PowerLaw:
        return fit_power_law(list(self.points), [point.value for point in self.points.values()])

    def at(self, members: int) -> Estimate:
        """The law at a size, with how far each example and training moves it."""
        points = list(self.points.values())
        weights_K = self.law.leverage(list(self.points), members)
        return Estimate(
            self.law.at(members),
            weights_K @ np.array([point.examples for point in points]),
            _carried(weights_K, [point.members for point in points]),
            _carried(weights_K, [point.seeds for point in points]),
            points[0].num_trainings,
        )

    def interval(self, members: int) -> tuple[float, float] | None:
        """The 95 % interval of the law at a size, over new trainings on the same test examples: where the
        mean ensemble of that many newly trained members lies. None if it is unknown how trainings differ."""
        predicted = self.at(members)
        half = half_width(predicted)
        return None if math.isnan(half) else (predicted.value - half, predicted.value + half)

    def gain(self, members: int, more: int) -> Difference:
        """How much lower the law is at `more` members, with its 95 % interval over new trainings and new test
        examples."""
        family = Family({size: self.at(size) for size in (members, more)}, self.margin)
        return family.difference(members, more)

    @cached_property
    def gains(self) -> dict[int, Difference]:
        """What one more member gains at each size up to `reach`."""
        return {members: self.gain(members, members + 1) for members in range(1, self.reach + 1)}

    def enough(self, end: Literal["value", "lo", "hi"] = "value") -> int | None:
        """The smallest size at which one more member gains less than the margin, by the gain or by an end of
        its interval; None if it is beyond `reach`."""
        ends = {members: getattr(gain, end) for members, gain in self.gains.items()}
        return next((m for m, gain in ends.items() if gain is not None and gain < self.margin), None)


def curves(trials: Trials, margin: float = MARGIN) -> list[Curve]:
    """A curve for each trained recipe of each task, in the sweep's order; soups are left out."""
    largest: dict[str, Cell] = {}
    for cell in trials.cells:
        if cell.members and cell.factors["combine"] not in SOUPS:
            known = largest.setdefault(cell.recipe, cell)
            largest[cell.recipe] = max(known, cell, key=lambda cell: cell.members)
    return [curve_of(trials.estimates, cell, margin) for cell in largest.values()]


def curve_of(estimates: Estimates, cell: Cell, margin: float = MARGIN, metric: str = LAW_METRIC) -> Curve:
    """The curve of one recipe, from the pools that it has in `estimates`."""
    cells = {size: of_size(cell, size) for size in _sizes(estimates.pool_size(cell))}
    curve = Curve(cell, margin, cells)
    if curve.pool_size < MIN_POOL:
        found = f"{curve.pool_size} member{'s' * (curve.pool_size > 1)} of a seed"
        return replace(curve, missing=f"{found}; a law needs {MIN_POOL}, such as by `--set members=5`")
    points: dict[int, Estimate] = {}
    for size, one in cells.items():
        found = estimates.of(one, metric)
        if found is None or not math.isfinite(found.value):
            why = estimates.flags.get(one) or "; ".join(estimates.lacking) or "it is infinite"
            return replace(curve, missing=f"no {title(metric)} of {size} members: {why}")
        if found.members is None and points:  # the whole of the only pool: moves as at the size before
            found = replace(found, members=list(points.values())[-1].members)
        points[size] = found
    return replace(curve, points=points)


def _sizes(pool_size: int) -> list[int]:
    """Sizes to measure: all up to 10; for larger pools all up to 5, then about four per doubling."""
    spread = np.geomspace(min(5, pool_size), pool_size, 7).round().astype(int)
    return sorted({*range(1, min(5, pool_size) + 1), *spread.tolist()})


def half_width(estimate: Estimate) -> float:
    """Half-width of the 95 % interval over new trainings, by Student's t; NaN if their spread is unknown."""
    moved = estimate.members or estimate.seeds
    if moved is None or estimate.stderr is None:
        return math.nan
    return float(stats.t.isf(ALPHA / 2, len(moved) - 1)) * estimate.stderr


def of_size(cell: Cell, members: int) -> Cell:
    """The cell with another number of members, without its rows' metrics, which are of another size."""
    own = {*METRICS, *SCALED}
    rows = [
        {name: value for name, value in row.items() if name not in own and OOD_SEPARATOR not in name}
        for row in cell.rows
    ]
    return Cell(cell.factors | {"members": members}, tuple(row | {"members": members} for row in rows))


def _carried(weights_K: np.ndarray, moves: Sequence[Moves | None]) -> Moves | None:
    """How far each training moves a weighted sum; None if that is unknown for one of its terms."""
    known = [moved for moved in moves if moved is not None]
    if len(known) < len(moves):
        return None
    return {unit: weights_K @ np.array([moved[unit] for moved in known]) for unit in known[0]}
