"""A stack: members of one recipe that are trained together; the unit that is scheduled."""

from __future__ import annotations

from dataclasses import dataclass

from lorae.identity import digest
from lorae.regularizers import KL
from lorae.tasks.base import Head, Split, Task
from lorae.trial import Trial


@dataclass(frozen=True)
class Stack:
    """Members of one recipe to train or to predict with; with no members only the backbone's own predictions.

    Args:
        trial: the recipe and seed; its number of members does not matter.
        members: indices of the members.
        eval_tasks: OOD tasks whose test split the members also predict.
        micro_batch: examples of each member per forward pass, None = the whole batch; no part of any
        identity.
    """

    trial: Trial
    members: tuple[int, ...]
    eval_tasks: tuple[Task, ...] = ()
    micro_batch: int | None = None

    def eval_sets(self) -> dict[str, tuple[Task, Split]]:
        """Prediction sets that every member has at the end, by name."""
        own: list[tuple[Task, Split]] = [(self.trial.task, "validation"), (self.trial.task, "test")]
        own.extend((t, "test") for t in self.eval_tasks)
        return {t.eval_set(split): (t, split) for t, split in own}

    def reference_sets(self) -> dict[str, tuple[Task, Split]]:
        """Prediction sets of the backbone itself; KL adds the training split. None if members have heads: the
        backbone has no classes then."""
        if isinstance(self.trial.task.scoring, Head):
            return {}
        sets = self.eval_sets()
        if self.trial.regularizer(KL):
            sets[self.trial.task.eval_set("train")] = (self.trial.task, "train")
        return sets

    @property
    def id(self) -> str:
        """Name of the stack's checkpoint: its members', whatever their order."""
        return digest(sorted(self.trial.member_id(m) for m in self.members))
