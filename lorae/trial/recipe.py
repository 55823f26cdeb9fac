"""How a member is optimised, for how long, and what makes members differ."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from lorae.identity import IF_SET


@dataclass(frozen=True)
class AdamW:
    """AdamW with linear warm-up and a decay to zero; each member's gradient is clipped by its own norm.

    Args:
        lr: peak learning rate.
        warmup_frac: share of the steps with linear warm-up, in [0, 1).
        schedule: decay after the warm-up: "linear", "cosine", "constant" or "cyclic", a cosine that restarts.
        weight_decay: decoupled decay of every trained factor.
        betas, eps: as in Loshchilov and Hutter, arXiv:1711.05101.
        max_grad_norm: clipping bound on a member's gradient norm; None = no clipping.
        head_lr: peak learning rate of trained heads; None = `lr`.
        cycles: number of cycles of "cyclic", >= 2; the snapshots at the ends of the cycles are the draws of a
            member (snapshot ensemble, Huang et al. 2017, arXiv:1704.00109).
    """

    lr: float = 1e-4
    warmup_frac: float = 0.06
    schedule: Literal["linear", "cosine", "constant", "cyclic"] = "linear"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    max_grad_norm: float | None = 1.0
    cycles: int | None = field(default=None, metadata=IF_SET)
    head_lr: float | None = field(default=None, metadata=IF_SET)

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr}: must be > 0; write AdamW(lr=1e-4)")
        if self.head_lr is not None and not self.head_lr > 0:
            raise ValueError(
                f"head_lr={self.head_lr}: must be > 0, or None for lr; write AdamW(head_lr=1e-3)"
            )
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
        """Steps done at the end of every cycle but the last; cycles are equally long up to rounding.

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
        max_tokens: longer prompts lose the middle of the example's own text, or their end with an encoder.
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
