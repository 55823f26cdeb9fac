"""Predictions of the members of a running stack, and their files."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lorae.draws import Fit, Fitted
from lorae.engine.adapters import Adapters, State
from lorae.engine.drawing import Drawing, fit_files, read_fit
from lorae.engine.in_context import predict_in_context
from lorae.engine.job import Job, num_classes, num_tokens
from lorae.engine.prediction import OnRows
from lorae.noise import make_noise
from lorae.planning.stack import EvalSet
from lorae.store.names import (
    LATER_RECORD,
    fit_file,
    member_folder,
)
from lorae.store.peft_format import read_stages
from lorae.store.predictions import prediction_file, rows_bytes
from lorae.store.store import Store


@dataclass
class Predicted:
    """Predictions of some members.

    Attributes:
        logits: per member, evaluation set -> logits (K, N, C) of K draws.
        fits: per member, the fits of its draws, if they are fitted.
        seconds: duration of the predictions, without fitting.
    """

    logits: list[dict[str, np.ndarray]]
    fits: list[dict[Fitted, Fit]]
    seconds: float


def predict_sets(
    job: Job, wanted: dict[int, dict[str, EvalSet]], stages: Sequence[Sequence[State]]
) -> Predicted:
    """Predict with some members; members that predict the same evaluation sets do so together.

    Args:
        wanted: member -> the sets that it predicts.
        stages: the members' parameters at each of their snapshots, the final parameters last.
    """
    started, trial, searched = time.perf_counter(), job.stack.trial, 0.0
    if not trial.method.trains:
        return predict_prompted(job, wanted, job.counted(tokens_prompted(job, wanted)))
    found = Predicted([{} for _ in wanted], [{} for _ in wanted], 0.0)
    answer_ids = job.encoded(trial.task, "test")[0].answer_ids
    sets = {name: s for of_member in wanted.values() for name, s in of_member.items()}
    together: dict[tuple[int, ...], list[str]] = {}  # keys: positions among the members
    for name in sets:
        who = tuple(position for position, of_member in enumerate(wanted.values()) if name in of_member)
        together.setdefault(who, []).append(name)
    on_rows = job.counted(_tokens_to_predict(job, wanted, len(stages)))
    for who, names in together.items():
        members = [[*wanted][position] for position in who]
        streams = [trial.member_key(m) for m in members]
        noise, inits = make_noise(trial.method, trial.regularizers, streams), [s["init"] for s in streams]
        drawn: dict[str, list[np.ndarray]] = {name: [] for name in names}
        with Adapters(job.backbone, trial.method, inits, noise, answer_ids) as adapters:
            for stage in stages:
                states = [stage[position] for position in who]
                adapters.load(states)
                drawing = _drawing(job, adapters, states, members, on_rows)
                for name in names:
                    rows = job.trained_rows(sets[name].task, sets[name].split)
                    drawn[name].append(drawing.predict(rows, sets[name].draws))
                searched += drawing.search_seconds
                for m, position in enumerate(who):
                    found.fits[position] |= drawing.fits(m)
        for m, position in enumerate(who):
            found.logits[position] |= {n: np.concatenate([d[m] for d in drawn[n]]) for n in names}
    found.seconds = time.perf_counter() - started - searched
    return found


def predict_prompted(job: Job, wanted: dict[int, dict[str, EvalSet]], on_rows: OnRows) -> Predicted:
    """`predict_sets` for prompted members, which differ in their context, one member at a time."""
    started, trial, backbone = time.perf_counter(), job.stack.trial, job.backbone
    found = Predicted([], [{} for _ in wanted], 0.0)
    for m, of_member in wanted.items():
        setting, logits = (trial.method, job.context(m).text, trial.budget.max_tokens), {}
        for name, s in of_member.items():
            logits[name] = predict_in_context(backbone, *setting, s.task, s.split, on_rows)[None]
        found.logits.append(logits)
    found.seconds = time.perf_counter() - started
    return found


def tokens_prompted(job: Job, wanted: dict[int, dict[str, EvalSet]]) -> int:
    """Tokens of the prompts of some members on some sets."""
    total = 0
    for m, of_member in wanted.items():
        before = len(job.backbone.tokenizer(job.context(m).text)["input_ids"])
        rows = [row for s in of_member.values() for row in job.encoded(s.task, s.split)]
        total += len(rows) * before + num_tokens(rows)
    return total


def _tokens_to_predict(job: Job, wanted: dict[int, dict[str, EvalSet]], num_stages: int) -> int:
    """Tokens of all forward passes to predict the members' sets and to fit their draws."""
    trial, total = job.stack.trial, 0
    for s in {name: s for of_member in wanted.values() for name, s in of_member.items()}.values():
        rows = job.trained_rows(s.task, s.split)
        num_passes = replace(trial, draws=s.draws).num_passes(num_classes(rows))
        total += num_stages * num_passes // (trial.optimizer.cycles or 1) * num_tokens(rows)
    sampled = {m: {s.draws for s in of_member.values()} for m, of_member in wanted.items()}
    for spec in {draws for ways in sampled.values() for draws in ways if isinstance(draws, Fitted)}:
        ids = [trial.member_id(m) for m, ways in sampled.items() if spec in ways]
        if len(job.ranks.once(_fitted, job.store, ids, spec)) < len(ids):
            read = spec.fitted_on(job.trained_rows(trial.task, "train"))
            total += spec.passes_to_fit(num_classes(read)) * num_tokens(read)
    return total


def _drawing(
    job: Job, adapters: Adapters, states: Sequence[State], members: Sequence[int], on_rows: OnRows
) -> Drawing:
    """A `Drawing` of members that uses stored fits, and makes missing fits."""
    trial = job.stack.trial
    return Drawing(
        adapters,
        states,
        [trial.member_id(m) for m in members],
        stored=lambda ids, spec: _stored_fits(job, ids, spec),
        train=lambda: job.trained_rows(trial.task, "train"),
        rows_at_once=job.stack.micro_batch or -(-trial.budget.batch_size // job.ranks.size),
        on_rows=on_rows,
        trial=trial,
        members=members,
    )


def _stored_fits(job: Job, ids: Sequence[str], spec: Fitted) -> dict[str, Fit]:
    """The fits of the members that have one, in order."""

    def stored() -> dict[str, list[Any]]:
        found = {m: read_fit(job.store, m, spec) for m in _fitted(job.store, ids, spec)}
        return {m: [fit.record, fit.tensors] for m, fit in found.items()}

    return {m: Fit(*of_member) for m, of_member in job.ranks.once(stored).items()}


def _fitted(store: Store, ids: Sequence[str], spec: Fitted) -> list[str]:
    """Members that have a stored fit of these draws."""
    return [m for m in ids if fit_file(spec) in store.files(member_folder(m))]


def predict_stored(job: Job, members: Sequence[int]) -> dict[str, str]:
    """Predict the missing evaluation sets of stored members, in one pass."""
    trial = job.stack.trial
    ids = [trial.member_id(m) for m in members]
    stages = job.ranks.once(read_stages, job.store, ids)
    lacking = job.ranks.once(lambda: [[*lacking_sets(job, m)] for m in members])
    wanted = {m: {name: job.stack.eval_sets(m)[name] for name in of_it} for m, of_it in zip(members, lacking)}
    return job.ranks.once(_add_predictions, job, ids, predict_sets(job, wanted, stages))


def lacking_sets(job: Job, member: int) -> dict[str, EvalSet]:
    """Evaluation sets that a stored member lacks."""
    files = job.store.files(member_folder(job.stack.trial.member_id(member)))
    sets = job.stack.eval_sets(member)
    return {name: wanted for name, wanted in sets.items() if prediction_file(name) not in files}


def _add_predictions(job: Job, ids: Sequence[str], predicted: Predicted) -> dict[str, str]:
    """Store predictions of stored members, with their cost if tuning had predicted only validation; returns
    failed member id -> reason."""
    found, failed = files_by_member(job, ids, predicted)
    test = prediction_file(job.stack.trial.task.eval_set("test")).removesuffix(".parquet")
    later = json.dumps({"cost": {"predict_seconds": predicted.seconds / len(ids)}}).encode()
    for member_id, files in found.items():
        folder = member_folder(member_id)
        stored = job.store.files(folder)
        if not (job.stack.validation_only or any(name.startswith(test) for name in stored)):
            files[LATER_RECORD] = later
        job.store.write_entry(folder, {k: v for k, v in files.items() if k not in stored})
    return failed


def files_by_member(
    job: Job, ids: Sequence[str], predicted: Predicted
) -> tuple[dict[str, dict[str, bytes]], dict[str, str]]:
    """Files of each member's predictions and of its draws' fits; and failed member id -> reason."""
    found, failed = {}, {}
    for position, member_id in enumerate(ids):
        try:
            found[member_id] = prediction_files(job, member_id, predicted.logits[position])
        except ValueError as error:
            failed[member_id] = str(error)
            continue
        for spec, fit in predicted.fits[position].items():
            found[member_id] |= fit_files(spec, fit)
    return found, failed


def prediction_files(job: Job, entry_id: str, logits: dict[str, np.ndarray]) -> dict[str, bytes]:
    """Prediction files of one entry, from evaluation set -> logits (K, N, C)."""
    sets, files = job.stack.reference_sets() | job.stack.eval_sets(), {}
    for name, logits_KNC in logits.items():
        rows = job.encoded(sets[name].task, sets[name].split)
        files[prediction_file(name)] = rows_bytes(entry_id, name, sets[name].task, rows, logits_KNC)
    return files
