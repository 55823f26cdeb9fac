"""One row per trial, computed from stored logits alone: factors, metrics, cost and provenance.

`sweeps/<name>/trials.parquet` is rebuilt whole from members and references, so it cannot disagree with them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from lorae.combinations import COMBINATIONS
from lorae.identity import canonical_json, digest
from lorae.planning.choice import Choice
from lorae.results.columns import (
    trial_schema,
)
from lorae.results.cost import trial_cost
from lorae.results.scores import (
    row_answers,
    text_metrics,
    trial_metrics,
)
from lorae.store.ahead import ahead
from lorae.store.answers import Answer
from lorae.store.names import (
    member_folder,
    pool_folders,
    texts_folder,
)
from lorae.store.predictions import Predictions
from lorae.store.store import Store
from lorae.tasks.base import Split, Task
from lorae.trial import Trial


def trial_id(trial: Trial) -> str:
    """Identity of a row: its recipe, seed, number of members, combination rule, and test set with draws."""
    parts = {name: getattr(trial, name) for name in ("seed", "members", "combine", "diversity")}
    return digest(parts | {"recipe": trial.recipe(), "test": trial.eval_set(trial.task, "test")})


@dataclass(frozen=True)
class Pruned:
    """Where a search stopped the stack of a member: steps done, and the ensemble's validation NLL there."""

    step: int
    num_steps: int
    validation_nll: float


def trials_table(
    store: Store,
    sweep: str,
    trials: Sequence[tuple[Trial, Sequence[Task]]],
    provenance: dict[str, Any],
    pruned: Mapping[str, Pruned] = MappingProxyType({}),
    choices: Mapping[Trial, Choice] = MappingProxyType({}),
) -> pa.Table:
    """Rows of a sweep's trials, each with its OOD tasks.

    A trial without all its predictions is "pruned" if a search stopped one of its members, else "failed"; so
    is one whose tuning chose nothing.

    Args:
        pruned: by member id.
        choices: of the trials that were tuned.
    """
    provenance_text = json.dumps(provenance)

    def read(row: tuple[Trial, Sequence[Task]]) -> _Stored:
        return _stored(store, *row, choices.get(row[0]))

    with store.remembering():
        stored = ahead(read, trials, size=lambda found: found.num_bytes)
        rows = [
            {"sweep": sweep, **found.identity, "provenance": provenance_text} | _outcome(store, found, pruned)
            for found in stored
        ]
    names = list(dict.fromkeys(task.name for _, ood in trials for task in ood))
    return pa.Table.from_pylist(rows, schema=trial_schema(names))


@dataclass(frozen=True)
class _Stored:
    """What the store has for a row.

    Attributes:
        identity: columns of the row that are known without the store.
        predictions: by "test", "validation" and OOD task; none where there is a fault.
        answers: to the test set, of tasks whose answer is text.
        columns: of the row, that are not computed from predictions.
        fault: why the row cannot be computed, or None.
    """

    trial: Trial
    ood: Sequence[Task]
    choice: Choice | None
    folders: list[str]
    identity: dict[str, Any]
    predictions: dict[str, Predictions]
    answers: tuple[Answer, ...]
    columns: dict[str, Any]
    fault: str | None

    @property
    def num_bytes(self) -> int:
        return sum(found.logits_MNC.nbytes for found in self.predictions.values())


def _stored(store: Store, trial: Trial, ood: Sequence[Task], choice: Choice | None) -> _Stored:
    folders = pool_folders(trial.member_ids(), trial.reference_id(), trial.soup)
    splits: tuple[Split, Split] = ("validation", "test")
    eval_sets = {split: trial.eval_set(trial.task, split) for split in splits}
    eval_sets |= {task.name: trial.eval_set(task, "test") for task in ood}
    identity, columns, fault = _identity(trial, eval_sets), dict[str, Any](), None
    predictions, answers = dict[str, Predictions](), ()
    try:
        columns["tuning"] = choice and json.dumps(choice.record(store, trial.member_ids()))
        if untuned := choice and choice.failure(store):
            raise ValueError(untuned)
        predictions = {name: store.predictions(folders, s) for name, s in eval_sets.items()}
        if trial.task.scoring.writes_text:
            answers = row_answers(store, identity, eval_sets["test"])
        columns |= trial_cost(store, trial)
        if trial.soup and store.is_of_others(trial.member_ids(), trial.soup):
            raise ValueError(f"{folders[0]} is of members that were trained again; repeat the sweep")
    except ValueError as error:
        fault = str(error)
    return _Stored(trial, ood, choice, folders, identity, predictions, answers, columns, fault)


def _identity(trial: Trial, eval_sets: Mapping[str, str]) -> dict[str, Any]:
    scoring = trial.task.scoring
    return {
        "trial_id": trial_id(trial),
        **trial.factors(),
        "member_ids": trial.member_ids(),
        "reference_id": trial.reference_id(),
        "decoding": scoring.decoding if scoring.writes_text else None,
        "eval_sets": json.dumps(eval_sets),
        "recipe": canonical_json(trial.recipe()),
    }


def _outcome(store: Store, found: _Stored, pruned: Mapping[str, Pruned]) -> dict[str, Any]:
    """Status, metrics and costs of a row, or why it has none; what is damaged is set aside."""
    trial, fault = found.trial, found.fault
    if fault is None:
        rule, names = COMBINATIONS[trial.combine].rule, [task.name for task in found.ood]
        try:
            of_tokens = trial.task.scoring.writes_text
            scores = trial_metrics(found.predictions, names, rule, len(found.folders), of_tokens)
            scores |= text_metrics(found.answers) if of_tokens else {}
            return {"status": "done", **found.columns, **scores}
        except ValueError as error:
            fault = str(error)
    members = [*trial.member_ids(), *(found.choice.member_ids if found.choice else ())]
    texts = [texts_folder(trial.member_ids())] if trial.writes_together else []
    store.set_damaged_aside(dict.fromkeys([*found.folders, *texts, *map(member_folder, members)]))
    row = {"tuning": found.columns.get("tuning")}
    if stop := next((pruned[m] for m in trial.member_ids() if m in pruned), None):
        why = f"stopped by the search after {stop.step} of {stop.num_steps} steps"
        score = {"pruned_step": stop.step, "validation_nll": stop.validation_nll}
        return row | {"status": "pruned", "error": why} | score
    failures = [f"{m}: {reason}" for m in trial.member_ids() if (reason := store.failure(m))]
    untuned = found.choice and found.choice.failure(store)
    return row | {"status": "failed", "error": untuned or "; ".join(failures) or fault}
