"""Running a stack: train and predict what the store lacks of its members, and store it. All hosts call
`run_stack`."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

import lorae
from lorae.backbone.loading import Backbone, Precision, load_backbone, set_matmul_precision
from lorae.backbone.processes import Ranks
from lorae.backbone.products import onednn_is_used
from lorae.engine.answers import write_members, write_pool, write_reference
from lorae.engine.entries import ensure_reference, ensure_soup
from lorae.engine.job import Job
from lorae.engine.members import prompt_members, train_members
from lorae.engine.predicting import lacking_sets, predict_stored
from lorae.planning.stack import Progress, Stack, StackResult
from lorae.search import EarlyEnd
from lorae.sources import Source
from lorae.store.names import (
    member_folder,
)
from lorae.store.store import Store
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
    job = Job(
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
    jobs = [*_jobs_of_parts(job)]
    for part in jobs:
        ensure_reference(part)
        if part.stack.answer_sets() and part.stack.reference_sets():
            write_reference(part)
    if stack.soup or stack.pool:
        if stack.soup:
            ensure_soup(job, stack.soup)
        else:
            write_pool(job)
        on_progress(Progress("done"))
        return StackResult()
    result = StackResult()
    waiting = [[*part.stack.members] for part in jobs]  # of each part, as all lists of members here
    while any(waiting):
        job.stop_if_asked()
        with contextlib.ExitStack() as locks:
            mine = ranks.once(_take_locks, jobs, waiting, locks)
            if any(mine):
                result = _merged(result, _run_members(jobs, mine))
        waiting = [[m for m in members if m not in own] for members, own in zip(waiting, mine)]
        if any(waiting) and not any(mine):
            time.sleep(1.0)
    on_progress(Progress("done"))
    return result


def _jobs_of_parts(job: Job) -> Iterator[Job]:
    """The job of each part of the stack; what they predict counts as one."""
    parts = job.stack.parts

    def on_progress(number: int, progress: Progress) -> None:
        if progress.phase in ("predict", "write"):
            progress = replace(progress, step=(100 * number + progress.step) // len(parts))
        job.on_progress(progress)

    for number, part in enumerate(parts):
        yield replace(job, stack=part, on_progress=functools.partial(on_progress, number))


def _take_locks(
    jobs: Sequence[Job], members: Sequence[Sequence[int]], locks: contextlib.ExitStack
) -> list[list[int]]:
    """Members that no other process holds; duplicates of one identity count as one.

    One process at a time takes locks, so that two that want the same stack do not tear it apart.
    """
    lock = jobs[0].store.storage.lock

    def takes(job: Job, member: int) -> bool:
        return locks.enter_context(lock(job.stack.trial.member_id(member)))

    with lock("taking", wait=True):
        return [[m for m in of_part if takes(job, m)] for job, of_part in zip(jobs, members)]


def _run_members(jobs: Sequence[Job], members: Sequence[Sequence[int]]) -> StackResult:
    """Make the members that are not stored, then predict what stored ones lack."""
    found = [jobs[0].ranks.once(_stored, job, of_part) for job, of_part in zip(jobs, members)]
    missing = [[m for m in of_part if m not in stored] for of_part, (stored, _) in zip(members, found)]
    failed: dict[str, str] = {}
    if any(missing):
        make = train_members if jobs[0].stack.trial.method.trains else prompt_members
        failed |= make([(job, m) for job, of_part in zip(jobs, missing) for m in of_part])
    result = StackResult()
    for job, of_part, made, (stored, lacking) in zip(jobs, members, missing, found):
        if lacking:
            failed |= predict_stored(job, lacking)
        done = {m: i for m in of_part if (i := job.stack.trial.member_id(m)) not in failed}
        write_members(job, [*done])
        trained, known = (tuple(i for m, i in done.items() if m in some) for some in (made, stored))
        result = _merged(result, StackResult(trained, known))
    return replace(result, failed=failed)


def _stored(job: Job, members: Sequence[int]) -> tuple[list[int], list[int]]:
    """Members that are stored, and those of them that lack predictions."""
    store, ids = job.store, {m: job.stack.trial.member_id(m) for m in members}
    stored = [m for m in members if _is_intact(store, ids[m])]
    return stored, [m for m in stored if lacking_sets(job, m)]


def _is_intact(store: Store, member_id: str) -> bool:
    """Whether a member is stored and undamaged; a damaged one is set aside, to be trained again."""
    store.set_damaged_aside([member_folder(member_id)])
    return store.is_member(member_id)


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
        "fp32_products": "oneDNN" if onednn_is_used() else "torch's default",
        "ranks": ranks.size,
    }


def _merged(a: StackResult, b: StackResult) -> StackResult:
    return StackResult(a.trained + b.trained, a.found + b.found, a.failed | b.failed)
