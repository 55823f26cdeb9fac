"""A Trial (one row of a table) and the Sweep that varies it; the identity of members."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from lorae import SCHEMA_VERSION
from lorae.axes import value_at, with_value, with_values
from lorae.draws import TFB, AnyDraws, drawn_set
from lorae.identity import IF_SET, canonical_json, check_kind, digest, fields_of, short_hash
from lorae.methods import AnyMethod, Lora
from lorae.regularizers import AnyRegularizer, EarlyStopping
from lorae.search import EarlyEnd, Optuna, Search, Uniform
from lorae.sources import Source, resolve
from lorae.tasks.base import Split, Task
from lorae.tuning import Times, check_tuning


@dataclass(frozen=True)
class AdamW:
    """AdamW with linear warm-up and a decay to zero; gradients clipped by each member's own norm.

    Args:
        lr: peak learning rate.
        warmup_frac: share of the steps with linear warm-up, in [0, 1).
        schedule: decay after the warm-up: "linear", "cosine", "constant" or "cyclic", a cosine that restarts.
        weight_decay: decoupled decay of every trained factor.
        betas, eps: as in Loshchilov and Hutter, arXiv:1711.05101.
        max_grad_norm: clipping bound on a member's gradient norm; None = no clipping.
        cycles: of "cyclic", >= 2: a member's snapshots at their ends are draws of its predictions (snapshot
            ensemble, Huang et al. 2017, arXiv:1704.00109).
    """

    lr: float = 1e-4
    warmup_frac: float = 0.06
    schedule: Literal["linear", "cosine", "constant", "cyclic"] = "linear"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    max_grad_norm: float | None = 1.0
    cycles: int | None = field(default=None, metadata=IF_SET)

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr}: must be > 0; write AdamW(lr=1e-4)")
        if not 0 <= self.warmup_frac < 1:
            raise ValueError(
                f"warmup_frac={self.warmup_frac}: must be in [0, 1); write AdamW(warmup_frac=0.06)"
            )
        if self.schedule not in ("linear", "cosine", "constant", "cyclic"):
            allowed = '"linear", "cosine", "constant" or "cyclic"'
            raise ValueError(f"schedule={self.schedule!r}: must be {allowed}")
        if (self.schedule == "cyclic") != (self.cycles is not None) or (self.cycles or 2) < 2:
            raise ValueError(
                f"schedule={self.schedule!r}, cycles={self.cycles}: a cyclic schedule has 2 cycles or more, "
                'no other one has any; write AdamW(schedule="cyclic", cycles=5)'
            )
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm={self.max_grad_norm}: must be > 0, or None for no clipping")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay={self.weight_decay}: must be >= 0")

    @property
    def label(self) -> str:
        return f"adamw-{self.lr:g}"

    def warmup_steps(self, num_steps: int) -> int:
        return math.ceil(self.warmup_frac * num_steps)

    def snapshot_steps(self, num_steps: int) -> list[int]:
        """Steps done at the ends of all cycles but the last, which are equally long up to rounding.

        Raises:
            ValueError: fewer steps than cycles.
        """
        if not self.cycles:
            return []
        warmup = self.warmup_steps(num_steps)
        if num_steps - warmup < self.cycles:
            raise ValueError(
                f"cycles={self.cycles}: {num_steps - warmup} steps after the warm-up are fewer; "
                "train longer or write fewer cycles"
            )
        return [warmup + k * (num_steps - warmup) // self.cycles for k in range(1, self.cycles)]


@dataclass(frozen=True)
class Budget:
    """How much a member is trained.

    Args:
        batch_size: examples per optimiser step and member.
        epochs: passes over the training set, or
        steps: optimiser steps; exactly one of the two.
        max_tokens: longer prompts lose the middle of the example's own text, with an encoder their end.
    """

    batch_size: int = 8
    epochs: int | None = None
    steps: int | None = None
    max_tokens: int = 512

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                f"epochs={self.epochs}, steps={self.steps}: give exactly one; write Budget(epochs=3)"
            )
        for name in ("batch_size", "epochs", "steps", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: must be >= 1; write Budget(batch_size=8, epochs=3)")

    @property
    def label(self) -> str:
        return f"{self.batch_size}x{self.epochs}ep" if self.epochs else f"{self.batch_size}x{self.steps}st"

    @property
    def length(self) -> int:
        """Epochs or steps, whichever is given."""
        return self.epochs or self.steps or 0

    def times(self, factor: int) -> Budget:
        """`factor` times as many epochs or steps."""
        return replace(
            self, epochs=self.epochs and factor * self.epochs, steps=self.steps and factor * self.steps
        )

    def steps_per_epoch(self, num_train: int) -> int:
        return -(-num_train // self.batch_size)

    def num_steps(self, num_train: int) -> int:
        """Optimiser steps of one member; an epoch's last batch may be smaller."""
        return self.steps or self.steps_per_epoch(num_train) * (self.epochs or 0)


@dataclass(frozen=True)
class Diversity:
    """The sources of randomness by which members differ: the 2 x 2 factorial of initialisation and data
    order."""

    init: Literal["per_member", "shared"] = "per_member"
    order: Literal["per_member", "shared"] = "per_member"

    def __post_init__(self) -> None:
        for name in ("init", "order"):
            if getattr(self, name) not in ("per_member", "shared"):
                raise ValueError(f'{name}={getattr(self, name)!r}: must be "per_member" or "shared"')

    @property
    def label(self) -> str:
        differing = [name for name in ("init", "order") if getattr(self, name) == "per_member"]
        return "+".join(differing) or "none"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One row of a table: a recipe, a seed, a number of members and how their predictions are combined.

    Args:
        backbone: where the frozen model comes from.
        task: what it is fine-tuned on.
        method, regularizers, optimizer, budget, diversity, precision: the recipe. With "bf16" backbone and
            activations are bfloat16; adapters and optimiser state are fp32 always.
        seed: root of every random stream.
        members: ensemble size M; 0 is the untouched backbone (zero-shot), 1 the single adapter.
        combine: "probs" averages the members' probabilities, "logits" their logits, "weights" their weights:
            a soup, one model that predicts once.
        draws: several predictions of each member that its training does not depend on; None = one. A cyclic
            schedule and `Masksembles` give their own.
    """

    backbone: Source
    task: Task
    method: AnyMethod = Lora()
    regularizers: tuple[AnyRegularizer, ...] = ()
    optimizer: AdamW = AdamW()
    budget: Budget = Budget(epochs=3)
    diversity: Diversity = Diversity()
    precision: Literal["fp32", "bf16"] = "bf16"
    seed: int = 0
    members: int = 1
    combine: Literal["probs", "logits", "weights"] = "probs"
    draws: AnyDraws | None = None

    def __post_init__(self) -> None:
        _check_kinds(self)
        if self.members < 0:
            raise ValueError(f"members={self.members}: must be >= 0; 0 is the backbone, 1 a single adapter")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: must be >= 0")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f'precision={self.precision!r}: must be "fp32" or "bf16"')
        if self.combine not in ("probs", "logits", "weights"):
            raise ValueError(f'combine={self.combine!r}: must be "probs", "logits" or "weights"')
        kinds = [type(r).__name__ for r in self.regularizers]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"regularizers={kinds}: at most one of a kind")
        object.__setattr__(
            self, "regularizers", tuple(sorted(self.regularizers, key=lambda r: type(r).__name__))
        )
        self.method.check(self)
        for regularizer in self.regularizers:
            regularizer.check(self)
        if self.draws:
            self.draws.check(self)
        self._check_draws()
        self._check_members_differ()
        if self.members == 0 and self.task.scoring.trains_head:
            raise ValueError(
                f"members=0 with {self.task.scoring}: the backbone has no head for {self.task.name}; write "
                "members=1 or more"
            )

    def _check_members_differ(self) -> None:
        """Refuse members that are one under several identities: they share the data order, and draw nothing
        of their own. (Sharing the init stream, too, they have one identity, and are trained once.)"""
        if not self.members_differ and self.members > 1:
            raise ValueError(
                f'members={self.members} of {self.method} with order="shared" would be identical: nothing '
                "of them is drawn at random; write Diversity(), a method with a random start, or members=1"
            )

    def _check_draws(self) -> None:
        """Refuse what would make draws of draws."""
        if self.is_soup and self.num_draws > 1:
            raise ValueError(
                f'combine="weights" with draws {self.draws_label}: a soup predicts once; leave these out, '
                'or write combine="probs"'
            )
        stopping = self.regularizer(EarlyStopping)
        for other in filter(None, (self.draws, self._drawn_by_training, stopping)):
            if self.optimizer.cycles:
                raise ValueError(
                    f'schedule="cyclic" with {other}: snapshots are draws of a whole training already; '
                    "write one of them"
                )

    @property
    def members_differ(self) -> bool:
        """Whether members of different identities differ: they have data orders of their own, or draw
        something else at random."""
        drawn = self.method.starts_apart or self.task.scoring.trains_head
        noisy = any(regularizer.is_noise for regularizer in self.regularizers)
        return drawn or noisy or self.diversity != Diversity(order="shared")

    @property
    def is_soup(self) -> bool:
        """Whether it predicts with the mean weights of several members; one's are its own."""
        return self.combine == "weights" and self.members > 1

    @property
    def num_draws(self) -> int:
        """Predictions of one member on each example."""
        spec = self.draws or self._drawn_by_training
        return (self.optimizer.cycles or 1) * ((spec and spec.num_draws) or 1)

    @property
    def _drawn_by_training(self) -> AnyRegularizer | None:
        """The regulariser that gives a member its draws, if any does."""
        return next((regularizer for regularizer in self.regularizers if regularizer.num_draws), None)

    def num_passes(self, num_classes: int) -> int:
        """Forward passes of one member for these, and backward passes, which take as long."""
        return self.draws.num_passes(num_classes) if self.draws else self.num_draws

    @property
    def draws_label(self) -> str:
        """How a member makes several predictions, "none" if it makes one."""
        if self.optimizer.cycles:
            return f"snapshots-{self.optimizer.cycles}"
        spec = self.draws or self._drawn_by_training
        return spec.label if spec else "none"

    def eval_set(self, task: Task, split: Split) -> str:
        """Name of a member's prediction set on a split, with the trial's draws."""
        return drawn_set(task.eval_set(split), self.draws)

    def regularizer(self, kind: type[_R]) -> _R | None:
        """The trial's regulariser of one kind, or None."""
        return next((r for r in self.regularizers if isinstance(r, kind)), None)

    def member_key(self, index: int) -> dict[str, tuple[int | str, ...]]:
        """Keys of the named streams that member `index` draws from; a stream that is not used is absent."""
        keys: dict[str, tuple[int | str, ...]] = {}
        if self.method.trains:
            init = index if self.diversity.init == "per_member" else "shared"
            order = index if self.diversity.order == "per_member" else "shared"
            keys = {"init": (self.seed, init, "init"), "order": (self.seed, order, "order")}
        for spec in (*self.regularizers, self.method):
            keys |= {name: (self.seed, index, stream) for name, stream in spec.streams.items()}
        return keys

    def recipe(self) -> dict[str, Any]:
        """Canonical form of everything that changes a member except its streams."""
        parts = ("backbone", "task", "method", "regularizers", "optimizer", "budget", "precision")
        settings = fields_of(_without_idle_settings(self))
        return {"schema": SCHEMA_VERSION} | {k: v for k, v in settings.items() if k in parts}

    def member_id(self, index: int) -> str:
        """Identity of member `index`: 16 hex digits. Equal for equal members, whatever the number of members,
        the sweep, the stack, the device, the host, the paths or the micro-batch."""
        return self._ids([index])[0]

    def member_ids(self) -> list[str]:
        """Identities of the trial's M members, in order."""
        return self._ids(range(self.members))

    def _ids(self, indices: Iterable[int]) -> list[str]:
        before, after = _around_streams(_without_members(self))
        keys = (canonical_json(self.member_key(index)) for index in indices)
        return [short_hash(f"{before}{key}{after}") for key in keys]

    def reference_id(self) -> str:
        """Identity of the untouched backbone, under which its own predictions are stored; "none" if it has no
        classes, as every member has a head of its own."""
        if self.task.scoring.trains_head:
            return "none"
        return backbone_id(self.backbone, self.precision, self.budget.max_tokens)

    def factors(self) -> dict[str, str | int | float]:
        """Readable columns of the row, flat and in a fixed order; "none" or 0 for what the backbone itself,
        or what trains nothing, lacks."""
        model = {
            "backbone": self.backbone.label,
            "task": self.task.label,
            "scoring": self.task.scoring.label,
            "precision": self.precision,
            "max_tokens": self.budget.max_tokens,
        }
        ensemble = {"seed": self.seed, "members": self.members, "combine": self.combine}
        method, optimizer = self.method, self.optimizer
        if self.members == 0 or not method.trains:
            words = ("method", "init", "targets", "regularizers", "budget", "schedule", "diversity", "draws")
            numbers = ("rank", "alpha", "lr", "warmup_frac", "weight_decay", "max_grad_norm")
            untrained = dict.fromkeys(words, "none") | dict.fromkeys(numbers, 0)
            if self.members:
                untrained |= {"method": method.label, "init": method.init_label}
                untrained |= {"diversity": self.diversity.label}
            return model | untrained | ensemble
        return (
            model
            | {
                "method": method.label,
                "init": method.init_label,
                "targets": "+".join(method.targets) or "none",
                "regularizers": "+".join(r.label for r in self.regularizers) or "none",
                "budget": self.budget.label,
                "schedule": optimizer.schedule,
                "diversity": self.diversity.label,
                "draws": self.draws_label,
                "rank": method.rank,
                "alpha": method.effective_alpha,
                "lr": optimizer.lr,
                "warmup_frac": optimizer.warmup_frac,
                "weight_decay": optimizer.weight_decay,
                "max_grad_norm": optimizer.max_grad_norm or 0,
            }
            | ensemble
        )


def _check_kinds(trial: Trial) -> None:
    """Refuse specs that training would not know."""
    if not isinstance(trial.regularizers, (tuple, list)):
        raise ValueError(f"regularizers={trial.regularizers!r}: must be a tuple; write regularizers=(KL(),)")
    kinds: list[tuple[str, Any, Any]] = [(name, getattr(trial, name), kind) for name, kind in KINDS.items()]
    kinds += [("regularizers", regularizer, AnyRegularizer) for regularizer in trial.regularizers]
    for name, value, kind in kinds:
        check_kind(name, value, kind)
    if not isinstance(trial.task, Task):
        raise ValueError(f"task={trial.task!r}: must be a task, such as OpenBookQA()")
    if not hasattr(trial.backbone, "fingerprint"):
        raise ValueError(f"backbone={trial.backbone!r}: must be Hub('owner/name') or Files('folder')")


KINDS: dict[str, Any] = {
    "method": AnyMethod,
    "optimizer": AdamW,
    "budget": Budget,
    "diversity": Diversity,
    "draws": AnyDraws | None,
}


@functools.lru_cache(maxsize=1024)
def backbone_id(backbone: Source, precision: str, max_tokens: int) -> str:
    """Identity of an untouched backbone, see `Trial.reference_id`."""
    parts = {"backbone": backbone, "precision": precision, "max_tokens": max_tokens}
    return digest(parts | {"schema": SCHEMA_VERSION})


@functools.lru_cache(maxsize=4096)
def _around_streams(trial: Trial) -> tuple[str, str]:
    """Canonical JSON of a recipe, cut where a member's streams belong: large, and equal for all members."""
    before, streams, after = canonical_json(trial.recipe() | {"streams": None}).rpartition('"streams":null')
    key = streams.removesuffix("null")
    return before + key, after


@contextlib.contextmanager
def unchanged(trial: Trial) -> Iterator[None]:
    """Within it files are read that identities were computed of: they must be the same ones after it.

    Raises:
        ValueError: they have changed since this process read them first.
    """
    plain = _without_members(trial)
    _around_streams(plain)
    yield
    if _around_streams.__wrapped__(plain) != _around_streams(plain):
        raise ValueError(
            f"the files of {trial.backbone.label} or {trial.task.name} have changed since they were read "
            "first; repeat the command, and let them be while it runs"
        )


def _without_members(trial: Trial) -> Trial:
    """A trial of the same recipe, equal for all that differ in their members alone."""
    return replace(trial, seed=0, members=1, diversity=Diversity(), combine="probs", draws=None)


SHARED = {"backbone", "task", "seed", "precision", "budget"}  # axes of a sweep's rivals, too

_R = TypeVar("_R")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A base trial and the axes that vary: their product, in order, the last axis fastest.

    Args:
        base: the trial that axes replace fields of.
        axes: field of Trial, or dotted path into one (`"method.rank"`, `"regularizers.DecayB.strength"`), to
            its values, or to the `Uniform` or `LogUniform` range that a search samples.
        ood: tasks that the members also predict; their prompt template must be the trained task's.
        zero_shot: add the backbone itself as a row for each task; it has none where members have heads.
        companions: add the single adapters that every ensemble must beat, see `companions`.
        rivals: other recipes beside the grid's, with their own number of members; of the axes they have those
            of `SHARED` and the dotted paths into them. One that is trained k times as long as the base stays
            so where an axis changes the budget.
        paths: store the predictions on validation of each ensemble's members along their training, see
            `analysis.paths`.
        search: sample continuous axes, or stop stacks early; None runs the whole grid.
        tune: dotted path into a trial (`"optimizer.lr"`) to the values that each recipe is tuned over before
            it is compared, see `lorae.tuning`: the same for all, or `Times` of its own. The one with the
            lowest validation NLL is chosen, of several axes their combination; a recipe that lacks an axis
            is not tuned over it.
        tune_members: members that are trained to judge each value, with the recipe's first seed.
        uneven_tuning: say that recipes which lack an axis may be compared with those that have it, though
            they were tuned over fewer points; else the audit fails.
    """

    base: Trial
    axes: dict[str, Any] = field(default_factory=dict)
    ood: tuple[Task, ...] | list[Task] = ()
    zero_shot: bool = True
    companions: bool = False
    rivals: tuple[Trial, ...] | list[Trial] = ()
    paths: bool = False
    search: Search | None = None
    tune: Mapping[str, Times | tuple[Any, ...] | list[Any]] = field(default_factory=dict)
    tune_members: int = 2
    uneven_tuning: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "ood", tuple(self.ood))
        object.__setattr__(self, "rivals", tuple(self.rivals))
        point = self.base
        for axis, values in self.grid.items():
            if not values:
                raise ValueError(f"axis {axis!r} has no values; give a list such as [1, 2, 4], or remove it")
            for value in values:
                with_value(point, axis, value)
            point = with_value(point, axis, values[0])
        self._rivals()
        _check_search(self)
        check_tuning(self)

    @property
    def grid(self) -> dict[str, list[Any]]:
        """The axes with listed values."""
        return {axis: values for axis, values in self.axes.items() if not isinstance(values, Uniform)}

    @property
    def continuous(self) -> dict[str, Uniform]:
        """The axes that a search samples."""
        return {axis: values for axis, values in self.axes.items() if isinstance(values, Uniform)}

    def trials(self) -> list[Trial]:
        """Every combination of the axes once, the zero-shot rows first, companions last; what is searched or
        tuned has the base's value, or the rival's."""
        grid = [self.base]
        for axis, values in self.grid.items():
            grid = [with_value(trial, axis, value) for trial in grid for value in values]
        grid = [_without_idle_settings(trial) for trial in grid]
        zero = (
            [
                replace(t, members=0, seed=0, regularizers=(), combine="probs", draws=None)
                for t in grid
                if not t.task.scoring.trains_head
            ]
            if self.zero_shot
            else []
        )
        first_of_reference = {
            (t.backbone, t.task, t.precision, t.budget.max_tokens): t for t in reversed(zero)
        }
        matched = [c for t in grid for c in companions(t)] if self.companions else []
        return list(dict.fromkeys([*reversed(first_of_reference.values()), *grid, *self._rivals(), *matched]))

    def _rivals(self) -> list[Trial]:
        """The rivals at every point of the axes that they share.

        Raises:
            ValueError: an axis of budgets beside a rival whose budget is no multiple of the base's.
        """
        shared = {axis: values for axis, values in self.grid.items() if axis.split(".")[0] in SHARED}
        ours, found = self.base.budget, []
        for rival in self.rivals:
            points, factor = [rival], 1
            if axis := next((a for a in shared if a.split(".")[0] == "budget"), None):
                factor = max(1, rival.budget.length // ours.length)
                if rival.budget != ours.times(factor):
                    raise ValueError(
                        f"axis {axis!r} beside a rival of {rival.budget}: it is no multiple of the base's "
                        f"{ours}, so its value is not known; write a sweep without the axis for each value"
                    )
                points = [replace(rival, budget=ours)]
            for axis, values in shared.items():
                points = [with_value(point, axis, value) for point in points for value in values]
            points = [replace(point, budget=point.budget.times(factor)) for point in points]
            found += map(_without_idle_settings, points)
        return found

    def space(self, trial: Trial) -> dict[str, Uniform]:
        """The continuous axes that a trial has: one without `DecayB` has no strength of it to be tuned."""
        return {axis: values for axis, values in self.continuous.items() if value_at(trial, axis) is not None}

    def located(self, data_root: Path | None) -> Sweep:
        """The sweep with every source fixed: hub branches become commits, tasks are found under
        `data_root`."""

        def fix(trial: Trial) -> Trial:
            return replace(trial, backbone=resolve(trial.backbone), task=trial.task.located(data_root))

        axes = dict(self.axes)
        if "backbone" in axes:
            axes["backbone"] = [resolve(v) for v in axes["backbone"]]
        if "task" in axes:
            axes["task"] = [v.located(data_root) for v in axes["task"]]
        return replace(
            self,
            base=fix(self.base),
            axes=axes,
            ood=tuple(t.located(data_root) for t in self.ood),
            rivals=tuple(map(fix, self.rivals)),
        )

    def eval_tasks(self, trial: Trial) -> list[Task]:
        """The OOD tasks of a trial, scored as its own task is.

        Raises:
            ValueError: an OOD task's modality or prompt template differs from the trained task's.
        """
        others = [t for t in self.ood if t.name != trial.task.name]
        for task in others:
            if task.modality != trial.task.modality:
                raise ValueError(
                    f"OOD task {task.name} has {task.modality} examples, {trial.task.name} has "
                    f"{trial.task.modality}; name tasks of one modality in Sweep(ood=[...])"
                )
        tasks = [replace(t, scoring=trial.task.scoring) for t in others]
        for task in tasks:
            ours, theirs = trial.task.prompt_template(), task.prompt_template()
            if ours != theirs:
                raise ValueError(
                    f"OOD task {task.name} has the prompt template {theirs!r}, {trial.task.name} has "
                    f"{ours!r}; detection would see the template, so use a task that shares it"
                )
        return tasks


def _without_idle_settings(trial: Trial) -> Trial:
    """The trial as it is run: the soup of one member is that member, and what trains nothing has no more
    than the number of tokens of its budget."""
    if trial.combine == "weights" and not trial.is_soup:
        return replace(trial, combine="probs")
    if not trial.method.trains:
        budget = Budget(batch_size=1, epochs=1, max_tokens=trial.budget.max_tokens)
        return replace(trial, optimizer=AdamW(), budget=budget)
    return trial


def companions(trial: Trial) -> list[Trial]:
    """The single members that an ensemble of M is fairly compared with; none for a single member.

    One of its members, whose row has its temperature-scaled metrics; one trained M times as long, which costs
    what training the ensemble does, unless nothing is trained; for LoRA one of rank M * r and equal scaling,
    which has as many parameters (no other method has a size to match), and M samples of the member, which
    take as many forward passes for a prediction.
    """
    if trial.members < 2:
        return []
    single = replace(trial, members=1, combine="probs" if trial.is_soup else trial.combine)
    if not trial.method.trains:
        return [single]
    found = [single, replace(single, budget=trial.budget.times(trial.members))]
    if larger := trial.method.times(trial.members):
        found.append(replace(single, method=larger))
    if trial.method.is_low_rank and trial.num_draws == 1:
        found.append(replace(single, draws=TFB(trial.members)))
    return found


def _check_search(sweep: Sweep) -> None:
    """Refuse a search that its axes do not fit; nothing is trained before that is known."""
    search, continuous = sweep.search, sweep.continuous
    if continuous and not isinstance(search, Optuna):
        axis, values = next(iter(continuous.items()))
        raise ValueError(
            f"axis {axis!r} is {values}: only a search samples it; write search=Optuna(num_samples=20), or "
            "a list of values"
        )
    if isinstance(search, Optuna) and not continuous:
        raise ValueError(
            f"search={search} has no continuous axis; write axes={{'optimizer.lr': LogUniform(1e-5, 1e-3)}}, "
            "or search=ASHA() for a grid"
        )
    if search and sweep.companions:
        raise ValueError("companions=True with a search: compare what it finds in a sweep without search")
    if search and "weights" in (sweep.base.combine, *sweep.axes.get("combine", ())):
        raise ValueError('combine="weights" with a search: compare soups in a sweep without search')
    if search and not all(trial.method.trains for trial in sweep.trials()):
        raise ValueError(
            f"search={search} with InContext: nothing is trained that it could end or tune; compare the "
            "numbers of shots in a sweep without search"
        )
    if search and sweep.rivals:
        raise ValueError("rivals with a search: compare what it finds with them in a sweep without search")
    if isinstance(search, EarlyEnd) and any(t.regularizer(EarlyStopping) for t in sweep.trials()):
        raise ValueError(
            f"search={search} with EarlyStopping: an ensemble of which a member has stopped cannot be "
            "compared with whole ones; leave EarlyStopping out, or write a sweep without search"
        )
    if search and len(seeds := sweep.axes.get("seed", [0])) > 1:
        raise ValueError(
            f"axis 'seed' has {seeds}: a search has one seed; write seed=[{seeds[0]}], and compare what it "
            "finds over seeds in a sweep without search"
        )
    _check_ranges(sweep)


def _check_ranges(sweep: Sweep) -> None:
    """Refuse ranges of which an end is no valid setting, or which the search would begin outside of."""
    trained = [trial for trial in sweep.trials() if trial.members] if sweep.continuous else []
    for axis, values in sweep.continuous.items():
        if all(value_at(trial, axis) is None for trial in trained):
            with_value(sweep.base, axis, values.low)
            raise ValueError(f"axis {axis!r} is {values}, but no trial has a value of it to begin with")
    for trial in trained:
        space = sweep.space(trial)
        for end in ("low", "high"):
            with_values(trial, {axis: getattr(values, end) for axis, values in space.items()})
        for axis, values in space.items():
            if not values.low <= (start := value_at(trial, axis)) <= values.high:
                raise ValueError(
                    f"axis {axis!r}: the search begins at the base's {start:g}, which is outside {values}"
                )


def cell_of(trial: Trial) -> Trial:
    """The trial with one member that predicts once: equal for trials that share members."""
    return replace(trial, members=min(trial.members, 1), combine="probs", draws=None)


def cells(trials: list[Trial]) -> Iterator[tuple[Trial, int]]:
    """Distinct recipes with their seed, and the largest number of members that any of its trials needs; a
    cell of no members is the backbone itself."""
    largest: dict[Trial, int] = {}
    for trial in trials:
        cell = cell_of(trial)
        largest[cell] = max(largest.get(cell, 0), trial.members)
    yield from largest.items()
