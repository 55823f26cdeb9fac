"""From a sweep to the stacks that remain to be run: members needed minus members stored, where each runs, its
memory and time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lorae.backbone.checks import Inspection
from lorae.draws import Draws
from lorae.planning.checks import check_recipe
from lorae.planning.choice import Choice, chosen
from lorae.planning.estimate import Devices, Estimate, Host, Placement, estimate
from lorae.planning.placement import divided, place
from lorae.planning.soups import lacking_soups
from lorae.planning.stack import Stack, of_members
from lorae.planning.teachers import has_teacher
from lorae.search import EarlyEnd
from lorae.sources import backbone_config
from lorae.store.ahead import ahead
from lorae.store.names import member_folder, reference_folder
from lorae.store.store import Store
from lorae.tasks.base import Task
from lorae.tasks.splits import label_faults, refuse
from lorae.trial import Sweep, Trial, cell_of, cells, in_common
from lorae.trial.axes import with_values
from lorae.trial.tuning import Point, recipe_of


@dataclass(frozen=True)
class Plan:
    """A sweep against a store.

    Attributes:
        trials: every row with its OOD tasks.
        needed: member ids of all trials; stored: those the store has; damaged: what was found broken.
        pending: what remains to be run, one stack for each recipe and seed.
        begun: stacks whose training was interrupted, and goes on as it began.
        stacks: all of these, the pending ones spread over the devices, the longest first.
        placements, estimates: of each of the stacks.
        students: stacks whose teachers lack predictions, to be run when these are stored: see `students_of`.
        soups: those that lack predictions, and members that lack texts together, to be run when the members
            are stored: see `soups_of`.
        whole: no stack is divided: a search that ends stacks early compares ensembles.
        tuning: what is to be run before the values of the trials are known; None = they are. Until then the
            trials have the values that leave most to be trained, and this plan is an upper bound.
        choices: what each trial that a sweep tunes was tuned over, and what was chosen.
        backbones: what their folders were found to hold.
    """

    trials: tuple[tuple[Trial, tuple[Task, ...]], ...]
    needed: tuple[str, ...]
    stored: tuple[str, ...]
    damaged: tuple[str, ...]
    pending: tuple[Stack, ...]
    begun: tuple[Stack, ...] = ()
    stacks: tuple[Stack, ...] = ()
    placements: tuple[Placement, ...] = ()
    estimates: tuple[Estimate, ...] = ()
    students: tuple[Stack, ...] = ()
    soups: tuple[Stack, ...] = ()
    whole: bool = False
    tuning: Plan | None = None
    choices: Mapping[Trial, Choice] = field(default_factory=dict)
    backbones: tuple[Inspection, ...] = ()

    @property
    def is_done(self) -> bool:
        """Whether nothing remains to be run."""
        return not (self.pending or self.begun or self.students or self.soups or self.tuning)

    @property
    def tuned(self) -> list[Choice]:
        """The choice of each recipe of a sweep that tunes."""
        return [*{id(choice): choice for choice in self.choices.values()}.values()]

    @property
    def num_to_train(self) -> int:
        return len(self.needed) - len(self.stored)

    @property
    def num_to_prompt(self) -> int:
        """Of those, members that are only given demonstrations."""
        prompted = {m for t, _ in self.trials if not t.method.trains for m in t.member_ids()}
        return len(prompted - set(self.stored))


def make_plan(
    sweep: Sweep,
    store: Store,
    devices: Devices | None,
    host: Host = "tune",
    rows: Sequence[Trial] | None = None,
) -> Plan:
    """Check everything that can be checked before training, and find what remains to be run, and where.

    Args:
        sweep: with every source fixed (`Sweep.located`).
        store: what is there already; nothing is written.
        devices, host: for spreading and placing the stacks, see `placed`; None = they are not known yet.
        rows: trials to plan for in place of the sweep's own, such as the points of a search.
    Raises:
        ValueError: data, targets, rank, templates or sizes that cannot work.
    """
    with store.remembering():
        if rows is None and sweep.tune:
            plan = _tuned(sweep, store)
        else:
            plan = _plan(sweep, store, sweep.trials() if rows is None else rows)
    return placed(plan, devices, host) if devices else plan


def after_tuning(sweep: Sweep, store: Store) -> Plan:
    """The plan of a sweep whose tuning was run, to be placed; a trial without a choice has nothing to run."""
    with store.remembering():
        return _tuned(sweep, store, ended=True)


def _tuned(sweep: Sweep, store: Store, ended: bool = False) -> Plan:
    """What is to be tuned, unless that has ended, and then every trial at the values that are chosen."""
    found, recipes = chosen(store, sweep), {trial: recipe_of(trial) for trial in sweep.trials()}
    tuning = None
    if not ended and not all(choice.is_known for choice in found.values()):
        points = [p.trial for choice in found.values() if choice.is_ready for p in choice.sound_points]
        tuning = _plan(sweep, store, points, validation_only=True)
    trained = set(tuning.needed) if tuning else set()
    of_recipe = {r: [trial for trial, recipe in recipes.items() if recipe == r] for r in found}
    values = {r: _values_at_most(choice, of_recipe[r], store, trained) for r, choice in found.items()}
    rows: dict[Trial, Choice | None] = {}
    for trial, recipe in recipes.items():
        row = with_values(trial, values[recipe] | found[recipe].taught) if recipe else trial
        rows.setdefault(row, found[recipe] if recipe else None)
    can_run = [r for r, c in rows.items() if c is None or c.values is not None or (tuning and not c.is_known)]
    return replace(
        _plan(sweep, store, can_run, trained=trained),
        trials=tuple((row, tuple(sweep.eval_tasks(row))) for row in rows),
        tuning=tuning,
        choices={row: choice for row, choice in rows.items() if choice},
    )


def _values_at_most(
    choice: Choice, trials: Sequence[Trial], store: Store, trained: Collection[str]
) -> dict[str, Any]:
    """The chosen values of a recipe; before the choice those at which most of its members lack."""
    if choice.values is not None:
        return choice.values

    def num_lacking(point: Point) -> int:
        values = point.values | choice.taught
        ids = {m for trial in trials for m in with_values(trial, values).member_ids()}
        return sum(not store.is_member(member) for member in ids.difference(trained))

    return max(choice.sound_points or choice.study.points, key=num_lacking).values


def _plan(
    sweep: Sweep,
    store: Store,
    rows: Sequence[Trial],
    validation_only: bool = False,
    trained: Collection[str] = (),
) -> Plan:
    """The stacks that these rows lack, to be placed.

    Args:
        validation_only: of a tuning round, whose members predict nothing else yet.
        trained: members that will be stored when these stacks are run.
    """
    trials = tuple((trial, tuple(sweep.eval_tasks(trial))) for trial in rows)
    for trial, ood in {_checked(trial): (trial, ood) for trial, ood in trials}.values():
        check_trial(trial, ood)
    needed: dict[str, None] = {}
    stored: set[str] = set()
    damaged: list[str] = []
    pending: list[Stack] = []
    draws: dict[Trial, dict[Draws | None, int]] = {}  # with the most members of a trial
    teachers = [t.teacher for t in rows if t.teacher]
    for trial in (*rows, *teachers):
        of_cell = draws.setdefault(cell_of(trial), {})
        of_cell[trial.draws] = max(trial.members, of_cell.get(trial.draws, 0))
    whole_stacks = [
        Stack(
            cell,
            tuple(range(num_members)),
            tuple(sweep.eval_tasks(cell)),
            draws=tuple(draws[cell]),
            draw_members=tuple(draws[cell].values()),
            paths=sweep.paths
            and (num_members > 1 or validation_only)
            and cell.task.scoring.answer != "value",  # paths are of distributions over classes
            validation_only=validation_only,
            teaching=max((t.members for t in teachers if cell_of(t) == cell), default=0),
        )
        for cell, num_members in cells([*rows, *teachers])
    ]
    looked_up = ahead(lambda stack: _lacking_members(stack, store, trained), whole_stacks)
    for stack, (ids, lacking, found, damages) in zip(whole_stacks, looked_up):
        cell = stack.trial
        needed |= dict.fromkeys(ids)
        stored |= found
        damaged += damages
        if lacking or not stack.reference_files() <= store.files(reference_folder(cell.reference_id())):
            only_predict = tuple(m for m in lacking if ids[m] in found)
            pending.append(replace(stack, members=lacking, stored=only_predict))
    whole = isinstance(sweep.search, EarlyEnd)
    pending, begun = (pending, []) if whole else _as_begun(pending, store)
    students = [s for s in (*begun, *pending) if s.members and not has_teacher(s.trial, store)]
    pending, begun = ([s for s in found if s not in students] for found in (pending, begun))
    covered = {
        (part.trial.reference_id(), name)
        for s in (*begun, *pending)
        for part in s.parts
        if part.members
        for name in part.reference_sets()
    }
    return Plan(
        trials=trials,
        needed=tuple(needed),
        stored=tuple(m for m in needed if m in stored),
        damaged=tuple(damaged),
        pending=tuple(
            s
            for s in pending
            if s.members or not {(s.trial.reference_id(), n) for n in s.reference_sets()} <= covered
        ),
        begun=tuple(begun),
        students=tuple(students),
        soups=tuple(lacking_soups(trials, store)),
        whole=whole,
    )


def soups_of(plan: Plan, store: Store) -> Plan:
    """The plan of the soups that lack predictions now and whose members are all stored; to be placed.

    The store is looked at again: a stored soup may be of a member that has been trained again since.
    """
    lacking = lacking_soups(plan.trials, store)
    ready = (s for s in lacking if all(map(store.is_member, s.member_ids())))
    return replace(plan, pending=tuple(ready), begun=(), students=(), soups=(), whole=True)


def placed(plan: Plan, devices: Devices, host: Host = "tune") -> Plan:
    """The plan with its pending members spread over these devices, each stack with its place.

    Args:
        host: where a stack runs that fits on one device: "local" or "tune".
    Raises:
        ValueError: a stack fits on no GPU, nor on the GPUs of a node together.
    """
    whole = [*plan.begun, *plan.pending]
    stacks = whole if plan.whole else divided(plan.begun, plan.pending, devices, host)
    rows = [(stack, place(stack, devices, host)) for stack in stacks]
    rows = [(replace(stack, micro_batch=where.micro_batch), where) for stack, where in rows]
    triples = [(stack, where, estimate(stack, devices, where)) for stack, where in rows]
    divided((), plan.students, devices, host)  # refuses now what fits nowhere
    triples.sort(key=lambda row: -row[2].seconds)
    stacks, placements, estimates = zip(*triples) if triples else ((), (), ())
    tuning = plan.tuning and placed(plan.tuning, devices, host)
    return replace(plan, stacks=stacks, placements=placements, estimates=estimates, tuning=tuning)


def _checked(trial: Trial) -> Any:
    """What `check_trial` looks at."""
    cycles = trial.optimizer.cycles, trial.optimizer.warmup_frac
    noise = tuple(regularizer for regularizer in trial.regularizers if regularizer.is_noise)
    return trial.backbone, trial.task, trial.method, trial.budget, cycles, noise


def check_trial(trial: Trial, ood: Sequence[Task]) -> None:
    """Refuse a trial that cannot work: its data, and what `check_recipe` looks at.

    Raises:
        ValueError: what is wrong.
    """
    splits = trial.task.splits()
    for name in ("train", "validation"):
        if not splits[name]:  # type: ignore[index]
            raise ValueError(f"{trial.task.name} has no {name} examples; it can only be an OOD task")
    refuse(label_faults(trial.task))
    for task in ood:
        task.examples("test")
    config = backbone_config(trial.backbone)
    check_recipe(trial, ood, config)


def _lacking_members(
    stack: Stack, store: Store, trained: Collection[str]
) -> tuple[list[str], tuple[int, ...], set[str], list[str]]:
    """The ids of a stack's members, which of them are not stored or lack predictions (of equal identities
    only the first), the ids of those that are stored and sound or will have been trained, and what is
    damaged."""
    ids, lacking, found, damaged = stack.member_ids(), {}, set(), []
    for m, member_id in zip(stack.members, ids):
        files = store.files(member_folder(member_id))
        if damage := store.damage(member_folder(member_id), changed_only=True):
            damaged.append(damage)
        elif member_id in trained or store.is_member(member_id):
            found.add(member_id)
        if member_id not in found or not stack.files(m) <= files:
            lacking.setdefault(member_id, m)
    return ids, tuple(lacking.values()), found, damaged


def _as_begun(stacks: list[Stack], store: Store) -> tuple[list[Stack], list[Stack]]:
    """The stacks without those members whose training was interrupted, and these in the stacks they were in:
    only so do they go on from their checkpoints, to the same bytes."""
    if not (sets := store.begun()):
        return stacks, []
    lacking: dict[str, tuple[Stack, int]] = {}
    for stack in stacks:
        for member_id, m in zip(stack.member_ids(), stack.members):
            lacking.setdefault(member_id, (stack, m))
    interrupted = [
        [lacking.pop(i) for i in ids]
        for ids in sets
        if lacking.keys() >= {*ids} and len({in_common(lacking[i][0].trial) for i in ids}) == 1
    ]
    begun = {member for members in interrupted for member in members}
    rest = [(s, tuple(m for m in s.members if (s, m) not in begun)) for s in stacks]
    return (
        [replace(s, members=members) for s, members in rest if members or not s.members],
        [of_members(members) for members in interrupted],
    )
