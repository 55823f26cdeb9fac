"""Running a stack: train and predict what the store lacks of its members, and store it. All hosts call
`run_stack`."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

import lorae
from lorae.backbone.loading import Backbone, Precision, load_backbone, set_matmul_precision
from lorae.backbone.processes import Ranks
from lorae.combinations import COMBINATIONS, Combination
from lorae.draws import Fit, Fitted
from lorae.engine.adapters import Adapters, Soup, State
from lorae.engine.checkpoints import StackCheckpoints
from lorae.engine.clock import Stopwatch
from lorae.engine.drawing import Drawing, fit_files, read_fit
from lorae.engine.in_context import Context, draw_context, predict_in_context
from lorae.engine.prediction import OnRows, draws_nll, predict, with_features
from lorae.engine.training import MemberRun, TrainingData, train_stack
from lorae.identity import canonical
from lorae.methods import frozen_tensors
from lorae.noise import make_noise
from lorae.planning.stack import EvalSet, Progress, Stack, StackResult, Stopped
from lorae.search import EarlyEnd
from lorae.sources import Source
from lorae.store import peft_format
from lorae.store.names import (
    CUT,
    LATER_RECORD,
    PATH_FILE,
    SOUP_RECORD,
    entry_lock,
    fit_file,
    member_folder,
    reference_folder,
    snapshot_file,
    soup_folder,
)
from lorae.store.ownership import OWNER
from lorae.store.peft_format import read_stages
from lorae.store.predictions import SCHEMA, parquet_bytes, prediction_file, rows_bytes
from lorae.store.records import CURVE
from lorae.store.store import Store
from lorae.tasks.base import Split, Task
from lorae.tasks.encoding import Row, encode, head_answers, head_classes
from lorae.trial import unchanged


def run_stack(
    stack: Stack,
    storage_uri: str,
    *,
    device: str = "cpu",
    num_threads: int | None = None,
    provenance: dict[str, Any] | None = None,
    checkpoint_seconds: float = 60.0,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    recompute: bool = False,
    load: Callable[[Source, Precision, str, bool], Backbone] = load_backbone,
    should_stop: Callable[[], bool] = lambda: False,
    early_end: EarlyEnd | None = None,
) -> StackResult:
    """Train and predict what the store lacks of a stack's members, and store it.

    Members that another process is working on are left to it; this process then waits for them, and takes
    over those that the other one did not finish. A member that fails is remembered in the store, the others
    are stored.

    Args:
        storage_uri: root of the store.
        device: "cpu" or "cuda".
        num_threads: torch's CPU threads; None leaves them as they are.
        provenance: recorded with each member (command, commit).
        checkpoint_seconds: least time between two checkpoints.
        recompute: keep less for the backward pass, for a third more time.
        load: gives the backbone. If ranks hold it together, all of them call `run_stack` alike; rank 0 alone
            reads and writes the store.
        should_stop: asked after each step; True saves a checkpoint and ends the run.
        early_end: when `on_progress` is told the ensemble's validation NLL, with a checkpoint saved; the run
            may be ended there by `should_stop`. None = never.

    Raises:
        Stopped: `should_stop` was true.
        OSError: the storage refused for longer than `Storage.retry_seconds`.
    """
    if num_threads:
        torch.set_num_threads(num_threads)
    set_matmul_precision(stack.trial.precision, device)
    store = Store(storage_uri)
    on_progress(Progress("load"))
    if stack.trial.method.regime == "alone":
        recompute = False  # the backward pass would recompute with the backbone's weights, not the member's
    with unchanged(stack.trial):
        backbone = load(stack.trial.backbone, stack.trial.precision, device, recompute)
    ranks = backbone.ranks
    job = _Job(
        stack=stack,
        store=store,
        backbone=backbone,
        ranks=ranks,
        provenance=_provenance(provenance, device, ranks),
        checkpoint_seconds=checkpoint_seconds,
        on_progress=on_progress,
        should_stop=should_stop,
        early_end=early_end,
    )

    ranks.once(store.finish_writes)
    _ensure_reference(job)
    if stack.soup:
        _ensure_soup(job, stack.soup)
        on_progress(Progress("done"))
        return StackResult()
    result = StackResult()
    waiting = list(stack.members)
    while waiting:
        job.stop_if_asked()
        with contextlib.ExitStack() as locks:
            mine = ranks.once(_take_locks, job, waiting, locks)
            if mine:
                result = _merged(result, _run_members(job, mine))
        waiting = [m for m in waiting if m not in mine]
        if waiting and not mine:
            time.sleep(1.0)
    on_progress(Progress("done"))
    return result


@dataclass(frozen=True)
class _Job:
    """What the phases of one running stack share."""

    stack: Stack
    store: Store
    backbone: Backbone
    ranks: Ranks
    provenance: dict[str, Any]
    checkpoint_seconds: float
    on_progress: Callable[[Progress], None]
    should_stop: Callable[[], bool]
    early_end: EarlyEnd | None
    rows: dict[str, list[Row]] = field(default_factory=dict)
    feature_watches: list[Stopwatch] = field(default_factory=list)
    contexts: dict[int, Context] = field(default_factory=dict)

    def stop_if_asked(self) -> None:
        if self.should_stop():
            raise Stopped

    def counted(self, tokens: int) -> OnRows:
        """To be told of rows that were predicted: reports their share of so many tokens, stops if asked."""
        done = 0

        def on_rows(rows: Sequence[Row]) -> None:
            nonlocal done
            done += _num_tokens(rows) * self.ranks.size
            self.stop_if_asked()
            self.on_progress(Progress("predict", min(100, 100 * done // tokens), 100))

        return on_rows

    def encoded(self, task: Task, split: Split) -> list[Row]:
        """Token rows of a split, encoded once per stack."""
        name = task.eval_set(split)
        if name not in self.rows:
            max_tokens = self.stack.trial.budget.max_tokens
            classes = head_classes(self.stack.trial.task)
            tokenizer, examples = self.backbone.tokenizer, task.examples(split)
            self.rows[name] = encode(tokenizer, task, examples, max_tokens, classes)
        return self.rows[name]

    def context(self, member: int) -> Context:
        """What a member of in-context learning reads before every question, drawn once per stack."""
        if member not in self.contexts:
            self.contexts[member] = draw_context(self.backbone.tokenizer, self.stack.trial, member)
        return self.contexts[member]

    def trained_rows(self, task: Task, split: Split) -> list[Row]:
        """The same, with the backbone's features where members are trained on those alone."""
        name, rows = task.eval_set(split), self.encoded(task, split)
        if self.stack.trial.method.regime == "features" and rows[0].features is None:
            watch = Stopwatch(self.backbone.device, self.ranks.size)
            self.rows[name] = with_features(self.backbone, rows)
            self.feature_watches.append(watch.stop())
        return self.rows[name]


def _take_locks(job: _Job, members: Sequence[int], locks: contextlib.ExitStack) -> list[int]:
    """Members that no other process holds; duplicates of one identity count as one.

    One process at a time takes locks, so that two that want the same stack do not tear it apart.
    """
    lock = job.store.storage.lock
    with lock("taking", wait=True):
        return [m for m in members if locks.enter_context(lock(job.stack.trial.member_id(m)))]


def _run_members(job: _Job, members: Sequence[int]) -> StackResult:
    """Make the members that are not stored, then predict what stored ones lack."""
    ids = {m: job.stack.trial.member_id(m) for m in members}
    stored, lacking = job.ranks.once(_stored, job, members)
    missing = [m for m in members if m not in stored]
    make = _train if job.stack.trial.method.trains else _prompt
    failed = make(job, missing) if missing else {}
    if lacking:
        failed |= _predict_stored(job, lacking)
    done = [m for m in members if ids[m] not in failed]
    return StackResult(
        tuple(ids[m] for m in done if m in missing), tuple(ids[m] for m in done if m in stored), failed
    )


def _stored(job: _Job, members: Sequence[int]) -> tuple[list[int], list[int]]:
    """Members that are stored, and those of them that lack predictions."""
    store, ids = job.store, {m: job.stack.trial.member_id(m) for m in members}
    stored = [m for m in members if _is_intact(store, ids[m])]
    return stored, [m for m in stored if _lacking_sets(job, m)]


def _is_intact(store: Store, member_id: str) -> bool:
    """Whether a member is stored and undamaged; a damaged one is set aside, to be trained again."""
    store.set_damaged_aside([member_folder(member_id)])
    return store.is_member(member_id)


def _train(job: _Job, members: Sequence[int]) -> dict[str, str]:
    """Train members together, predict, store; returns member id -> reason of those that failed."""
    trial, backbone = job.stack.trial, job.backbone
    job.on_progress(Progress("train"))
    train, validation = job.trained_rows(trial.task, "train"), job.trained_rows(trial.task, "validation")
    data = TrainingData(
        train,
        validation,
        feature_seconds=sum(watch.seconds for watch in job.feature_watches),
        feature_process_seconds=sum(watch.process_seconds for watch in job.feature_watches),
    )
    job.feature_watches.clear()  # they are part of one training's cost
    if any(regularizer.needs_reference for regularizer in trial.regularizers):
        folders, name = [reference_folder(trial.reference_id())], trial.task.eval_set("train")
        reference = job.ranks.once(lambda: torch.tensor(job.store.predictions(folders, name).logits_MNC[0]))
        data = replace(data, reference_logits_NC=reference.numpy())
    stack_id = replace(job.stack, members=tuple(members)).id
    job.ranks.once(job.store.begin, stack_id, [trial.member_id(m) for m in members])
    checkpoints = StackCheckpoints(job.store.storage, stack_id, job.checkpoint_seconds, job.should_stop)
    every = job.early_end and job.early_end.steps_between(trial.budget, len(train))

    def evaluated(step: int, num_steps: int, nll: float) -> None:
        job.on_progress(Progress("evaluate", step, num_steps, step // (every or 1), nll))
        job.stop_if_asked()

    runs = train_stack(
        backbone,
        trial,
        members,
        data,
        micro_batch=job.stack.micro_batch,
        checkpoints=checkpoints,
        on_step=lambda step, num_steps: job.on_progress(Progress("train", step, num_steps)),
        evaluate_every=every,
        on_evaluation=evaluated,
        path=job.stack.paths,
    )
    good = [run for run in runs if run.error is None]
    failed = {trial.member_id(run.member): run.error for run in runs if run.error is not None}
    if good:
        stages = [*zip(*(run.snapshots for run in good)), [run.state for run in good]]
        wanted = {run.member: job.stack.eval_sets(run.member) for run in good}
        predicted = _predict_sets(job, wanted, stages)
        failed |= job.ranks.once(_store_members, job, good, predicted)
    job.ranks.once(_close, job, failed, stack_id)
    return failed


def _prompt(job: _Job, members: Sequence[int]) -> dict[str, str]:
    """Predict with members that train nothing, and store each at once: a run that is killed goes on with the
    next one. Returns member id -> reason of those that failed."""
    wanted, failed = {m: job.stack.eval_sets(m) for m in members}, {}
    on_rows = job.counted(_tokens_in_context(job, wanted))
    for m, of_member in wanted.items():
        predicted = _predict_in_context(job, {m: of_member}, on_rows)
        failed |= job.ranks.once(_store_members, job, [MemberRun(m)], predicted)
    job.ranks.once(_close, job, failed, job.stack.id)
    return failed


def _close(job: _Job, failed: dict[str, str], stack_id: str) -> None:
    """Remember the members that failed; nothing is left to resume."""
    for member_id, reason in failed.items():
        job.store.write_failure(member_id, reason)
    job.store.end(stack_id)


def _store_members(job: _Job, runs: list[MemberRun], predicted: _Predicted) -> dict[str, str]:
    """Store trained members with their predictions; returns member id -> reason of those that failed."""
    trial = job.stack.trial
    layers = trial.method.adapted_layers(job.backbone.linears, job.backbone.name)
    by_id = {trial.member_id(run.member): run for run in runs}
    stored, failed = _files_by_member(job, list(by_id), predicted)
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
            files[PATH_FILE] = _prediction_files(job, member_id, {name: logits_KNC})[prediction_file(name)]
        schema = CURVE.with_metadata(SCHEMA | {OWNER: member_id})
        files["curve.parquet"] = parquet_bytes(pa.Table.from_pylist(run.curve, schema=schema))
        files["member.json"] = _member_json(job, run, len(runs), predicted.seconds / len(runs))
    job.store.write_members(stored)
    for member_id in stored:
        job.store.storage.delete(f"failures/{member_id}.json")
    return failed


@dataclass
class _Predicted:
    """What some members predict.

    Attributes:
        logits: each member's (K, N, C) by evaluation set, of K draws.
        fits: what each member's draws were fitted by, where they were.
        seconds: of the predictions; the fitting is not among them.
    """

    logits: list[dict[str, np.ndarray]]
    fits: list[dict[Fitted, Fit]]
    seconds: float


def _predict_sets(
    job: _Job, wanted: dict[int, dict[str, EvalSet]], stages: Sequence[Sequence[State]]
) -> _Predicted:
    """Predict with some members, together those that want the same evaluation sets.

    Args:
        wanted: the members with the sets that each predicts.
        stages: the members' parameters at each of their snapshots, the last one at the end.
    """
    started, trial, searched = time.perf_counter(), job.stack.trial, 0.0
    if not trial.method.trains:
        return _predict_in_context(job, wanted, job.counted(_tokens_in_context(job, wanted)))
    found = _Predicted([{} for _ in wanted], [{} for _ in wanted], 0.0)
    answer_ids = job.encoded(trial.task, "test")[0].answer_ids
    sets = {name: s for of_member in wanted.values() for name, s in of_member.items()}
    together: dict[tuple[int, ...], list[str]] = {}  # by their positions among the members
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
            found.logits[position] |= {n: np.concatenate([d[m] for d in drawn[n]]) for n in names}
            found.fits[position] |= drawing.fits(m)
    found.seconds = time.perf_counter() - started - searched
    return found


def _predict_in_context(job: _Job, wanted: dict[int, dict[str, EvalSet]], on_rows: OnRows) -> _Predicted:
    """The same with members that differ in what they read before a question, each by itself."""
    started, trial, backbone = time.perf_counter(), job.stack.trial, job.backbone
    found = _Predicted([], [{} for _ in wanted], 0.0)
    for m, of_member in wanted.items():
        setting, logits = (trial.method, job.context(m).text, trial.budget.max_tokens), {}
        for name, s in of_member.items():
            logits[name] = predict_in_context(backbone, *setting, s.task, s.split, on_rows)[None]
        found.logits.append(logits)
    found.seconds = time.perf_counter() - started
    return found


def _tokens_in_context(job: _Job, wanted: dict[int, dict[str, EvalSet]]) -> int:
    """Tokens of the prompts of some members on some sets."""
    total = 0
    for m, of_member in wanted.items():
        before = len(job.backbone.tokenizer(job.context(m).text)["input_ids"])
        rows = [row for s in of_member.values() for row in job.encoded(s.task, s.split)]
        total += len(rows) * before + _num_tokens(rows)
    return total


def _tokens_to_predict(job: _Job, wanted: dict[int, dict[str, EvalSet]], num_stages: int) -> int:
    """Tokens of all forward passes for the sets that members want, and to fit their draws."""
    trial, total = job.stack.trial, 0
    for s in {name: s for of_member in wanted.values() for name, s in of_member.items()}.values():
        rows = job.trained_rows(s.task, s.split)
        num_passes = replace(trial, draws=s.draws).num_passes(_num_classes(rows))
        total += num_stages * num_passes // (trial.optimizer.cycles or 1) * _num_tokens(rows)
    sampled = {m: {s.draws for s in of_member.values()} for m, of_member in wanted.items()}
    for spec in {draws for ways in sampled.values() for draws in ways if isinstance(draws, Fitted)}:
        ids = [trial.member_id(m) for m, ways in sampled.items() if spec in ways]
        if len(job.ranks.once(_fitted, job.store, ids, spec)) < len(ids):
            read = spec.fitted_on(job.trained_rows(trial.task, "train"))
            total += spec.passes_to_fit(_num_classes(read)) * _num_tokens(read)
    return total


def _num_tokens(rows: Sequence[Row]) -> int:
    return sum(max(1, len(row.tokens)) for row in rows)  # images and sounds have none


def _num_classes(rows: Sequence[Row]) -> int:
    return max(row.num_classes for row in rows)


def _drawing(
    job: _Job, adapters: Adapters, states: Sequence[State], members: Sequence[int], on_rows: OnRows
) -> Drawing:
    """Predictions of members by the fits that are stored, or else are made now."""
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


def _stored_fits(job: _Job, ids: Sequence[str], spec: Fitted) -> dict[str, Fit]:
    """The fits of those members that have some, in order."""

    def stored() -> dict[str, list[Any]]:
        found = {m: read_fit(job.store, m, spec) for m in _fitted(job.store, ids, spec)}
        return {m: [fit.record, fit.tensors] for m, fit in found.items()}

    return {m: Fit(*of_member) for m, of_member in job.ranks.once(stored).items()}


def _fitted(store: Store, ids: Sequence[str], spec: Fitted) -> list[str]:
    """Members to which these draws are fitted."""
    return [m for m in ids if fit_file(spec) in store.files(member_folder(m))]


def _predict_stored(job: _Job, members: Sequence[int]) -> dict[str, str]:
    """Predict the missing evaluation sets of members that are already stored, in one pass."""
    trial = job.stack.trial
    ids = [trial.member_id(m) for m in members]
    stages = job.ranks.once(read_stages, job.store, ids)
    lacking = job.ranks.once(lambda: [[*_lacking_sets(job, m)] for m in members])
    wanted = {m: {name: job.stack.eval_sets(m)[name] for name in of_it} for m, of_it in zip(members, lacking)}
    return job.ranks.once(_add_predictions, job, ids, _predict_sets(job, wanted, stages))


def _lacking_sets(job: _Job, member: int) -> dict[str, EvalSet]:
    """Evaluation sets that a stored member lacks."""
    files = job.store.files(member_folder(job.stack.trial.member_id(member)))
    sets = job.stack.eval_sets(member)
    return {name: wanted for name, wanted in sets.items() if prediction_file(name) not in files}


def _add_predictions(job: _Job, ids: Sequence[str], predicted: _Predicted) -> dict[str, str]:
    """Store predictions of stored members, with their cost where tuning had left out all but validation;
    returns member id -> reason of those that failed."""
    found, failed = _files_by_member(job, ids, predicted)
    test = prediction_file(job.stack.trial.task.eval_set("test")).removesuffix(".parquet")
    later = json.dumps({"cost": {"predict_seconds": predicted.seconds / len(ids)}}).encode()
    for member_id, files in found.items():
        folder = member_folder(member_id)
        stored = job.store.files(folder)
        if not (job.stack.validation_only or any(name.startswith(test) for name in stored)):
            files[LATER_RECORD] = later
        job.store.write_entry(folder, {k: v for k, v in files.items() if k not in stored})
    return failed


def _files_by_member(
    job: _Job, ids: Sequence[str], predicted: _Predicted
) -> tuple[dict[str, dict[str, bytes]], dict[str, str]]:
    """Prediction files of each member, with what its draws were fitted by; and why some have none."""
    found, failed = {}, {}
    for position, member_id in enumerate(ids):
        try:
            found[member_id] = _prediction_files(job, member_id, predicted.logits[position])
        except ValueError as error:
            failed[member_id] = str(error)
            continue
        for spec, fit in predicted.fits[position].items():
            found[member_id] |= fit_files(spec, fit)
    return found, failed


def _prediction_files(job: _Job, entry_id: str, logits: dict[str, np.ndarray]) -> dict[str, bytes]:
    """Prediction files of one entry from logits (K, N, C) by evaluation set."""
    sets, files = job.stack.reference_sets() | job.stack.eval_sets(), {}
    for name, logits_KNC in logits.items():
        rows = job.encoded(sets[name].task, sets[name].split)
        files[prediction_file(name)] = rows_bytes(entry_id, name, sets[name].task, rows, logits_KNC)
    return files


def _ensure_reference(job: _Job) -> None:
    """Store the backbone's own predictions, if it has any, once for all stacks; a stack that comes second
    waits for the first."""
    folder, sets = reference_folder(job.stack.trial.reference_id()), job.stack.reference_sets()
    if not sets:
        return
    with contextlib.ExitStack() as locks:
        missing = job.ranks.once(_missing_sets, job, folder, sets, locks)
        if not missing:
            return
        job.on_progress(Progress("reference"))
        rows = {name: job.encoded(sets[name].task, sets[name].split) for name in missing}
        logits = {n: predict(job.backbone, rows[n], on_rows=lambda _: job.stop_if_asked()) for n in missing}
        job.ranks.once(_write_predictions, job, folder, logits)


def _ensure_soup(job: _Job, name: str) -> None:
    """Store what the soup of the stack's members predicts, once for all stacks.

    Args:
        name: of the combination that makes it.
    Raises:
        ValueError: a member is not stored, or damaged.
    """
    sets, ids = job.stack.eval_sets(), job.stack.member_ids()
    folder, combination = soup_folder(ids, name), COMBINATIONS[name]
    with contextlib.ExitStack() as locks:
        missing = job.ranks.once(_missing_sets, job, folder, sets, locks, name)
        if not missing:
            return
        states = dict(zip(ids, job.ranks.once(read_stages, job.store, ids)[-1]))
        rows = {n: job.trained_rows(sets[n].task, sets[n].split) for n in missing}
        started, record = time.perf_counter(), job.ranks.once(_soup_record, job, name)
        record = record or _chosen(job, combination, states)
        on_rows = job.counted(sum(map(_num_tokens, rows.values())))
        logits = _soup_logits(job, combination.chosen(record), states, rows, on_rows)
        cost = {"cost": {"predict_seconds": time.perf_counter() - started}}
        job.ranks.once(_write_predictions, job, folder, logits, record | cost)


def _soup_record(job: _Job, name: str) -> dict[str, Any] | None:
    """What says which members are in a soup; None if it is not stored."""
    ids = job.stack.member_ids()
    found = SOUP_RECORD in job.store.files(soup_folder(ids, name))
    return job.store.soup_record(ids, name) if found else None


def _chosen(job: _Job, combination: Combination, states: Mapping[str, State]) -> dict[str, Any]:
    """The record of a soup that is made now, but for its cost."""
    trial, ids = job.stack.trial, [*states]
    split = trial.eval_set(trial.task, "validation")
    rows = job.trained_rows(trial.task, "validation")
    labels_N = np.array([row.label for row in rows])

    def nll(chosen: Sequence[str]) -> float:
        if len(chosen) == 1:
            stored = job.ranks.once(job.store.predictions, [member_folder(chosen[0])], split)
            return draws_nll(stored.logits_MNC, labels_N)
        return draws_nll(_soup_logits(job, chosen, states, {split: rows})[split], labels_N)

    return {"members": job.ranks.once(job.store.weight_checksums, ids)} | combination.choose(ids, nll)


def _soup_logits(
    job: _Job,
    chosen: Sequence[str],
    states: Mapping[str, State],
    rows: Mapping[str, Sequence[Row]],
    on_rows: OnRows = lambda rows: None,
) -> dict[str, np.ndarray]:
    """Logits (1, N, C) of the uniform soup of some members, by evaluation set."""
    trial, ids = job.stack.trial, job.stack.member_ids()
    inits = [trial.member_key(job.stack.members[ids.index(m)])["init"] for m in chosen]
    answer_ids = job.encoded(trial.task, "test")[0].answer_ids
    with Soup(job.backbone, trial.method, inits, [states[m] for m in chosen], answer_ids):
        return {name: predict(job.backbone, of_set, on_rows=on_rows) for name, of_set in rows.items()}


def _missing_sets(
    job: _Job,
    folder: str,
    sets: dict[str, EvalSet],
    locks: contextlib.ExitStack,
    soup: str | None = None,
) -> list[str]:
    """Lock an entry of predictions alone; those of the sets that are not stored. One that is damaged, or a
    soup of members that were trained again, is none."""
    locks.enter_context(job.store.storage.lock(entry_lock(folder), wait=True))
    job.store.set_damaged_aside([folder])
    if soup and job.store.is_of_others(job.stack.member_ids(), soup):
        job.store.discard(folder)
    return [name for name in sets if prediction_file(name) not in job.store.files(folder)]


def _write_predictions(
    job: _Job, folder: str, logits: dict[str, np.ndarray], soup: dict[str, Any] | None = None
) -> None:
    """Store an entry of predictions alone; a soup's record is that of its first ones."""
    files = _prediction_files(job, folder.rpartition("/")[2], logits)
    if soup and SOUP_RECORD not in job.store.files(folder):
        files[SOUP_RECORD] = json.dumps(soup, indent=1).encode()
    job.store.write_entry(folder, files)


def _member_json(job: _Job, run: MemberRun, stacked_with: int, predict_seconds: float) -> bytes:
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
    if not trial.method.trains:
        record["context"] = vars(job.context(run.member))
    return json.dumps(record, indent=1).encode()


def _provenance(given: dict[str, Any] | None, device: str, ranks: Ranks) -> dict[str, Any]:
    import transformers

    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return (given or {}) | {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "lorae": lorae.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": f"{device}: {name}",
        "host": platform.node(),
        "pid": os.getpid(),
        "threads": torch.get_num_threads(),
        "ranks": ranks.size,
    }


def _merged(a: StackResult, b: StackResult) -> StackResult:
    return StackResult(a.trained + b.trained, a.found + b.found, a.failed | b.failed)
