"""How draws that are fitted to trained members are fitted and drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from lorae.draws.base import Fitted

if TYPE_CHECKING:
    from lorae.engine.adapters import Adapters, State
    from lorae.tasks.encoding import Row
    from lorae.trial import Trial


@dataclass(frozen=True, eq=False)
class Fit:
    """What one member's draws are drawn by.

    Attributes:
        record: its numbers, among them the member's share of the search's "search_seconds" and
            "search_process_seconds", and its "search_flops".
        tensors: what else there is.
    """

    record: dict[str, float]
    tensors: State = field(default_factory=dict)


F = TypeVar("F", bound=Fitted)


class Sampler(ABC, Generic[F]):
    """Draws of the members of a stack.

    Args:
        adapters: hold the members, and hold them again after each call.
        states: the members' parameters.
        member_ids: name the streams of their noise.
        spec: how they are drawn.
        rows_at_once: examples of each member in one pass with gradients.
        on_rows: as for `lorae.engine.prediction.predict`.
        trial, members: what the members are of, and their indices; needed to fit draws by more training.

    Attributes:
        fits: each member's; to be fitted or set.
        search_seconds: what `fit` took.
    """

    def __init__(
        self,
        adapters: Adapters,
        states: Sequence[State],
        member_ids: Sequence[str],
        spec: F,
        rows_at_once: int = 8,
        on_rows: Callable[[Sequence[Row]], None] = lambda rows: None,
        trial: Trial | None = None,
        members: Sequence[int] = (),
    ) -> None:
        self.adapters, self.states, self.member_ids, self.spec = adapters, states, member_ids, spec
        self.rows_at_once, self.on_rows = rows_at_once, on_rows
        self.trial, self.members = trial, members
        self.fits: list[Fit] = []
        self.search_seconds = 0.0

    def fit(self, train: Sequence[Row]) -> None:
        """Fit the members' draws to them, all members at once, each by itself."""
        from lorae.engine.clock import Stopwatch

        backbone, rows = self.adapters.backbone, self.spec.fitted_on(train)
        watch = Stopwatch(backbone.device, backbone.ranks.size)
        found = self._fitted(rows)
        self.search_seconds = watch.stop().seconds
        num_passes = self.spec.passes_to_fit(max(row.num_classes for row in rows))
        cost = {
            "search_seconds": watch.seconds / len(found),
            "search_process_seconds": watch.process_seconds / len(found),
            "search_flops": num_passes * float(self.adapters.passes.forward.of(rows).sum()),
        }
        self.fits = [Fit(fit.record | cost, fit.tensors) for fit in found]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors of a fit."""
        return {}

    @abstractmethod
    def _fitted(self, rows: Sequence[Row]) -> list[Fit]:
        """What `fit` finds on the rows that it takes, without the seconds."""

    @abstractmethod
    def predict(self, rows: Sequence[Row]) -> np.ndarray:
        """Logits (M, K, N, C) of K draws of each member."""
