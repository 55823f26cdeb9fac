"""Members that learn from others: their stacks are run when their teachers' predictions are stored."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lorae.store.names import member_folder
from lorae.store.store import Store
from lorae.trial import Trial

if TYPE_CHECKING:
    from lorae.planning.plan import Plan


def has_teacher(trial: Trial, store: Store) -> bool:
    """Whether the members that a trial's members learn from, if any, have predicted the training examples."""
    if trial.teacher is None:
        return True
    targets = [trial.task.eval_set("train")]
    return all(store.has_predictions(member_folder(m), targets) for m in trial.teacher.member_ids())


def students_of(plan: Plan, store: Store) -> Plan:
    """The plan of the students whose teachers are stored now, to be placed; a teacher may have failed."""
    ready = tuple(stack for stack in plan.students if has_teacher(stack.trial, store))
    return replace(plan, pending=ready, begun=(), students=(), soups=())
