"""Tuning before comparing: the points that a sweep tunes each recipe over.

A recipe is what rows that share members have in common, whatever their seed. A few members are trained at
each of its points, `lorae.planning.choice` picks the best point, and the remaining members are trained only
there. A member that is trained for tuning is an ordinary member of the recipe with that value, so the members
at the chosen point are reused.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lorae.search import rounded
from lorae.trial.axes import value_at, with_value, with_values

if TYPE_CHECKING:
    from lorae.trial import Sweep, Trial

TUNABLE = ("method", "regularizers", "optimizer", "budget")


@dataclass(frozen=True, init=False)
class Times:
    """Values of a tuning axis as multiples of each recipe's value, `Times(0.3, 1, 3)`, to three digits."""

    factors: tuple[float, ...]

    def __init__(self, *factors: float) -> None:
        object.__setattr__(self, "factors", factors)
        if not all(isinstance(factor, (int, float)) and factor > 0 for factor in factors):
            raise ValueError(f"{self}: factors must be numbers > 0; write Times(0.3, 1, 3)")

    def values(self, own: Any) -> tuple[Any, ...]:
        """The multiples of a recipe's own value; that value itself is not rounded."""
        return tuple(own if factor == 1 else rounded(factor * own) for factor in self.factors)


@dataclass(frozen=True)
class Point:
    """One value of each of a recipe's axes, and the trial whose members judge it."""

    values: dict[str, Any]
    trial: Trial

    @property
    def member_ids(self) -> list[str]:
        """Distinct members; members that share every stream count once."""
        return list(dict.fromkeys(self.trial.member_ids()))


@dataclass(frozen=True)
class Study:
    """The points that a recipe is tuned over.

    Attributes:
        axes: the tuning axes that the recipe has, with their values.
        points: the product of the values, in order, without combinations that a spec refuses; empty if the
            recipe has no axis.
        uneven: the sweep says that its recipes are tuned over unequal numbers of points.
    """

    axes: dict[str, tuple[Any, ...]]
    points: tuple[Point, ...]
    uneven: bool


def recipe_of(trial: Trial) -> Trial | None:
    """What rows that are tuned together have in common: equal for trials that share members, and for all
    their seeds; None for the untouched backbone and for methods that train nothing."""
    if not (trial.members and trial.method.trains):
        return None
    return replace(trial, seed=0, members=1, combine="probs", draws=None)


def studies(
    sweep: Sweep, taught: Mapping[Trial, Mapping[str, Any]] = MappingProxyType({})
) -> dict[Trial, Study]:
    """What each recipe of a sweep is tuned over, by `recipe_of`.

    The members at its points have the seed of the recipe's first row, and predict as that row does.

    Args:
        taught: of recipes that have a teacher, what its chosen values set in them.
    Raises:
        ValueError: an axis has invalid values, or a value that is refused with every value of the other axes.
    """
    firsts: dict[Trial, Trial] = {}
    for trial in sweep.trials():
        if recipe := recipe_of(trial):
            firsts.setdefault(recipe, trial)
    return {
        recipe: _study(sweep, with_values(first, taught.get(recipe, {}))) for recipe, first in firsts.items()
    }


def _study(sweep: Sweep, first: Trial) -> Study:
    axes = {a: _values(a, grid, first) for a, grid in sweep.tune.items() if value_at(first, a) is not None}
    judged = replace(first, combine="probs", members=sweep.tune_members if first.members_differ else 1)
    return Study(axes, tuple(_points(judged, axes)) if axes else (), sweep.uneven_tuning)


def _points(judged: Trial, axes: dict[str, tuple[Any, ...]]) -> Iterator[Point]:
    """The product of the values, without combinations that a spec refuses: a corner of a grid, such as a
    learning rate too large for the strongest decay. A value that every combination refuses is an error."""
    refusals: dict[tuple[str, Any], ValueError] = {}
    fitting: set[tuple[str, Any]] = set()
    for combination in itertools.product(*axes.values()):
        values = dict(zip(axes, combination, strict=True))
        try:
            yield Point(values, _at(judged, values))
            fitting.update(values.items())
        except ValueError as error:
            refusals |= {item: refusals.get(item, error) for item in values.items()}
    for item, error in refusals.items():
        if item not in fitting:
            raise error


def left_out(axes: Mapping[str, Sequence[Any]], points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The combinations of a study's values that are not among its points."""
    product = (dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))
    return [values for values in product if values not in points] if axes else []


def _values(axis: str, grid: Any, first: Trial) -> tuple[Any, ...]:
    own = value_at(first, axis)
    if isinstance(grid, Times) and (isinstance(own, bool) or not isinstance(own, (int, float))):
        raise ValueError(f"tune[{axis!r}] = {grid}: {own!r} has no multiples; list values instead")
    values = grid.values(own) if isinstance(grid, Times) else tuple(grid)
    if not all(isinstance(value, (int, float, str)) for value in values):
        raise ValueError(f"tune[{axis!r}] = {grid}: must be numbers or words; put specs into axes")
    if len(values) < 2 or len(set(values)) < len(values):
        raise ValueError(
            f"tune[{axis!r}]: {recipe_name(first)} would have the values {', '.join(map(str, values))}; give "
            "two or more that differ, or write a single one into the base"
        )
    return values


def _at(trial: Trial, values: dict[str, Any]) -> Trial:
    try:
        return with_values(trial, values)
    except ValueError as error:
        raise ValueError(f"tune: {values_text(values)} for {recipe_name(trial)}: {error}") from error


def check_tuning(sweep: Sweep) -> None:
    """Refuse tuning that cannot work, before anything is trained.

    Raises:
        ValueError: says what is wrong.
    """
    if sweep.tune_members < 1:
        raise ValueError(f"tune_members={sweep.tune_members}: must be >= 1")
    if not sweep.tune:
        return
    if sweep.search:
        raise ValueError(
            f"tune with search={sweep.search}: a search tunes already; leave one of them out, or tune in a "
            "sweep without search"
        )
    for axis, grid in sweep.tune.items():
        if axis in sweep.axes:
            raise ValueError(
                f"axis {axis!r} is tuned over {grid}, so its value cannot be set, too; leave it out of axes "
                "and --set, or out of tune"
            )
        if axis.partition(".")[0] not in TUNABLE or "." not in axis:
            raise ValueError(
                f"tune[{axis!r}]: must be a field of a trial's {', '.join(TUNABLE)}, such as 'optimizer.lr'"
            )
        if not isinstance(grid, (Times, tuple, list)):
            raise ValueError(
                f"tune[{axis!r}] = {grid!r}: must be values, or multiples of each recipe's own; write "
                "(1e-4, 3e-4, 1e-3) or Times(0.3, 1, 3)"
            )
    _check_teachers(sweep)
    found = studies(sweep).values()
    for axis, grid in sweep.tune.items():
        if not any(axis in study.axes for study in found):
            with_value(sweep.base, axis, grid[0] if isinstance(grid, (tuple, list)) and grid else 1.0)
            raise ValueError(f"tune[{axis!r}]: no recipe of the sweep has a value of it; leave it out")


def teacher_recipe(recipe: Trial) -> Trial | None:
    """`recipe_of` the teacher of a recipe, None without one."""
    return recipe.teacher and recipe_of(recipe.teacher)


def taught_by(recipe: Trial, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What the chosen values of a recipe's teacher set in it, by dotted path."""
    return {axis: v for regularizer in recipe.regularizers for axis, v in regularizer.taught(chosen).items()}


def _check_teachers(sweep: Sweep) -> None:
    """Refuse students whose teacher would not be tuned."""
    recipes = dict.fromkeys(filter(None, map(recipe_of, sweep.trials())))
    for student in (recipe for recipe in recipes if recipe.teacher):
        tuned = taught_by(student, dict.fromkeys(sweep.tune))
        if tuned and teacher_recipe(student) not in recipes:
            raise ValueError(
                f"tune with {recipe_name(student)}: the teacher's recipe, which lacks Distill, is no row of "
                "the sweep, so it is not tuned; add it to the axes or rivals, or write Distill(lr=...)"
            )


def values_text(values: dict[str, Any]) -> str:
    """A point in words."""
    return ", ".join(f"{axis}={value}" for axis, value in values.items())


def recipe_name(trial: Trial) -> str:
    """A recipe in words."""
    factors = trial.factors()
    words = [factors["task"], factors["method"], f"rank {factors['rank']}" if factors["rank"] else ""]
    words += [
        factors["budget"],
        factors["regularizers"],
        factors["draws"] if factors["draws"] != "none" else "",
    ]
    return " ".join(filter(None, map(str, words)))
