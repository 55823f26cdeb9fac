"""From a sweep to the stacks that remain to be run: members needed minus members stored, with memory and
time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorae.methods import adapted_layers
from lorae.regularizers import EarlyStopping
from lorae.shapes import linear_shapes, num_backbone_parameters
from lorae.sources import backbone_config
from lorae.stack import Stack
from lorae.store import Store, member_folder, reference_folder
from lorae.tasks.base import Task
from lorae.trial import Sweep, Trial, cells

BYTES = {"fp32": 4, "bf16": 2}
CHARS_PER_TOKEN = 4  # rough, for plans; the tokenizer is not loaded
CPU_FLOPS, GPU_FLOPS = 1.5e11, 2e14  # rough sustained rates, for the time estimate only


@dataclass(frozen=True)
class Devices:
    """What a stack can run on: `num` devices at once, each a GPU with some memory, or a share of the CPUs."""

    kind: str  # "cpu" or "cuda"
    num: int
    cpus_per_stack: int
    memory_bytes: int | None = None  # of one GPU; None on CPU


@dataclass(frozen=True)
class Estimate:
    """What a stack will take: peak memory, and times that are rough."""

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
        stacks: what remains to be run, the longest first.
    """

    trials: tuple[tuple[Trial, tuple[Task, ...]], ...]
    needed: tuple[str, ...]
    stored: tuple[str, ...]
    damaged: tuple[str, ...]
    stacks: tuple[Stack, ...]
    estimates: tuple[Estimate, ...]

    @property
    def num_to_train(self) -> int:
        return len(self.needed) - len(self.stored)


def make_plan(sweep: Sweep, store: Store, devices: Devices) -> Plan:
    """Check everything that can be checked before training, and find what remains to be run.

    Args:
        sweep: with every source fixed (`Sweep.located`).
        store: what is there already; nothing is written.
        devices: for spreading members over stacks.
    Raises:
        ValueError: data, targets, rank or templates that cannot work.
    """
    trials = tuple((trial, tuple(sweep.eval_tasks(trial))) for trial in sweep.trials())
    for trial, ood in trials:
        check_trial(trial, ood)
    damaged: list[str] = []
    stored: set[str] = set()
    pending: list[Stack] = []
    for cell, num_members in cells([trial for trial, _ in trials]):
        stack = Stack(cell, tuple(range(num_members)), tuple(sweep.eval_tasks(cell)))
        found, damages = _stored_members(stack, store)
        stored |= found
        damaged += damages
        lacking = _lacking_members(stack, store, found)
        if lacking or not store.has_predictions(
            reference_folder(cell.reference_id()), stack.reference_sets()
        ):
            pending.append(Stack(cell, lacking, stack.eval_tasks))
    with_members = [s for s in pending if s.members]
    covered = {(s.trial.reference_id(), name) for s in with_members for name in s.reference_sets()}
    needed = dict.fromkeys(m for trial, _ in trials for m in trial.member_ids())
    references = [
        s
        for s in pending
        if not s.members and not {(s.trial.reference_id(), n) for n in s.reference_sets()} <= covered
    ]
    stacks = [*references[:1], *_spread(with_members, devices), *references[1:]]
    estimates = [estimate(s, devices) for s in stacks]
    order = sorted(range(len(stacks)), key=lambda i: -estimates[i].seconds)
    return Plan(
        trials=trials,
        needed=tuple(needed),
        stored=tuple(m for m in needed if m in stored),
        damaged=tuple(damaged),
        stacks=tuple(stacks[i] for i in order),
        estimates=tuple(estimates[i] for i in order),
    )


def check_trial(trial: Trial, ood: Sequence[Task]) -> None:
    """Refuse a trial that cannot work: its data, targets and rank.

    Raises:
        ValueError: what is wrong.
    """
    splits = trial.task.splits()
    for name in ("train", "validation"):
        if not splits[name]:  # type: ignore[index]
            raise ValueError(f"{trial.task.name} has no {name} examples; it can only be an OOD task")
    for task in ood:
        task.examples("test")
    config = backbone_config(trial.backbone)
    adapted_layers(trial.method, linear_shapes(config), trial.backbone.label)
    longest = config.get("max_position_embeddings")
    if longest and trial.budget.max_tokens > longest:
        raise ValueError(
            f"max_tokens={trial.budget.max_tokens}: {trial.backbone.label} reads at most {longest}; "
            f"write Budget(max_tokens={longest})"
        )


def _stored_members(stack: Stack, store: Store) -> tuple[set[str], list[str]]:
    """Ids of the stack's members that are stored and undamaged, and what is damaged."""
    found, damaged = set(), []
    for m in stack.members:
        member_id = stack.trial.member_id(m)
        if store.is_member(member_id):
            if damage := store.damage(member_folder(member_id)):
                damaged.append(damage)
            else:
                found.add(member_id)
    return found, damaged


def _lacking_members(stack: Stack, store: Store, found: set[str]) -> tuple[int, ...]:
    """Members that are not stored or lack predictions; of equal identities only the first."""
    lacking: dict[str, int] = {}
    for m in stack.members:
        member_id = stack.trial.member_id(m)
        if member_id not in found or not store.has_predictions(member_folder(member_id), stack.eval_sets()):
            lacking.setdefault(member_id, m)
    return tuple(lacking.values())


def _spread(stacks: list[Stack], devices: Devices) -> list[Stack]:
    """Halve stacks, the longest first, until no device idles long while another works; members stay exact.

    A stack on its own is cheapest, so it is halved only while the busiest device has a tenth more to do than
    the mean.
    """
    most = len(stacks) + 4 * devices.num
    while stacks and max(len(s.members) for s in stacks) > 1:
        seconds = [estimate(s, devices).seconds for s in stacks]
        busiest = _busiest_seconds(seconds, devices.num)
        if busiest <= 1.1 * sum(seconds) / devices.num or len(stacks) >= most:
            return stacks
        largest = max((s for s in stacks if len(s.members) > 1), key=lambda s: estimate(s, devices).seconds)
        half = math.ceil(len(largest.members) / 2)
        at = stacks.index(largest)
        parts = (largest.members[:half], largest.members[half:])
        stacks[at : at + 1] = [replace(largest, members=members) for members in parts]
    return stacks


def _busiest_seconds(seconds: Sequence[float], num: int) -> float:
    """Time of the device that finishes last when each takes the longest stack that is left."""
    loads = [0.0] * num
    for duration in sorted(seconds, reverse=True):
        loads[loads.index(min(loads))] += duration
    return max(loads)


def estimate(stack: Stack, devices: Devices) -> Estimate:
    """Memory and time of a stack from the backbone's config and the lengths of the texts."""
    trial, task = stack.trial, stack.trial.task
    config = backbone_config(trial.backbone)
    parameters, num = num_backbone_parameters(config), len(stack.members)
    lengths = [_tokens(task, e, trial.budget.max_tokens) for e in task.examples("train")]
    mean_tokens = sum(lengths) / len(lengths)
    steps = trial.budget.num_steps(len(lengths))
    train_tokens = int(num * steps * trial.budget.batch_size * mean_tokens)
    predicted = max(1, num) * sum(
        _tokens(t, e, trial.budget.max_tokens)
        for t, split in stack.eval_sets().values()
        for e in t.examples(split)
    )
    memory = parameters * BYTES[trial.precision] + num * _member_bytes(trial, config, max(lengths))
    rate = GPU_FLOPS if devices.kind == "cuda" else CPU_FLOPS
    train_seconds, predict_seconds = (2 * parameters * n / rate for n in (2 * train_tokens, predicted))
    return Estimate(memory, train_tokens, train_seconds, predict_seconds)


def _tokens(task: Task, example: Any, max_tokens: int) -> int:
    prompt = task.prompt(example)
    return min(max_tokens, len(prompt.text) // CHARS_PER_TOKEN + 2)


def _member_bytes(trial: Trial, config: dict[str, Any], longest: int) -> int:
    """Adapter, gradient and two moments in fp32, a copy under early stopping, and the batch's activations."""
    layers = adapted_layers(trial.method, linear_shapes(config), trial.backbone.label)
    trained = sum(trial.method.num_parameters(*shape) for shape in layers.values())
    copies = 4 + (trial.regularizer(EarlyStopping) is not None)
    hidden, depth = config["hidden_size"], config["num_hidden_layers"]
    inner = config.get("intermediate_size") or 4 * hidden
    tokens = trial.budget.batch_size * longest
    per_token = depth * (16 * hidden + 5 * inner + config["num_attention_heads"] * longest)
    return 4 * copies * trained + tokens * per_token * BYTES[trial.precision]
