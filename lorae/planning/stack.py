"""A stack: members that are trained together, the unit of scheduling, and the reports of its run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lorae.draws import Draws, drawn_set
from lorae.identity import digest
from lorae.store.answers import answer_set, answers_file
from lorae.store.predictions import prediction_file
from lorae.tasks.base import Split, Task
from lorae.trial import Trial


@dataclass(frozen=True)
class EvalSet:
    """A split of a task that members predict, and their draws."""

    task: Task
    split: Split
    draws: Draws | None = None

    @property
    def name(self) -> str:
        return drawn_set(self.task.eval_set(self.split), self.draws)


@dataclass(frozen=True)
class Stack:
    """Members of one recipe to train or to predict with; without members, only the backbone's predictions.

    Args:
        trial: the recipe and seed; its number of members does not matter.
        members: indices of the members.
        eval_tasks: OOD tasks whose test split the members also predict.
        micro_batch: examples per member and forward pass, None = the whole batch; not part of any identity.
        draws: draws that each member predicts with; None among them = a plain prediction. () = the trial's.
        draw_members: how many members, from the lowest index, predict with each of `draws`; () = all.
        paths: store how each member's validation predictions change during training.
        soup: the members are stored, and only their soup, made by this combination, predicts.
        pool: the members are stored, and only write texts together.
        stored: members that were already stored at planning time, and only make missing predictions; not part
            of any identity.
        validation_only: the members are trained for tuning, and predict only validation.
        teaching: how many members, from the lowest index, also predict the training examples, for the trials
            whose teacher they are.
        beside: stacks of other recipes or seeds that are trained in the same steps: see `joined`. Each then
            predicts alone.
    """

    trial: Trial
    members: tuple[int, ...]
    eval_tasks: tuple[Task, ...] = ()
    micro_batch: int | None = None
    draws: tuple[Draws | None, ...] = ()
    draw_members: tuple[int, ...] = ()
    paths: bool = False
    soup: str | None = None
    pool: bool = False
    stored: tuple[int, ...] = ()
    validation_only: bool = False
    teaching: int = 0
    beside: tuple[Stack, ...] = ()

    @property
    def parts(self) -> tuple[Stack, ...]:
        """The stack itself and those beside it, each alone."""
        return tuple(replace(part, beside=(), micro_batch=self.micro_batch) for part in (self, *self.beside))

    @property
    def num_members(self) -> int:
        """Members of all parts."""
        return sum(len(part.members) for part in (self, *self.beside))

    @property
    def to_train(self) -> tuple[int, ...]:
        """Members that were not stored at planning time."""
        return () if self.soup or self.pool else tuple(m for m in self.members if m not in self.stored)

    def eval_sets(self, member: int | None = None) -> dict[str, EvalSet]:
        """Prediction sets that a member has at the end, by name; None = the sets of all members."""
        ways = self.draws or (self.trial.draws,)
        if member is not None and self.draw_members:
            ways = [draws for draws, num in zip(ways, self.draw_members) if member < num]
        sets = {s.name: s for draws in ways for s in self._splits(draws)}
        if self.teaching > (member or 0):
            sets |= {s.name: s for s in [EvalSet(self.trial.task, "train")]}
        return sets

    def reference_sets(self) -> dict[str, EvalSet]:
        """Prediction sets of the backbone itself; KL adds the training split. Empty if members train heads:
        the backbone then has no classes."""
        if not self.trial.task.scoring.backbone_has_classes:
            return {}
        sets = self._splits()
        if self.trial.stores_reference:
            sets.append(EvalSet(self.trial.task, "train"))
        return {s.name: s for s in sets}

    def answer_sets(self) -> dict[str, EvalSet]:
        """Sets that members, the backbone and soups write answers to, by the answers' name; empty for other
        scorings and in tuning."""
        scoring = self.trial.task.scoring
        if not scoring.writes_text or self.validation_only:
            return {}
        return {answer_set(s.name, scoring.decoding): s for s in self._splits()}

    def files(self, member: int | None = None) -> set[str]:
        """Names of the predictions and answers that a member's entry has at the end."""
        return {*map(prediction_file, self.eval_sets(member)), *map(answers_file, self.answer_sets())}

    def reference_files(self) -> set[str]:
        """Names of the predictions and answers that the backbone's entry has at the end."""
        sets = self.reference_sets()
        return {*map(prediction_file, sets), *map(answers_file, self.answer_sets() if sets else ())}

    def _splits(self, draws: Draws | None = None) -> list[EvalSet]:
        validation = EvalSet(self.trial.task, "validation", draws)
        if self.validation_only:
            return [validation]
        return [validation, *(EvalSet(task, "test", draws) for task in (self.trial.task, *self.eval_tasks))]

    def member_ids(self) -> list[str]:
        """Identities of the members of all parts, in order."""
        return [part.trial.member_id(m) for part in (self, *self.beside) for m in part.members]

    @property
    def id(self) -> str:
        """Name of the stack's checkpoint: a hash of its members, whatever their order."""
        return digest(sorted(self.member_ids()))


def joined(parts: Sequence[Stack]) -> Stack:
    """One stack of several, whose trials have equal `in_common`. Their order depends on recipes and seeds
    alone, so that the same members are always in the same order: a checkpoint relies on it."""
    if len(parts) == 1:
        return parts[0]
    first, *others = sorted(parts, key=lambda part: (part.trial.seed, part.trial.member_id(0)))
    return replace(first, beside=tuple(others))


def of_members(members: Sequence[tuple[Stack, int]]) -> Stack:
    """A stack of some members of stacks that are each alone, without their other members."""
    chosen: dict[Stack, list[int]] = {}
    for stack, member in members:
        chosen.setdefault(stack, []).append(member)
    return joined([replace(stack, members=tuple(of_stack)) for stack, of_stack in chosen.items()])


@dataclass(frozen=True)
class StackResult:
    """Members that a stack's run trained and stored, found stored, and lost (with the reason)."""

    trained: tuple[str, ...] = ()
    found: tuple[str, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """Progress of a running stack: `phase` is "load", "reference", "train", "evaluate", "predict", "write" or
    "done". In "train" it counts steps, in "predict" per cent of the tokens, in "write" per cent of the
    examples.

    In "evaluate" it has the number of evaluations so far and the ensemble's validation NLL, for a search; in
    "train" the members' mean loss at the last step, and their mean NLL of the last validation, if any.
    """

    phase: str
    step: int = 0
    num_steps: int = 0
    evaluation: int | None = None
    validation_nll: float | None = None
    train_loss: float | None = None
    member_nll: float | None = None


class Stopped(Exception):
    """A stack was asked to stop; it resumes from its checkpoint when run again."""
