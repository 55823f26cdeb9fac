"""Which trials share members, and which trials' members can be trained in the same steps."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from lorae.trial.recipe import AdamW
from lorae.trial.trial import Trial


@functools.lru_cache(maxsize=4096)
def in_common(trial: Trial) -> Any:
    """What members must have in common to be trained in the same steps: members of trials with equal values
    can be.

    They may differ in everything that acts on one member alone: its random streams, the optimiser's numbers,
    and the penalties, class weights and decay of its regularisers. They have the backbone's passes in common,
    the teacher, the steps at which something happens, and the one noise of a stack. Where texts are written,
    penalties are of tokens, not of members' rows, and where members run one by one nothing is gained.
    """
    if trial.method.regime != "together":
        return trial.method.regime, trial
    spec, writes_text = trial.optimizer, trial.task.scoring.writes_text
    schedule = AdamW(schedule=spec.schedule, cycles=spec.cycles, warmup_frac=spec.warmup_frac)
    rules = tuple(r for r in trial.regularizers if r.is_noise or r.keeps_best or writes_text)
    return (
        trial.backbone,
        trial.task,
        trial.method,
        trial.budget,
        trial.precision,
        schedule,
        rules,
        trial.teacher,
    )


def cell_of(trial: Trial) -> Trial:
    """The trial with one member that predicts once: equal for trials that share members."""
    return replace(trial, members=min(trial.members, 1), combine="probs", draws=None)


def cells(trials: list[Trial]) -> Iterator[tuple[Trial, int]]:
    """Distinct cells (a recipe and a seed), each with the largest number of members that a trial of it needs;
    a cell with 0 members is the backbone itself."""
    largest: dict[Trial, int] = {}
    for trial in trials:
        cell = cell_of(trial)
        largest[cell] = max(largest.get(cell, 0), trial.members)
    yield from largest.items()
