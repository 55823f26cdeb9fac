"""Fitting draws to trained members, and sampling them."""

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
    """The fit that one member's draws are sampled from.

    Attributes:
        record: scalars, among them the member's share of the search's "search_seconds" and
            "search_process_seconds", and its "search_flops".
        tensors: the fit's tensors.
    """

    record: dict[str, float]
    tensors: State = field(default_factory=dict)


F = TypeVar("F", bound=Fitted)


class Sampler(ABC, Generic[F]):
    """Draws of the members of a stack.

    Args:
        adapters: adapters that hold the members, and hold them again after each call.
        states: the members' parameters.
        member_ids: the members' identities, which name their noise streams.
        spec: how to draw.
        rows_at_once: examples per member in one pass with gradients.
        on_rows: as for `lorae.engine.prediction.predict`.
        trial, members: the trial, and the indices of the members; needed to fit draws by further training.

    Attributes:
        fits: the fit of each member; set by `fit` or by the caller.
        search_seconds: duration of `fit`.
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
        """Fit the members' draws, all members at once but each independently."""
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
        """Shapes of the tensors of a fit, by name."""
        return {}

    @abstractmethod
    def _fitted(self, rows: Sequence[Row]) -> list[Fit]:
        """The fits on the rows that `fit` selects, without their cost."""

    @abstractmethod
    def predict(self, rows: Sequence[Row]) -> np.ndarray:
        """Logits (M, K, N, C) of K draws of each member."""
