"""From a sweep to the stacks that remain to be run: members needed minus members stored, where each runs, its
memory and time."""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lorae.backbone_checks import Inspection
from lorae.checks import check_recipe
from lorae.choice import Choice, choose
from lorae.draws import Draws, Fitted
from lorae.flops import Flops, Passes
from lorae.memory import BYTES, Memory, Saving, Texts, stack_memory
from lorae.methods.full import MAX_FULL_BYTES, full_member_bytes
from lorae.prediction_files import prediction_file
from lorae.search import EarlyEnd
from lorae.shapes import linear_shapes, num_backbone_parameters, num_tokens
from lorae.sources import backbone_config
from lorae.stack import Stack
from lorae.store import WEIGHTS, Store, member_folder, reference_folder, soup_folder
from lorae.tasks.base import Split, Task
from lorae.tasks.splits import label_faults, refuse
from lorae.trial import Diversity, Sweep, Trial, cell_of, cells
from lorae.trial.axes import with_values
from lorae.trial.tuning import Point, recipe_of, studies

Host = Literal["local", "tune", "zero"]

CHARS_PER_TOKEN = 4  # rough, for plans; the tokenizer is not loaded
# Rough sustained rates, for the time estimates only. CPU: one thread with AMX, bf16, as in the demo (30 s
# estimated, 33 s measured per member); without AMX it is slower. GPU: an assumed share of the data sheet's
# dense bf16 rate.
CPU_FLOPS = 1.2e11
SUSTAINED_FRAC, A100_FLOPS = 0.35, 3.12e14
FP32_SLOWDOWN = {"cpu": 2.5, "cuda": 16.0}  # measured; A100's data sheet, 312 against 19.5 TFLOP/s
RECOMPUTE_SLOWDOWN = 1.4  # measured 1.38, five members on SmolLM2-135M
ZERO_BYTES_PER_SECOND = 5e10  # assumed rate at which a rank receives the weights of the others
USABLE_FRAC = 0.9  # of a GPU's memory; the rest: CUDA's context, workspaces, the allocator's fragments


@dataclass(frozen=True)
class Devices:
    """What a stack can run on: `num` devices at once, each a GPU with some memory, or a share of the CPUs.

    Attributes:
        memory_bytes: of one GPU; None on a CPU, or if it is not known.
        per_node: GPUs of one node, the most that one stack may take.
        peak_flops: dense bf16 rate of one GPU by its data sheet; None = an A100's.
        stack_devices: that every stack takes together, by ZeRO-3; None = one, or as few as suffice.
        saving: what every stack does to take less memory.
    """

    kind: str  # "cpu" or "cuda"
    num: int
    cpus_per_stack: int
    memory_bytes: int | None = None
    per_node: int = 1
    peak_flops: float | None = None
    stack_devices: int | None = None
    saving: Saving = Saving()

    def flops(self, precision: str) -> float:
        """Rough sustained rate of one device."""
        rate = CPU_FLOPS if self.kind == "cpu" else SUSTAINED_FRAC * (self.peak_flops or A100_FLOPS)
        return rate / (FP32_SLOWDOWN[self.kind] if precision == "fp32" else 1.0)


@dataclass(frozen=True)
class Placement:
    """Where a stack runs, and why.

    Attributes:
        host: this process, a Ray Tune trial on at most one GPU, or DeepSpeed ZeRO-3 on several.
        gpus: that it takes, or workers of ZeRO-3; 0 on a CPU.
        micro_batch: examples of each member per forward pass on one device; None = its whole share.
    """

    host: Host
    gpus: int
    micro_batch: int | None
    reason: str


@dataclass(frozen=True)
class Estimate:
    """What a stack will take: peak memory of one device, and times that are rough."""

    memory_bytes: int
    train_tokens: int
    train_seconds: float
    predict_seconds: float

    @property
    def seconds(self) -> float:
        return self.train_seconds + self.predict_seconds


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
        soups: those that lack predictions, to be run when their members are stored: see `soups_of`.
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
    soups: tuple[Stack, ...] = ()
    whole: bool = False
    tuning: Plan | None = None
    choices: Mapping[Trial, Choice] = field(default_factory=dict)
    backbones: tuple[Inspection, ...] = ()

    @property
    def is_done(self) -> bool:
        """Whether nothing remains to be run."""
        return not (self.pending or self.begun or self.soups or self.tuning)

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
    if rows is None and sweep.tune:
        plan = _tuned(sweep, store)
    else:
        plan = _plan(sweep, store, sweep.trials() if rows is None else rows)
    return placed(plan, devices, host) if devices else plan


def after_tuning(sweep: Sweep, store: Store) -> Plan:
    """The plan of a sweep whose tuning was run, to be placed; a trial without a choice has nothing to run."""
    return _tuned(sweep, store, ended=True)


def _tuned(sweep: Sweep, store: Store, ended: bool = False) -> Plan:
    """What is to be tuned, unless that has ended, and then every trial at the values that are chosen."""
    found = {recipe: choose(store, study) for recipe, study in studies(sweep).items()}
    tuning = None
    if not ended and not all(choice.is_known for choice in found.values()):
        points = [p.trial for choice in found.values() for p in choice.sound_points]
        tuning = _plan(sweep, store, points, validation_only=True)
    trained = set(tuning.needed) if tuning else set()
    recipes = {trial: recipe_of(trial) for trial in sweep.trials()}
    of_recipe = {r: [trial for trial, recipe in recipes.items() if recipe == r] for r in found}
    values = {r: _values_at_most(choice, of_recipe[r], store, trained) for r, choice in found.items()}
    rows: dict[Trial, Choice | None] = {}
    for trial, recipe in recipes.items():
        row = with_values(trial, values[recipe]) if recipe else trial
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
        ids = {m for trial in trials for m in with_values(trial, point.values).member_ids()}
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
    for trial, _ in trials:
        of_cell = draws.setdefault(cell_of(trial), {})
        of_cell[trial.draws] = max(trial.members, of_cell.get(trial.draws, 0))
    for cell, num_members in cells([trial for trial, _ in trials]):
        members, ood = tuple(range(num_members)), tuple(sweep.eval_tasks(cell))
        stack = Stack(
            cell,
            members,
            ood,
            draws=tuple(draws[cell]),
            draw_members=tuple(draws[cell].values()),
            paths=sweep.paths and (num_members > 1 or validation_only),
            validation_only=validation_only,
        )
        ids = replace(cell, members=num_members).member_ids()
        lacking, found, damages = _lacking_members(stack, ids, store, trained)
        needed |= dict.fromkeys(ids)
        stored |= found
        damaged += damages
        if lacking or not store.has_predictions(
            reference_folder(cell.reference_id()), stack.reference_sets()
        ):
            only_predict = tuple(m for m in lacking if ids[m] in found)
            pending.append(replace(stack, members=lacking, stored=only_predict))
    whole = isinstance(sweep.search, EarlyEnd)
    pending, begun = (pending, []) if whole else _as_begun(pending, store)
    covered = {
        (s.trial.reference_id(), name) for s in (*begun, *pending) if s.members for name in s.reference_sets()
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
        soups=tuple(_lacking_soups(trials, store)),
        whole=whole,
    )


def soups_of(plan: Plan, store: Store) -> Plan:
    """The plan of the soups that lack predictions now and whose members are all stored; to be placed.

    The store is looked at again: a stored soup may be of a member that has been trained again since.
    """
    lacking = _lacking_soups(plan.trials, store)
    ready = (s for s in lacking if all(map(store.is_member, s.member_ids())))
    return replace(plan, pending=tuple(ready), begun=(), soups=(), whole=True)


def placed(plan: Plan, devices: Devices, host: Host = "tune") -> Plan:
    """The plan with its pending members spread over these devices, each stack with its place.

    Args:
        host: where a stack runs that fits on one device: "local" or "tune".
    Raises:
        ValueError: a stack fits on no GPU, nor on the GPUs of a node together.
    """
    rows = [(stack, place(stack, devices, host)) for stack in _divided(plan, devices, host)]
    rows = [(replace(stack, micro_batch=where.micro_batch), where) for stack, where in rows]
    triples = [(stack, where, estimate(stack, devices, where)) for stack, where in rows]
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
    stack: Stack, ids: Sequence[str], store: Store, trained: Collection[str]
) -> tuple[tuple[int, ...], set[str], list[str]]:
    """Members that are not stored or lack predictions (of equal identities only the first), the ids of those
    that are stored and sound or will have been trained, and what is damaged."""
    lacking, found, damaged = {}, set(), []
    for m, member_id in zip(stack.members, ids):
        files = store.files(member_folder(member_id))
        if WEIGHTS in files:
            if damage := store.damage(member_folder(member_id), changed_only=True):
                damaged.append(damage)
            else:
                found.add(member_id)
        elif member_id in trained:
            found.add(member_id)
        if member_id not in found or not {prediction_file(name) for name in stack.eval_sets(m)} <= files:
            lacking.setdefault(member_id, m)
    return tuple(lacking.values()), found, damaged


def _lacking_soups(trials: Sequence[tuple[Trial, tuple[Task, ...]]], store: Store) -> dict[Stack, None]:
    """Stacks of the trials' soups that are not stored, or lack predictions."""
    found: dict[Stack, None] = {}
    for trial, ood in trials:
        if trial.soup:
            soup = Stack(cell_of(trial), tuple(range(trial.members)), ood, soup=trial.soup)
            folder = soup_folder(trial.member_ids(), trial.soup)
            lacking = not store.has_predictions(folder, soup.eval_sets())
            damaged = store.damage(folder, changed_only=True)
            if lacking or damaged or store.is_of_others(trial.member_ids(), trial.soup):
                found[soup] = None
    return found


def _as_begun(stacks: list[Stack], store: Store) -> tuple[list[Stack], list[Stack]]:
    """The stacks without those members whose training was interrupted, and these in the stacks they were in:
    only so do they go on from their checkpoints, to the same bytes."""
    if not (sets := store.begun()):
        return stacks, []
    rest, begun = [], []
    for stack in stacks:
        lacking = {stack.trial.member_id(m): m for m in stack.members}
        for ids in sets:
            if lacking.keys() >= set(ids):
                begun.append(replace(stack, members=tuple(lacking.pop(i) for i in ids)))
        if lacking or not stack.members:
            rest.append(replace(stack, members=tuple(lacking.values())))
    return rest, begun


# Where a stack runs
# ----------------------------------------------------------------------------------------------------------


def place(stack: Stack, devices: Devices, host: Host = "tune") -> Placement:
    """One device if the stack fits, with the largest micro-batch that does; else ZeRO-3 over as few GPUs of a
    node as suffice.

    Raises:
        ValueError: it fits nowhere, or its backbone cannot be parted; what to do.
    """
    return _place(_typical(stack), devices, host)


def _typical(stack: Stack) -> Stack:
    """The stack without what its memory and time do not depend on: the seed, and which members they are. A
    soup takes what one of them does."""
    trial = replace(stack.trial, seed=0, diversity=Diversity())
    members = tuple(range(1 if stack.soup else len(stack.members)))
    drawing = tuple(sum(m < num for m in stack.members) for num in stack.draw_members)
    stored = members[len(stack.to_train) :]
    return replace(stack, trial=trial, members=members, draw_members=drawing, micro_batch=None, stored=stored)


@functools.lru_cache(maxsize=4096)
def _place(stack: Stack, devices: Devices, host: Host) -> Placement:
    asked = devices.stack_devices
    if asked and stack.members and stack.trial.method.regime == "alone":
        raise ValueError(
            f"--zero {asked} with Full(): its members are copies of the whole backbone, of which each worker "
            "has a part; leave --zero out, or write another method"
        )
    if asked and devices.memory_bytes is None:
        return Placement("zero", asked, None, f"asked for, {asked} workers per stack")
    if devices.memory_bytes is None:
        gpus = int(devices.kind == "cuda")
        why = "GPU whose memory is not known" if gpus else f"CPU, {devices.cpus_per_stack} per stack"
        return Placement(host, gpus, None, why)
    usable, saving = USABLE_FRAC * devices.memory_bytes, devices.saving
    batch = stack.trial.budget.batch_size
    what = f"usable {usable / 2**30:.1f} of {devices.memory_bytes / 2**30:.1f} GiB"
    alone = host == "local" or stack.trial.method.regime == "alone"
    widest = asked or (1 if alone else devices.per_node)
    for gpus in [asked] if asked else range(1, widest + 1):
        share = -(-batch // gpus)
        if rows := _largest_rows(stack, share, usable, gpus, saving):
            needs = memory(stack, rows, gpus, saving)
            micro = None if rows == share else rows
            fits = f"{_gib(needs.total)} fit into the {what}" + (
                f" by micro-batches of {micro}" if micro else ""
            )
            if gpus == 1:
                return Placement(host, 1, micro, fits)
            alone = memory(stack, 1, 1, saving)
            return Placement(
                "zero", gpus, micro, f"{_gib(alone.total)} exceed the {what}; on {gpus} GPUs {fits}"
            )
    needs = memory(stack, 1, widest, saving)
    raise ValueError(
        f"{stack.trial.backbone.label} with {len(stack.members)} members and one example each needs "
        f"{_gib(needs.total)} on each of {widest} GPUs: more than the {what}; "
        + ("leave --local out, " if host == "local" and devices.per_node > 1 else "")
        + f"take larger GPUs or more per node, lower Budget(max_tokens={stack.trial.budget.max_tokens}) "
        + "or write precision='bf16'"
    )


def _largest_rows(stack: Stack, most: int, usable: float, gpus: int, saving: Saving) -> int:
    """Most examples of each member per forward pass that fit, 0 if not even one does."""
    low, high = 0, most
    while low < high:
        middle = -(-(low + high) // 2)
        if memory(stack, middle, gpus, saving).total <= usable:
            low = middle
        else:
            high = middle - 1
    return low


def memory(stack: Stack, rows: int, gpus: int, saving: Saving = Saving()) -> Memory:
    """Peak memory of a stack on one of its GPUs (0: on a CPU), with `rows` examples of each member at
    once."""
    trial, config, num_members = stack.trial, backbone_config(stack.trial.backbone), len(stack.members)
    fitted = {s.draws for s in stack.eval_sets().values() if isinstance(s.draws, Fitted)}
    return stack_memory(trial, config, num_members, rows, _longest(stack), gpus, saving, fitted)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"


def _fitting(stack: Stack, devices: Devices, host: Host) -> list[Stack]:
    """The stack, or its halves, or theirs: parts that fit on one GPU if a single member does, else on the
    GPUs of a node."""
    if len(stack.members) <= 1:
        return [stack]
    if devices.memory_bytes is None:
        if _full_bytes(stack) <= MAX_FULL_BYTES:
            return [stack]
        return [part for half in _halves(stack) for part in _fitting(half, devices, host)]
    single = replace(stack, members=stack.members[:1])
    alone = host == "local" or stack.trial.method.regime == "alone"
    gpus = devices.stack_devices or (1 if alone or _fits(single, devices, 1) else devices.per_node)
    if _fits(stack, devices, gpus):
        return [stack]
    return [part for half in _halves(stack) for part in _fitting(half, devices, host)]


def _full_bytes(stack: Stack) -> int:
    """What the weights of members that are fine-tuned in full take, with gradients and moments."""
    if stack.trial.method.regime != "alone":
        return 0
    return len(stack.members) * full_member_bytes(backbone_config(stack.trial.backbone))


def _fits(stack: Stack, devices: Devices, gpus: int) -> bool:
    assert devices.memory_bytes is not None
    return _least_bytes(_typical(stack), gpus, devices.saving) <= USABLE_FRAC * devices.memory_bytes


@functools.lru_cache(maxsize=4096)
def _least_bytes(stack: Stack, gpus: int, saving: Saving) -> int:
    return memory(stack, 1, gpus, saving).total


def _divided(plan: Plan, devices: Devices, host: Host) -> list[Stack]:
    """What remains to be run, in parts that fit, the pending ones spread."""
    if plan.whole:
        return [*plan.begun, *plan.pending]
    begun, pending = (
        [part for stack in stacks for part in _fitting(stack, devices, host)]
        for stacks in (plan.begun, plan.pending)
    )
    return begun + _spread(pending, begun, devices, host)


def _halves(stack: Stack) -> list[Stack]:
    half = math.ceil(len(stack.members) / 2)
    return [replace(stack, members=part) for part in (stack.members[:half], stack.members[half:])]


def _spread(stacks: list[Stack], begun: list[Stack], devices: Devices, host: Host) -> list[Stack]:
    """Halve stacks, the longest first, until no device idles long while another works; members stay exact.

    Those that were begun occupy devices too, and stay whole.

    A stack on its own is cheapest, so it is halved only while the busiest device has a tenth more to do than
    the mean.
    """
    if not stacks:
        return []
    places = [place(s, devices, host) for s in stacks]
    num = max(1, devices.num // max(1, *(p.gpus for p in places)))
    seconds = [estimate(s, devices, p).seconds for s, p in zip(stacks, places)]
    occupied = [estimate(s, devices, place(s, devices, host)).seconds for s in begun]
    most = len(stacks) + 4 * num
    while len(stacks) < most:
        loads = [*seconds, *occupied]
        if _busiest_seconds(loads, num) <= 1.1 * sum(loads) / num:
            break
        divisible = [i for i, s in enumerate(stacks) if len(s.members) > 1]
        if not divisible:
            break
        at = max(divisible, key=lambda i: seconds[i])
        parts = _halves(stacks[at])
        stacks[at : at + 1] = parts
        seconds[at : at + 1] = [estimate(s, devices, place(s, devices, host)).seconds for s in parts]
    return stacks


def _busiest_seconds(seconds: Iterable[float], num: int) -> float:
    """Time of the device that finishes last when each takes the longest stack that is left."""
    loads = [0.0] * num
    for duration in sorted(seconds, reverse=True):
        heapq.heapreplace(loads, loads[0] + duration)
    return max(loads)


# What it takes
# ----------------------------------------------------------------------------------------------------------


def estimate(stack: Stack, devices: Devices, where: Placement) -> Estimate:
    """Memory and time of a stack from the backbone's config and the lengths of the texts."""
    return _estimate(_typical(stack), devices, replace(where, reason=""))


@functools.lru_cache(maxsize=4096)
def _estimate(stack: Stack, devices: Devices, where: Placement) -> Estimate:
    trial, num, gpus = stack.trial, len(stack.to_train), max(1, where.gpus)
    config = backbone_config(trial.backbone)
    per = Passes.of(trial.method, config, linear_shapes(config))
    train = _lengths(trial.task, "train", *_token_limits(trial))
    untrained = not (num and trial.method.trains)
    steps, batch = 0 if untrained else trial.budget.num_steps(train.num), trial.budget.batch_size
    epochs = num * steps * batch / train.num  # of all members together
    train_tokens, train_flops = int(epochs * train.total), epochs * train.flops(per.training)
    sets, each = stack.eval_sets(), [stack.eval_sets(m) for m in stack.members] or [stack.eval_sets()]
    classes = len(trial.task.examples("train")[0].options)
    ways = {name: replace(trial, draws=s.draws).num_passes(classes) for name, s in sets.items()}
    lengths = dict(zip(sets, _eval_lengths(stack)))
    predict_flops = sum(ways[n] * lengths[n].flops(per.forward) for of_member in each for n in of_member)
    fitted = [d for of_member in each for d in {s.draws for s in of_member.values()} if isinstance(d, Fitted)]
    num_fitted = sum(d.passes_to_fit(classes) * len(d.fitted_on(range(train.num))) for d in fitted)
    predict_flops += num_fitted * train.flops(per.forward) / train.num
    if trial.method.regime == "features":  # the frozen backbone reads each example once
        train_tokens = train.total * bool(num)
        train_flops += train.flops(per.features) * bool(num)
        predict_flops += sum(of_set.flops(per.features) for of_set in lengths.values())
    rate = gpus * devices.flops(trial.precision)
    train_seconds, predict_seconds = train_flops / rate, predict_flops / rate
    if devices.saving.recompute:
        train_seconds *= RECOMPUTE_SLOWDOWN
    rows = where.micro_batch or -(-batch // gpus)
    needs = memory(stack, rows, where.gpus, devices.saving)
    if where.host == "zero":  # every rank receives the others' weights for each forward and backward pass
        passes = 2 * steps * -(-batch // (rows * gpus))
        received = BYTES[trial.precision] * num_backbone_parameters(config) * (gpus - 1) / gpus
        train_seconds += passes * received / ZERO_BYTES_PER_SECOND
    return Estimate(needs.total, train_tokens, train_seconds, predict_seconds)


@dataclass(frozen=True)
class _Lengths:
    """Tokens of a split's rows: how many rows, their sum, the longest, and the most in one row's answers; and
    the sum of these."""

    num: int
    total: int
    longest: int
    answers: int = 0
    answered: int = 0

    def flops(self, per: Flops) -> float:
        """Of one pass over all rows, as if they were equally long."""
        tokens = per.row * self.num + per.token * self.total + per.square * self.total**2 / self.num
        return tokens + per.answer * self.answered


def _token_limits(trial: Trial) -> tuple[int, int]:
    """Tokens that a text has at most, and that every image or piece of audio has (0 for texts)."""
    return trial.budget.max_tokens, num_tokens(backbone_config(trial.backbone))


@functools.lru_cache(maxsize=1024)
def _lengths(task: Task, split: Split, max_tokens: int, media_tokens: int) -> _Lengths:
    if media_tokens:
        num = len(task.examples(split))
        return _Lengths(num, num * media_tokens, media_tokens)
    rows, answers = [], [0]
    for example in task.examples(split):
        prompt = task.prompt(example)
        tokens = len(prompt.text) // CHARS_PER_TOKEN + 2
        if task.scoring.scores_texts:
            answers.append(sum(len(a) // CHARS_PER_TOKEN + 1 for a in prompt.answers))
            tokens += answers[-1]
        rows.append(min(max_tokens, tokens))
    return _Lengths(len(rows), sum(rows), max(rows), max(answers), sum(answers))


def _eval_lengths(stack: Stack) -> list[_Lengths]:
    """Of what members predict, with their demonstrations. (A batch computes these once, but not their
    attention, which takes as long on a CPU.)"""
    trial, limits = stack.trial, _token_limits(stack.trial)
    every = [_lengths(s.task, s.split, *limits) for s in stack.eval_sets().values()]
    if trial.method.trains or not stack.members:
        return every
    train, shots = _lengths(trial.task, "train", *limits), trial.method.shots
    before, longest = shots * train.total // train.num, shots * train.longest
    return [replace(e, total=e.total + e.num * before, longest=e.longest + longest) for e in every]


def _longest(stack: Stack) -> Texts:
    """Sizes of the longest row that is trained on or predicted."""
    task = stack.trial.task
    every = [_lengths(task, "train", *_token_limits(stack.trial)), *_eval_lengths(stack)]
    longest, answers = (max(getattr(lengths, f) for lengths in every) for f in ("longest", "answers"))
    options = len(task.examples("train")[0].options)
    return Texts(longest, answers, options if task.scoring.trains_head else 0, options)
