"""A Trial, one row of a table, and the identity of its members."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from lorae.combinations import COMBINATIONS, SOUPS
from lorae.draws import AnyDraws, drawn_set
from lorae.identity import SCHEMA_VERSION, canonical_json, check_kind, digest, fields_of, short_hash
from lorae.methods import AnyMethod, Lora
from lorae.regularizers import AnyRegularizer, EarlyStopping
from lorae.sources import Source
from lorae.tasks.base import Split, Task
from lorae.trial.recipe import AdamW, Budget, Diversity

_R = TypeVar("_R")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One row of a table: a recipe, a seed, a number of members and how their predictions are combined.

    Args:
        backbone: where the frozen model comes from.
        task: what it is fine-tuned on.
        method, regularizers, optimizer, budget, diversity, precision: the recipe. With "bf16" the backbone
            and activations are bfloat16; adapters and optimiser state are always fp32.
        seed: root of every random stream.
        members: ensemble size M; 0 is the untouched backbone (zero-shot), 1 the single adapter.
        combine: name of one of `lorae.combinations`. "probs" averages the members' probabilities, "logits"
            their logits, "weights" their weights: a soup, one model that predicts once.
        draws: how each trained member makes several predictions, independent of its training; None = one
            prediction. A cyclic schedule and `Masksembles` bring their own draws.
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
    combine: str = "probs"
    draws: AnyDraws | None = None

    def __post_init__(self) -> None:
        _check_kinds(self)
        if self.members < 0:
            raise ValueError(f"members={self.members}: must be >= 0; 0 is the backbone, 1 a single adapter")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: must be >= 0")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f'precision={self.precision!r}: must be "fp32" or "bf16"')
        if self.combine not in COMBINATIONS:
            raise ValueError(f"combine={self.combine!r}: must be one of {', '.join(COMBINATIONS)}")
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
        self.task.scoring.check_trial(self)
        self._check_draws()
        self._check_members_differ()
        if self.optimizer.head_lr is not None and not self.task.scoring.trains_head:
            raise ValueError(
                f"head_lr={self.optimizer.head_lr} with {self.task.scoring}: members train no head; leave "
                "it out"
            )
        if self.members == 0 and not self.task.scoring.backbone_has_classes:
            raise ValueError(
                f"members=0 with {self.task.scoring}: the backbone has no head for {self.task.name}; write "
                "members=1 or more"
            )

    def _check_members_differ(self) -> None:
        """Refuse identical members with different identities: they share the data order and draw nothing of
        their own. (If they also share the init stream, they have one identity and are trained once.)"""
        if not self.members_differ and self.members > 1:
            raise ValueError(
                f'members={self.members} of {self.method} with order="shared" would be identical: nothing '
                "of them is drawn at random; write Diversity(), a method with a random start, or members=1"
            )

    def _check_draws(self) -> None:
        """Refuse combinations that would make draws of draws."""
        if self.is_soup and self.num_draws > 1:
            raise ValueError(
                f'combine="{self.combine}" with draws {self.draws_label}: a soup predicts once; leave these '
                'out, or write combine="probs"'
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
        """Whether members with different identities differ: each has its own data order, or draws something
        else at random."""
        drawn = self.method.starts_apart or self.task.scoring.trains_head
        noisy = any(regularizer.is_noise for regularizer in self.regularizers)
        return drawn or noisy or self.diversity != Diversity(order="shared")

    @property
    def stores_reference(self) -> bool:
        """Whether the backbone's class logits on the training examples are stored, for a regulariser."""
        return self._needs_reference and not self.task.scoring.writes_text

    @property
    def rereads_backbone(self) -> bool:
        """Whether the backbone reads each batch alongside the members: a regulariser needs its distributions
        over the vocabulary, which are too large to store."""
        return self._needs_reference and self.task.scoring.writes_text

    @property
    def _needs_reference(self) -> bool:
        return any(regularizer.needs_reference for regularizer in self.regularizers)

    @functools.cached_property
    def teacher(self) -> Trial | None:
        """The ensemble that the members learn from, whose predictions on the training examples must be stored
        before they are trained; None = there is none."""
        return next((t for r in self.regularizers if (t := r.teacher(self))), None)

    @property
    def soup(self) -> str | None:
        """Name of the combination that merges several members into the one model that predicts; None if
        there is no soup, or only one member."""
        return self.combine if self.combine in SOUPS and self.members > 1 else None

    @property
    def writes_together(self) -> bool:
        """Whether several members write the answers together."""
        return self.task.scoring.writes_text and self.members > 1

    @property
    def is_soup(self) -> bool:
        return self.soup is not None

    @property
    def num_draws(self) -> int:
        """Predictions of one member on each example."""
        spec = self.draws or self._drawn_by_training
        return (self.optimizer.cycles or 1) * ((spec and spec.num_draws) or 1)

    @property
    def _drawn_by_training(self) -> AnyRegularizer | None:
        """The regulariser that makes a member predict several times, if any."""
        return next((regularizer for regularizer in self.regularizers if regularizer.num_draws), None)

    def num_passes(self, num_classes: int) -> int:
        """Forward passes of one member for its draws, plus backward passes, which take as long."""
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
        """Keys of the named streams that member `index` draws from; unused streams are absent."""
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
        settings = fields_of(without_idle_settings(self))
        recipe = {"schema": SCHEMA_VERSION} | {k: v for k, v in settings.items() if k in parts}
        if self.teacher:
            recipe["teacher"] = {"members": self.teacher.member_ids(), "combine": self.teacher.combine}
        return recipe

    def member_id(self, index: int) -> str:
        """Identity of member `index`: 16 hex digits. Equal members have equal identities, whatever the number
        of members, the sweep, the stack, the device, the host, the paths or the micro-batch."""
        return self._ids([index])[0]

    def member_ids(self) -> list[str]:
        """Identities of the trial's M members, in order."""
        return self._ids(range(self.members))

    def _ids(self, indices: Iterable[int]) -> list[str]:
        before, after = _around_streams(_without_members(self))
        keys = (canonical_json(self.member_key(index)) for index in indices)
        return [short_hash(f"{before}{key}{after}") for key in keys]

    def reference_id(self) -> str:
        """Identity of the untouched backbone, under which its predictions are stored; "none" if it has no
        classes because every member trains its own head."""
        if not self.task.scoring.backbone_has_classes:
            return "none"
        return backbone_id(self.backbone, self.precision, self.budget.max_tokens)

    def factors(self) -> dict[str, str | int | float]:
        """Readable columns of the row, flat and in a fixed order; "none" or 0 where the backbone, or a method
        that trains nothing, has no value."""
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
    """Refuse specs of types that training does not know."""
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
    """Canonical JSON of a recipe before and after a member's streams: large, and equal for all members."""
    before, streams, after = canonical_json(trial.recipe() | {"streams": None}).rpartition('"streams":null')
    key = streams.removesuffix("null")
    return before + key, after


@contextlib.contextmanager
def unchanged(trial: Trial) -> Iterator[None]:
    """Check on leaving the context that the files that the identities hash have not changed.

    Raises:
        ValueError: they have changed since this process first read them.
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
    """A trial of the same recipe, equal for all trials that differ only in their members. A recipe with a
    teacher names the teacher's members, and so depends on their streams."""
    if trial.teacher:
        return replace(trial, members=1, combine="probs", draws=None)
    return replace(trial, seed=0, members=1, diversity=Diversity(), combine="probs", draws=None)


def without_idle_settings(trial: Trial) -> Trial:
    """The trial without settings that have no effect: the soup of one member is that member, and a method
    that trains nothing uses only `max_tokens` of its budget."""
    if trial.combine in SOUPS and not trial.is_soup:
        return replace(trial, combine="probs")
    if not trial.method.trains:
        budget = Budget(batch_size=1, epochs=1, max_tokens=trial.budget.max_tokens)
        return replace(trial, optimizer=AdamW(), budget=budget)
    return trial
