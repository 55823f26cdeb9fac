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
from lorae.identity import canonical
from lorae.methods import frozen_tensors
from lorae.metrics import combine
from lorae.planning.stack import Progress
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


def train_members(job: Job, members: Sequence[int]) -> dict[str, str]:
    """Train members together, predict and store; returns failed member id -> reason."""
    trial, backbone = job.stack.trial, job.backbone
    job.on_progress(Progress("train"))
    train, validation = job.trained_rows(trial.task, "train"), job.trained_rows(trial.task, "validation")
    data = TrainingData(
        train,
        validation,
        feature_seconds=sum(watch.seconds for watch in job.feature_watches),
        feature_process_seconds=sum(watch.process_seconds for watch in job.feature_watches),
    )
    job.feature_watches.clear()  # count them in only one training's cost
    if trial.stores_reference:
        folders, name = [reference_folder(trial.reference_id())], trial.task.eval_set("train")
        reference = job.ranks.once(lambda: torch.tensor(job.store.predictions(folders, name).logits_MNC[0]))
        data = replace(data, reference_logits_NC=reference.numpy())
    if trial.teacher:
        targets = job.ranks.once(_targets, job, trial.teacher)
        data = replace(data, reference_logits_NC=targets.numpy())
    stack_id = replace(job.stack, members=tuple(members)).id
    job.ranks.once(job.store.begin, stack_id, [trial.member_id(m) for m in members])
    checkpoints = StackCheckpoints(job.store.storage, stack_id, job.checkpoint_seconds, job.should_stop)
    every = job.early_end and job.early_end.steps_between(trial.budget, len(train))

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
        backbone,
        trial,
        members,
        data,
        micro_batch=job.stack.micro_batch,
        checkpoints=checkpoints,
        on_step=stepped,
        evaluate_every=every,
        on_evaluation=evaluated,
        path=job.stack.paths,
    )
    good = [run for run in runs if run.error is None]
    failed = {trial.member_id(run.member): run.error for run in runs if run.error is not None}
    if good:
        stages = [*zip(*(run.snapshots for run in good)), [run.state for run in good]]
        wanted = {run.member: job.stack.eval_sets(run.member) for run in good}
        predicted = predict_sets(job, wanted, stages)
        failed |= job.ranks.once(_store_members, job, good, predicted)
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


def prompt_members(job: Job, members: Sequence[int]) -> dict[str, str]:
    """Predict with members that train nothing, and store each immediately: a killed run continues with the
    next member. Returns failed member id -> reason."""
    wanted, failed = {m: job.stack.eval_sets(m) for m in members}, {}
    on_rows = job.counted(tokens_prompted(job, wanted))
    for m, of_member in wanted.items():
        predicted = predict_prompted(job, {m: of_member}, on_rows)
        failed |= job.ranks.once(_store_members, job, [MemberRun(m)], predicted)
    job.ranks.once(_close, job, failed, job.stack.id)
    return failed


def _close(job: Job, failed: dict[str, str], stack_id: str) -> None:
    """Record the failed members, and close the stack: nothing is left to resume."""
    for member_id, reason in failed.items():
        job.store.write_failure(member_id, reason)
    job.store.end(stack_id)


def _store_members(job: Job, runs: list[MemberRun], predicted: Predicted) -> dict[str, str]:
    """Store trained members with their predictions; returns failed member id -> reason."""
    trial = job.stack.trial
    layers = trial.method.adapted_layers(job.backbone.linears, job.backbone.name)
    by_id = {trial.member_id(run.member): run for run in runs}
    stored, failed = files_by_member(job, list(by_id), predicted)
    for member_id, files in stored.items():
        run = by_id[member_id]
        frozen, scoring = (), trial.task.scoring
        if trial.method.trains:
            frozen = frozen_tensors(trial.method, layers, trial.member_key(run.member)["init"])
        files |= peft_format.adapter_files(trial.method, trial.backbone, run.state, frozen, scoring)
        for k, state in enumerate(run.snapshots):
            files[snapshot_file(k)] = peft_format.state_bytes(state)
        if run.path:
            logits_KNC = torch.stack([point["logits"] for point in run.path]).numpy()
            name = next(n for n, wanted in job.stack.eval_sets().items() if wanted.split == "validation")
            files[PATH_FILE] = prediction_files(job, member_id, {name: logits_KNC})[prediction_file(name)]
        schema = CURVE.with_metadata(SCHEMA | {OWNER: member_id})
        files["curve.parquet"] = parquet_bytes(pa.Table.from_pylist(run.curve, schema=schema))
        files["member.json"] = _member_json(job, run, len(runs), predicted.seconds / len(runs))
    job.store.write_members(stored)
    for member_id in stored:
        job.store.storage.delete(f"failures/{member_id}.json")
    return failed


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
