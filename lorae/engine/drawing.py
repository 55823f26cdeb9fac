"""Predictions of the members of a stack, plain or with draws."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lorae.draws import Draws, Fit, Fitted, Sampler
from lorae.engine.adapters import Adapters, State
from lorae.engine.prediction import OnRows, predict_draws
from lorae.store.names import fit_file, member_folder
from lorae.store.peft_format import read_state, state_bytes
from lorae.store.store import Store
from lorae.tasks.encoding import Row
from lorae.trial import Trial


class Drawing:
    """Predictions of the members inserted into a backbone.

    Args:
        adapters, states, member_ids, rows_at_once, on_rows, trial, members: as for `Sampler`.
        stored: returns the stored fits, by member id, of the members that have one.
        train: returns the training rows, to fit draws on.

    Attributes:
        samplers: draws -> their sampler.
    """

    def __init__(
        self,
        adapters: Adapters,
        states: Sequence[State],
        member_ids: Sequence[str],
        stored: Callable[[Sequence[str], Fitted], Mapping[str, Fit]],
        train: Callable[[], Sequence[Row]],
        rows_at_once: int,
        on_rows: OnRows = lambda rows: None,
        trial: Trial | None = None,
        members: Sequence[int] = (),
    ) -> None:
        self.adapters, self.states, self.member_ids = adapters, states, member_ids
        self.stored, self.train = stored, train
        self.rows_at_once, self.on_rows = rows_at_once, on_rows
        self.trial, self.members = trial, members
        self.samplers: dict[Fitted, Sampler[Any]] = {}

    def predict(self, rows: Sequence[Row], draws: Draws | None) -> np.ndarray:
        """Logits (M, K, N, C) of K draws of each member.

        Raises:
            ValueError: a stored fit has unexpected tensors.
        """
        if not isinstance(draws, Fitted):
            return predict_draws(self.adapters.backbone, rows, draws, self.on_rows)
        if draws not in self.samplers:
            self.samplers[draws] = self._sampler(draws)
        return self.samplers[draws].predict(rows)

    def _sampler(self, draws: Fitted) -> Sampler[Any]:
        """Sampler with the stored fits; all missing fits are made now.

        Raises:
            ValueError: a stored fit has unexpected tensors.
        """
        make, ids = draws.sampler(), self.member_ids
        how = self.rows_at_once, self.on_rows, self.trial, self.members
        sampler = make(self.adapters, self.states, ids, draws, *how)
        stored = self.stored(ids, draws)
        for m, fit in stored.items():
            if {name: tuple(value.shape) for name, value in fit.tensors.items()} != sampler.shapes():
                where = f"{member_folder(m)}/{fit_file(draws, tensors=True)}"
                raise ValueError(
                    f"{where} is no fit of {draws} to this member; delete it and repeat the sweep"
                )
        if len(stored) < len(ids):
            sampler.fit(self.train())
        sampler.fits = [stored.get(m) or fit for m, fit in zip(ids, sampler.fits or stored.values())]
        return sampler

    @property
    def search_seconds(self) -> float:
        """Duration of all fitting."""
        return sum(sampler.search_seconds for sampler in self.samplers.values())

    def fits(self, member: int) -> dict[Fitted, Fit]:
        """The fits of one member's draws."""
        return {draws: sampler.fits[member] for draws, sampler in self.samplers.items()}


def fit_files(draws: Fitted, fit: Fit) -> dict[str, bytes]:
    """A member's files for a fit."""
    files = {fit_file(draws): json.dumps(fit.record).encode()}
    return files | ({fit_file(draws, tensors=True): state_bytes(fit.tensors)} if fit.tensors else {})


def read_fit(store: Store, member_id: str, draws: Fitted) -> Fit:
    """A member's fit.

    Raises:
        ValueError: there is no fit, or a file is damaged or has another shape.
    """
    record, name = store.fit_record(member_id, draws), fit_file(draws, tensors=True)
    has_tensors = name in store.files(member_folder(member_id))
    return Fit(record, read_state(store.read(member_folder(member_id), name)) if has_tensors else {})
