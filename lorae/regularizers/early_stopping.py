"""Early stopping of each member by its own validation NLL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lorae.regularizers.base import Regularizer


@dataclass(frozen=True)
class EarlyStopping(Regularizer):
    """Stops a member when its validation NLL has not improved for `patience` evaluations, and keeps its best
    step.

    Args:
        patience: evaluations without improvement before a member stops, >= 1.
        every: steps between evaluations; None = once per epoch.
    """

    keeps_best: ClassVar[bool] = True

    patience: int = 2
    every: int | None = None

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"patience={self.patience}: must be >= 1; write EarlyStopping(patience=2)")
        if self.every is not None and self.every < 1:
            raise ValueError(f"every={self.every}: must be >= 1 step, or None for once per epoch")

    @property
    def label(self) -> str:
        return f"early-{self.patience}" + ("" if self.every is None else f"x{self.every}")
