"""The choice between the points of a study, from stored validation predictions alone.

The point with the lowest mean validation NLL of the single members is chosen, not of the ensemble, so that
tuning does not depend on how many members are compared later. No prediction on a test set is read, and none
is made before the choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lorae.metrics import pooled_nll
from lorae.store.ahead import ahead
from lorae.store.names import member_folder
from lorae.store.store import Store
from lorae.trial import Sweep, Trial
from lorae.trial.tuning import (
    Point,
    Study,
    left_out,
    recipe_name,
    studies,
    taught_by,
    teacher_recipe,
    values_text,
)
from lorae.untrusted import count, number


def _number_or_null(value: Any) -> bool:
    return value is None or number(value)


def _count_or_null(value: Any) -> bool:
    return value is None or count(value)


def _text_or_null(value: Any) -> bool:
    return value is None or type(value) is str


TUNING = {  # the shape of `Choice.record`
    "axes": {str: {"values": list, "at_end": bool}},  # and "chosen": a value, null if all points failed
    "points": [  # "validation_nll": mean over single members; null if a member failed
        {"values": {}, "validation_nll": _number_or_null, "members": count, "member_ids": [str]}
    ],
    "members": count,  # members that judge a point
    "seed": _count_or_null,  # their seed; null, like "eval_set", without points
    "eval_set": _text_or_null,  # their validation predictions
    "train_tokens": count,  # of all points' stored members
    "train_seconds": number,
    "reused_members": count,  # those among them that are the row's own members
    "uneven_tuning": bool,  # the sweep allows tuning its recipes over unequal numbers of points
}
_COST = {"cost": {"train_tokens": count, "train_seconds": number}}


@dataclass(frozen=True)
class Choice:
    """The results of a study.

    Attributes:
        nlls: each point's mean validation NLL of single members, in nats per example; infinite if a member
            failed, None if one is not stored yet.
        taught: what the chosen values of the recipe's teacher set in it, by dotted path.
        is_ready: the recipe has no teacher, or the teacher's values are chosen.
    """

    study: Study
    nlls: tuple[float | None, ...]
    taught: dict[str, Any] = field(default_factory=dict)
    is_ready: bool = True

    @property
    def is_known(self) -> bool:
        """Whether every point was tried."""
        return self.is_ready and None not in self.nlls

    @property
    def best_nll(self) -> float:
        """The lowest NLL; infinite while a point is not tried, and if all failed."""
        known = [nll for nll in self.nlls if nll is not None]
        return min(known, default=math.inf) if self.is_known else math.inf

    @property
    def values(self) -> dict[str, Any] | None:
        """Values of the point with the lowest NLL, the first one on ties; {} for a study without points; None
        while a point is not tried, and if all failed."""
        if not self.study.points:
            return {}
        return None if self.best_nll == math.inf else self.study.points[self.nlls.index(self.best_nll)].values

    @property
    def sound_points(self) -> list[Point]:
        """Points at which no member has failed."""
        return [p for p, nll in zip(self.study.points, self.nlls, strict=True) if nll != math.inf]

    @property
    def member_ids(self) -> list[str]:
        """Members of all points."""
        return [member for point in self.study.points for member in point.member_ids]

    def is_at_end(self, axis: str) -> bool:
        """Whether the smallest or largest value was chosen: a better one may lie beyond."""
        numbers = [value for value in self.study.axes[axis] if isinstance(value, (int, float))]
        chosen = (self.values or {}).get(axis)
        return bool(numbers) and chosen in (min(numbers), max(numbers))

    def failure(self, store: Store) -> str | None:
        """Why no value is chosen, or None."""
        if self.values is not None:
            return None
        what, failures = ", ".join(self.study.axes), {m: store.failure(m) for m in self.member_ids}
        if not self.is_known:
            return f"{what} is not tuned yet: members are not stored; repeat the sweep"
        why = "; ".join(f"{member}: {reason}" for member, reason in failures.items() if reason)
        return f"at every value of {what} a member failed: {why}"

    def record(self, store: Store, member_ids: Sequence[str]) -> dict[str, Any]:
        """The study as plain data of shape TUNING, for a row with these members.

        Raises:
            ValueError: the record of a stored member is damaged.
        """
        trial = self.study.points[0].trial if self.study.points else None
        chosen, costs = self.values or {}, [_cost(store, point) for point in self.study.points]
        return {
            "axes": {
                axis: {"values": values, "chosen": chosen.get(axis), "at_end": self.is_at_end(axis)}
                for axis, values in self.study.axes.items()
            },
            "points": [
                {
                    "values": point.values,
                    "validation_nll": nll if nll is not None and math.isfinite(nll) else None,
                    "members": sum(map(store.is_member, point.member_ids)),
                    "member_ids": point.member_ids,
                }
                for point, nll in zip(self.study.points, self.nlls, strict=True)
            ],
            "members": trial.members if trial else 0,
            "seed": trial and trial.seed,
            "eval_set": trial and trial.eval_set(trial.task, "validation"),
            "train_tokens": sum(cost["train_tokens"] for cost in costs),
            "train_seconds": sum(cost["train_seconds"] for cost in costs),
            "reused_members": len({*member_ids} & {*self.member_ids}),
            "uneven_tuning": self.study.uneven,
        }

    def __str__(self) -> str:
        """What was chosen, in words."""
        if not self.values:
            return ""
        name, failed = recipe_name(self.study.points[0].trial), self.nlls.count(math.inf)
        words = [f"best of {len(self.nlls)} for {name}: {values_text(self.values)}"]
        words[0] += f", validation NLL {self.best_nll:.4f}"
        words += [f"{failed} failed"] if failed else []
        if refused := left_out(self.study.axes, [point.values for point in self.study.points]):
            words.append(f"refused, so not tried: {' and '.join(map(values_text, refused))}")
        for axis in filter(self.is_at_end, self.study.axes):
            end = "smallest" if self.values[axis] == min(self.study.axes[axis]) else "largest"
            words.append(f"the {end} {axis} that was tried, a better one may lie beyond")
        return "; ".join(words)


def chosen(store: Store, sweep: Sweep) -> dict[Trial, Choice]:
    """The choice of each recipe of a sweep, by `recipe_of`; a student is tuned at its teacher's choice."""
    plain = studies(sweep)
    found = {recipe: choose(store, study) for recipe, study in plain.items() if not recipe.teacher}
    for student in (recipe for recipe in plain if recipe.teacher):
        teacher = found.get(teacher_recipe(student) or student)  # None = its values are given
        values = teacher.values if teacher else {}
        taught = taught_by(student, values or {})
        study = studies(sweep, {student: taught})[student]
        known = (None,) * len(study.points) if values is None else choose(store, study).nlls
        found[student] = Choice(study, known, taught, is_ready=values is not None)
    return {recipe: found[recipe] for recipe in plain}


def choose(store: Store, study: Study) -> Choice:
    """The choice between a study's points, from the stored predictions."""
    return Choice(study, tuple(ahead(lambda point: _nll(store, point), study.points)))


def _nll(store: Store, point: Point) -> float | None:
    """A point's entry in `Choice.nlls`; a member with several predictions is judged by their mean. A failed
    member is not retried, as it would fail again."""
    name, folders = point.trial.eval_set(point.trial.task, "validation"), map(member_folder, point.member_ids)
    try:
        stored = [store.predictions([folder], name) for folder in folders]
    except ValueError:
        return math.inf if any(map(store.failure, point.member_ids)) else None
    nlls = [pooled_nll(member.logits_MNC, member.labels_N) for member in stored]
    return sum(nlls) / len(nlls)


def _cost(store: Store, point: Point) -> dict[str, float]:
    """Training cost of a point's members; failed members have no record of it."""
    stored = filter(store.is_member, point.member_ids)
    costs = [store.record(member_folder(m), _COST)["cost"] for m in stored]
    shared = point.trial.method.regime == "features"  # its members share the backbone's forward passes
    tokens = [cost["train_tokens"] for cost in costs] or [0]
    return {
        "train_tokens": max(tokens) if shared else sum(tokens),
        "train_seconds": sum(cost["train_seconds"] for cost in costs),
    }
