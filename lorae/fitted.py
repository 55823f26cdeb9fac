"""Draws that are fitted to trained members by their training examples: what those of `TFB` and of `Laplace`
share."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from lorae.adapters import Adapters, State
from lorae.clock import Stopwatch
from lorae.draws import Fitted
from lorae.encoding import Row
from lorae.peft_format import read_state, state_bytes
from lorae.prediction import OnRows
from lorae.store import Store, fit_file, member_folder


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
        on_rows: as for `lorae.prediction.predict`.

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
        on_rows: OnRows = lambda rows: None,
    ) -> None:
        self.adapters, self.states, self.member_ids, self.spec = adapters, states, member_ids, spec
        self.rows_at_once, self.on_rows = rows_at_once, on_rows
        self.fits: list[Fit] = []
        self.search_seconds = 0.0

    def fit(self, train: Sequence[Row]) -> None:
        """Fit the members' draws to them, all members at once, each by itself."""
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


def fit_files(draws: Fitted, fit: Fit) -> dict[str, bytes]:
    """A member's files of a fit."""
    files = {fit_file(draws): json.dumps(fit.record).encode()}
    return files | ({fit_file(draws, tensors=True): state_bytes(fit.tensors)} if fit.tensors else {})


def read_fit(store: Store, member_id: str, draws: Fitted) -> Fit:
    """A member's fit.

    Raises:
        ValueError: it was not fitted, or a file is damaged or has not its shape.
    """
    record, name = store.fit_record(member_id, draws), fit_file(draws, tensors=True)
    has_tensors = name in store.files(member_folder(member_id))
    return Fit(record, read_state(store.read(member_folder(member_id), name)) if has_tensors else {})
