"""Entries of predictions alone: the backbone's own, and those of soups."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lorae.combinations import COMBINATIONS, Combination
from lorae.engine.adapters import Soup, State
from lorae.engine.answers import write_soup
from lorae.engine.job import Job, num_tokens
from lorae.engine.predicting import prediction_files
from lorae.engine.prediction import OnRows, draws_nll, labels, predict
from lorae.planning.stack import EvalSet, Progress
from lorae.seeds import Key
from lorae.store.names import (
    SOUP_RECORD,
    entry_lock,
    member_folder,
    reference_folder,
    soup_folder,
)
from lorae.store.peft_format import read_stages
from lorae.store.predictions import prediction_file
from lorae.tasks.encoding import Row


def ensure_reference(job: Job) -> None:
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


def ensure_soup(job: Job, name: str) -> None:
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
        if not missing and job.ranks.once(job.store.has_answers, folder, [*job.stack.answer_sets()]):
            return
        states = dict(zip(ids, job.ranks.once(read_stages, job.store, ids)[-1]))
        rows = {n: job.trained_rows(sets[n].task, sets[n].split) for n in missing}
        started, record = time.perf_counter(), job.ranks.once(_soup_record, job, name)
        record = record or _chosen(job, combination, states)
        on_rows = job.counted(sum(map(num_tokens, rows.values())))
        logits = _soup_logits(job, combination.chosen(record), states, rows, on_rows)
        cost = {"cost": {"predict_seconds": time.perf_counter() - started}}
        if missing:
            job.ranks.once(_write_predictions, job, folder, logits, record | cost)
        write_soup(job, folder, *_ingredients(job, combination.chosen(record), states))


def _soup_record(job: Job, name: str) -> dict[str, Any] | None:
    """What says which members are in a soup; None if it is not stored."""
    ids = job.stack.member_ids()
    found = SOUP_RECORD in job.store.files(soup_folder(ids, name))
    return job.store.soup_record(ids, name) if found else None


def _chosen(job: Job, combination: Combination, states: Mapping[str, State]) -> dict[str, Any]:
    """The record of a soup that is made now, but for its cost."""
    trial, ids = job.stack.trial, [*states]
    split = trial.eval_set(trial.task, "validation")
    rows = job.trained_rows(trial.task, "validation")
    labels_N = labels(rows)

    def nll(chosen: Sequence[str]) -> float:
        if len(chosen) == 1:
            folders = [member_folder(chosen[0])]
            logits = job.ranks.once(lambda: torch.tensor(job.store.predictions(folders, split).logits_MNC))
            return draws_nll(logits.numpy(), labels_N)
        return draws_nll(_soup_logits(job, chosen, states, {split: rows})[split], labels_N)

    return {"members": job.ranks.once(job.store.weight_checksums, ids)} | combination.choose(ids, nll)


def _soup_logits(
    job: Job,
    chosen: Sequence[str],
    states: Mapping[str, State],
    rows: Mapping[str, Sequence[Row]],
    on_rows: OnRows = lambda rows: None,
) -> dict[str, np.ndarray]:
    """Logits (1, N, C) of the uniform soup of some members, by evaluation set."""
    trial, answer_ids = job.stack.trial, job.encoded(job.stack.trial.task, "test")[0].answer_ids
    with Soup(job.backbone, trial.method, *_ingredients(job, chosen, states), answer_ids):
        return {name: predict(job.backbone, of_set, on_rows=on_rows) for name, of_set in rows.items()}


def _ingredients(
    job: Job, chosen: Sequence[str], states: Mapping[str, State]
) -> tuple[list[Key], list[State]]:
    """Init streams and parameters of the members that a soup is made of."""
    trial, ids = job.stack.trial, job.stack.member_ids()
    inits: list[Key] = [trial.member_key(job.stack.members[ids.index(m)])["init"] for m in chosen]
    return inits, [states[m] for m in chosen]


def _missing_sets(
    job: Job,
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
    job: Job, folder: str, logits: dict[str, np.ndarray], soup: dict[str, Any] | None = None
) -> None:
    """Store an entry of predictions alone; a soup's record is that of its first ones."""
    files = prediction_files(job, folder.rpartition("/")[2], logits)
    if soup and SOUP_RECORD not in job.store.files(folder):
        files[SOUP_RECORD] = json.dumps(soup, indent=1).encode()
    job.store.write_entry(folder, files)
