"""The members that a running stack makes: trained together or prompted, then predicted with and stored."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch

from lorae.combinations import COMBINATIONS
from lorae.engine.checkpoints import StackCheckpoints
from lorae.engine.job import Job
from lorae.engine.predicting import (
    Predicted,
    files_by_member,
    predict_prompted,
    predict_sets,
    prediction_files,
    tokens_prompted,
)
from lorae.engine.training import MemberRun, TrainingData, train_stack
from lorae.identity import canonical, digest
from lorae.methods import frozen_tensors
from lorae.metrics import combine
from lorae.planning.stack import Progress, Stack
from lorae.store import peft_format
from lorae.store.names import (
    CUT,
    PATH_FILE,
    member_folder,
    reference_folder,
    snapshot_file,
)
from lorae.store.ownership import OWNER
from lorae.store.predictions import SCHEMA, parquet_bytes, prediction_file
from lorae.store.records import CURVE
from lorae.tasks.base import Task
from lorae.tasks.encoding import head_answers, head_classes, shared_options
from lorae.trial import Trial


def train_members(members: Sequence[tuple[Job, int]]) -> dict[str, str]:
    """Train members together, predict and store; returns failed member id -> reason.

    Args:
        members: each with the job of its part of the stack; those of a part behind one another.
    """
    job = members[0][0]  # for all that the parts have in common
    trials, ids = [part.stack.trial for part, _ in members], [_id(*member) for member in members]
    job.on_progress(Progress("train"))
    train, validation = (
        job.trained_rows(trials[0].task, "train"),
        job.trained_rows(trials[0].task, "validation"),
    )
    data = TrainingData(
        train,
        validation,
        feature_seconds=sum(watch.seconds for watch in job.feature_watches),
        feature_process_seconds=sum(watch.process_seconds for watch in job.feature_watches),
    )
    job.feature_watches.clear()  # count them in only one training's cost
    if any(trial.stores_reference for trial in trials):
        folders, name = [reference_folder(trials[0].reference_id())], trials[0].task.eval_set("train")
        reference = job.ranks.once(lambda: torch.tensor(job.store.predictions(folders, name).logits_MNC[0]))
        data = replace(data, reference_logits_NC=reference.numpy())
    if trials[0].teacher:
        targets = job.ranks.once(_targets, job, trials[0].teacher)
        data = replace(data, reference_logits_NC=targets.numpy())
    stack_id = digest(sorted(ids))
    job.ranks.once(job.store.begin, stack_id, ids)
    checkpoints = StackCheckpoints(job.store.storage, stack_id, job.checkpoint_seconds, job.should_stop)
    every = job.early_end and job.early_end.steps_between(trials[0].budget, len(train))

    def evaluated(step: int, num_steps: int, nll: float) -> None:
        job.on_progress(Progress("evaluate", step, num_steps, step // (every or 1), nll))
        job.stop_if_asked()

    validated: float | None = None

    def stepped(step: int, num_steps: int, runs: Sequence[MemberRun]) -> None:
        nonlocal validated
        if (nll := latest(runs, "validation", "nll")) is not None:
            validated = nll
        loss = latest(runs, "train", "loss")
        job.on_progress(Progress("train", step, num_steps, train_loss=loss, member_nll=validated))

    runs = train_stack(
        job.backbone,
        trials,
        [m for _, m in members],
        data,
        micro_batch=job.stack.micro_batch,
        checkpoints=checkpoints,
        on_step=stepped,
        evaluate_every=every,
        on_evaluation=evaluated,
        path=any(part.stack.paths for part, _ in members),
    )
    failed = {member_id: run.error for member_id, run in zip(ids, runs) if run.error is not None}
    good: dict[Stack, tuple[Job, list[MemberRun]]] = {}
    for (part, _), run in zip(members, runs):
        if run.error is None:
            good.setdefault(part.stack, (part, []))[1].append(run)
    # All are stored at once: of members that were trained together, none is without the others
    predicted = [(part, of_part, _predicted(part, of_part)) for part, of_part in good.values()]
    failed |= job.ranks.once(_store_members, predicted)
    job.ranks.once(_close, job, failed, stack_id)
    return failed


def _targets(job: Job, teacher: Trial) -> torch.Tensor:
    """Log-probabilities (N, C) of a teacher on the training examples.

    Raises:
        ValueError: a member of the teacher is not stored, or has not predicted them.
    """
    folders = [*map(member_folder, teacher.member_ids())]
    stored = job.store.predictions(folders, teacher.task.eval_set("train"))
    pooled_NC = combine(stored.logits_MNC, COMBINATIONS[teacher.combine].rule)
    return torch.from_numpy(pooled_NC.astype(np.float32))


def latest(runs: Sequence[MemberRun], split: str, name: str) -> float | None:
    """Mean over the members of what the end of their curves says of a split; None if it says nothing."""
    found = [[float(row[name]) for row in run.curve[-2:] if row["split"] == split][-1:] for run in runs]
    values = [value for last in found for value in last]
    return sum(values) / len(values) if values else None


def _predicted(job: Job, runs: Sequence[MemberRun]) -> Predicted:
    """What members predict that have just been trained."""
    stages = [*zip(*(run.snapshots for run in runs)), [run.state for run in runs]]
    return predict_sets(job, {run.member: job.stack.eval_sets(run.member) for run in runs}, stages)


def prompt_members(members: Sequence[tuple[Job, int]]) -> dict[str, str]:
    """Predict with members that train nothing, and store each immediately: a killed run continues with the
    next member. Returns failed member id -> reason."""
    job, failed = members[0][0], {}
    wanted = {m: job.stack.eval_sets(m) for _, m in members}
    on_rows = job.counted(tokens_prompted(job, wanted))
    for m, of_member in wanted.items():
        predicted = predict_prompted(job, {m: of_member}, on_rows)
        failed |= job.ranks.once(_store_members, [(job, [MemberRun(m)], predicted)])
    job.ranks.once(_close, job, failed, job.stack.id)
    return failed


def _id(job: Job, member: int) -> str:
    return job.stack.trial.member_id(member)


def _close(job: Job, failed: dict[str, str], stack_id: str) -> None:
    """Record the failed members, and close the stack: nothing is left to resume."""
    for member_id, reason in failed.items():
        job.store.write_failure(member_id, reason)
    job.store.end(stack_id)


def _store_members(trained: Sequence[tuple[Job, list[MemberRun], Predicted]]) -> dict[str, str]:
    """Store the trained members of each part of a stack, with their predictions; returns failed member id ->
    reason."""
    stored, failed, num = {}, {}, sum(len(runs) for _, runs, _ in trained)
    for job, runs, predicted in trained:
        found, lost = files_by_member(job, [_id(job, run.member) for run in runs], predicted)
        by_id = {_id(job, run.member): run for run in runs}
        for member_id, files in found.items():
            files |= _trained_files(job, member_id, by_id[member_id])
            files["member.json"] = _member_json(job, by_id[member_id], num, predicted.seconds / len(runs))
        stored, failed = stored | found, failed | lost
    if stored:
        trained[0][0].store.write_members(stored)
    for member_id in stored:
        trained[0][0].store.storage.delete(f"failures/{member_id}.json")
    return failed


def _trained_files(job: Job, member_id: str, run: MemberRun) -> dict[str, bytes]:
    """A member's parameters, snapshots, path and curve."""
    trial, frozen = job.stack.trial, ()
    if trial.method.trains:
        layers = trial.method.adapted_layers(job.backbone.linears, job.backbone.name)
        frozen = frozen_tensors(trial.method, layers, trial.member_key(run.member)["init"])
    files = peft_format.adapter_files(trial.method, trial.backbone, run.state, frozen, trial.task.scoring)
    for k, state in enumerate(run.snapshots):
        files[snapshot_file(k)] = peft_format.state_bytes(state)
    if run.path and job.stack.paths:
        logits_KNC = torch.stack([point["logits"] for point in run.path]).numpy()
        name = next(n for n, wanted in job.stack.eval_sets().items() if wanted.split == "validation")
        files[PATH_FILE] = prediction_files(job, member_id, {name: logits_KNC})[prediction_file(name)]
    schema = CURVE.with_metadata(SCHEMA | {OWNER: member_id})
    return files | {"curve.parquet": parquet_bytes(pa.Table.from_pylist(run.curve, schema=schema))}


def _member_json(job: Job, run: MemberRun, stacked_with: int, predict_seconds: float) -> bytes:
    trial = job.stack.trial
    rows = job.encoded(trial.task, "train")
    counted = {
        "train_process_seconds": run.process_seconds,
        "train_flops": run.train_flops,
        "shared_flops": run.shared_flops,
    }
    record = {
        "member_id": trial.member_id(run.member),
        "recipe": canonical(trial.recipe()),
        "streams": canonical(trial.member_key(run.member)),
        "source": {"type": type(trial.backbone).__name__, **vars(trial.backbone)},
        "prompt_template": trial.task.prompt_template(),
        "classes": head_classes(trial.task),
        "answers": head_answers(trial.method, trial.task),
        "options": shared_options(trial.task),
        "own_prompt": type(trial.task).prompt is not Task.prompt,
        "best_step": run.best_step,
        "cost": {
            "train_tokens": run.train_tokens,
            "train_seconds": run.train_seconds,
            **{name: None if math.isnan(value) else value for name, value in counted.items()},
            "predict_seconds": predict_seconds,
            "trainable_parameters": sum(value.numel() for value in run.state.values()),
            "stacked_with": stacked_with,
        },
        "truncated_frac": float(np.mean([r.truncated > 0 for r in rows])),
        "cut": CUT,
        "provenance": job.provenance,
    }
    if trial.teacher:  # as it was then: trained again, it would round differently on another device
        record["teacher"] = job.store.weight_checksums(trial.teacher.member_ids())
    if not trial.method.trains:
        record["context"] = vars(job.context(run.member))
    return json.dumps(record, indent=1).encode()
