"""Entries of answers: what stored members, the backbone and soups write, and members of an ensemble together.

Examples are answered a few at a time, and stored in between: a run that is killed goes on with the next ones.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from lorae.engine.adapters import Adapters, Soup, State
from lorae.engine.decoding import Text
from lorae.engine.job import Job
from lorae.engine.writing import Prompted, Wrote, lockstep_texts, own_texts, prompted, scored, verdicts
from lorae.planning.stack import EvalSet, Progress
from lorae.seeds import Key
from lorae.store.answers import Answer, answers_bytes, answers_file, read_answers
from lorae.store.names import (
    entry_lock,
    member_folder,
    reference_folder,
    texts_folder,
    unfinished_file,
)
from lorae.store.peft_format import read_stages
from lorae.tasks.scoring import Generate

AT_ONCE = 64  # examples between which a run can go on

Write = Callable[[Sequence[Prompted]], list[list[Answer]]]  # each entry's answers to some examples


@dataclass(frozen=True)
class Entry:
    """Whose answers are stored.

    Attributes:
        folder: of the entry.
        members: as `lorae.store.answers.Answers` has them.
    """

    folder: str
    members: Mapping[str, str]

    @property
    def id(self) -> str:
        return self.folder.rpartition("/")[2]


# Members
# ----------------------------------------------------------------------------------------------------------


def write_members(job: Job, members: Sequence[int]) -> None:
    """Store the answers that members of the stack, which are stored, lack."""
    for name, wanted in job.stack.answer_sets().items():
        if lacking := job.ranks.once(_lacking, job, members, name):
            _write_members(job, lacking, name, wanted)


def _lacking(job: Job, members: Sequence[int], name: str) -> list[int]:
    folders = {m: member_folder(job.stack.trial.member_id(m)) for m in members}
    return [m for m, folder in folders.items() if not job.store.has_answers(folder, [name])]


def _write_members(job: Job, members: Sequence[int], name: str, wanted: EvalSet) -> None:
    trial, scoring = job.stack.trial, _scoring(job)
    ids = [trial.member_id(m) for m in members]
    sums = job.ranks.once(job.store.weight_checksums, ids)
    states = job.ranks.once(read_stages, job.store, ids)[-1]
    inits: list[Key] = [trial.member_key(m)["init"] for m in members]
    streams: list[Key] = [(trial.seed, m) for m in members]

    def write(examples: Sequence[Prompted]) -> list[list[Answer]]:
        with _inserted(job, inits, states):
            texts = own_texts(job.backbone, scoring, examples, "greedy", streams)
        found = []
        for init, state, of_member in zip(inits, states, texts):
            with _inserted(job, [init], [state]):
                found.append(_said(job, examples, [_by(own, 0) for own in of_member]))
        return found

    _write(job, [Entry(member_folder(i), {i: sums[i]}) for i in ids], name, wanted, write)


# The backbone and soups
# ----------------------------------------------------------------------------------------------------------


def write_reference(job: Job) -> None:
    """Store the answers of the backbone itself, once for all stacks."""
    folder = reference_folder(job.stack.trial.reference_id())
    with contextlib.ExitStack() as locks:
        job.ranks.once(_lock, job, folder, locks)
        _write_one(job, folder, "greedy", contextlib.nullcontext)


def write_soup(job: Job, folder: str, inits: Sequence[Key], states: Sequence[State]) -> None:
    """Store the answers of a soup of members with these init streams and parameters, in an entry that is
    locked."""
    method = job.stack.trial.method
    _write_one(job, folder, "soup", lambda: Soup(job.backbone, method, inits, states, ()))


Inserted = Callable[[], contextlib.AbstractContextManager[object]]


def _write_one(job: Job, folder: str, kind: str, inserted: Inserted) -> None:
    """Store the greedy answers of one model that is no member."""
    scoring, source = _scoring(job), -1 if kind == "soup" else 0

    def write(examples: Sequence[Prompted]) -> list[list[Answer]]:
        with inserted():
            (texts,) = own_texts(job.backbone, scoring, examples, kind)
            return [_said(job, examples, [_by(own, source) for own in texts])]

    for name, wanted in job.stack.answer_sets().items():
        if not job.ranks.once(job.store.has_answers, folder, [name]):
            _write(job, [Entry(folder, {folder.rpartition("/")[2]: ""})], name, wanted, write)


# Members together
# ----------------------------------------------------------------------------------------------------------


def write_pool(job: Job) -> None:
    """Store the texts of the stack's members together: each one's own as it is stored, those that they write
    in lock-step, and what every member says of all.

    Raises:
        ValueError: a member is not stored, or damaged.
    """
    folder = texts_folder(job.stack.member_ids())
    with contextlib.ExitStack() as locks:
        job.ranks.once(_lock, job, folder, locks)
        job.ranks.once(_discard_others, job, folder)
        for name, wanted in job.stack.answer_sets().items():
            if not job.ranks.once(job.store.has_answers, folder, [name]):
                _write_pool(job, folder, name, wanted)


def _write_pool(job: Job, folder: str, name: str, wanted: EvalSet) -> None:
    trial, ids, scoring = job.stack.trial, job.stack.member_ids(), _scoring(job)
    sums = job.ranks.once(job.store.weight_checksums, ids)
    states = job.ranks.once(read_stages, job.store, ids)[-1]
    inits: list[Key] = [trial.member_key(m)["init"] for m in job.stack.members]
    stored = [_written(job, member_folder(i), name) for i in ids]

    def write(examples: Sequence[Prompted]) -> list[list[Answer]]:
        with _inserted(job, inits, states):
            together = lockstep_texts(job.backbone, scoring, examples)
            texts = [
                [*(w for m, own in enumerate(stored) for w in _by(own[e.id], m)), *written]
                for e, written in zip(examples, together)
            ]
            return [_said(job, examples, texts)]

    _write(job, [Entry(folder, {i: sums[i] for i in ids})], name, wanted, write)


def _said(job: Job, examples: Sequence[Prompted], texts: Sequence[Sequence[Wrote]]) -> list[Answer]:
    """What the inserted members say of the texts, and whether they say that greedy ones are true."""
    asked = verdicts(job.backbone, examples, texts) if _scoring(job).p_true else []
    return [*scored(job.backbone, examples, texts), *asked]


def _written(job: Job, folder: str, name: str) -> dict[str, list[Wrote]]:
    """Texts that a member has written, by example."""
    found: dict[str, list[Wrote]] = {}
    for example_id, kind, draw, token_ids, text, finished in job.ranks.once(_texts, job, folder, name):
        wrote = Wrote(kind, 0, draw, Text(tuple(token_ids), text, finished))
        found.setdefault(example_id, []).append(wrote)
    return found


def _texts(job: Job, folder: str, name: str) -> list[list[Any]]:
    """The same as plain data, which ranks can send each other."""
    own = (a for a in job.store.answers(folder, name).answers if a.kind in ("greedy", "sample"))
    return [[a.example_id, a.kind, a.draw, [*a.token_ids], a.text, a.finished] for a in own]


def _discard_others(job: Job, folder: str) -> None:
    """Discard texts that are damaged, or of members that were trained again."""
    job.store.set_damaged_aside([folder])
    if job.store.texts_are_of_others(job.stack.member_ids()):
        job.store.discard(folder)


# What all share
# ----------------------------------------------------------------------------------------------------------


def _by(texts: Sequence[Wrote], source: int) -> list[Wrote]:
    """Texts with their writer's position in a pool."""
    return [Wrote(w.kind, source, w.draw, w.text) for w in texts]


def _scoring(job: Job) -> Generate:
    return cast(Generate, job.stack.trial.task.scoring)  # no other one has `answer_sets`


def _lock(job: Job, folder: str, locks: contextlib.ExitStack) -> None:
    locks.enter_context(job.store.storage.lock(entry_lock(folder), wait=True))


@contextlib.contextmanager
def _inserted(job: Job, inits: Sequence[Key], states: Sequence[State]) -> Iterator[None]:
    """Stored members in the backbone, without noise."""
    with Adapters(job.backbone, job.stack.trial.method, inits) as adapters:
        adapters.load(states)
        yield


def _write(job: Job, entries: Sequence[Entry], name: str, wanted: EvalSet, write: Write) -> None:
    """Store the answers of some entries to one set, `AT_ONCE` examples after another."""
    task, split = wanted.task, wanted.split
    rows, tokenizer = job.encoded(task, split), job.backbone.tokenizer
    examples = prompted(tokenizer, _scoring(job), task, task.examples(split), rows)
    found: list[list[Answer]] = [[] for _ in entries]  # on rank 0
    parts = range(0, len(examples), AT_ONCE)
    for first in parts:
        job.stop_if_asked()
        job.on_progress(Progress("write", 100 * first // len(examples), 100))
        part = examples[first : first + AT_ONCE]
        if not job.ranks.once(_take_up, job, entries, name, first, part, found):
            job.ranks.once(_keep, job, entries, name, first, write(part), found)
    job.ranks.once(_finish, job, entries, name, found, parts)


def _take_up(
    job: Job,
    entries: Sequence[Entry],
    name: str,
    first: int,
    part: Sequence[Prompted],
    found: list[list[Answer]],
) -> bool:
    """Add what a run that was killed has written of these examples, if it is all of that; what cannot be used
    is deleted."""
    storage, kept = job.store.storage, []
    for entry in entries:
        file = unfinished_file(entry.folder, name, first)
        try:
            answers = storage.read_as(file, functools.partial(read_answers, where=file))
        except FileNotFoundError:
            return False
        except ValueError:
            storage.delete(file)
            return False
        if answers.members != entry.members or [*answers.by_example()] != [e.id for e in part]:
            storage.delete(file)
            return False
        kept.append(answers.answers)
    for of_entry, more in zip(found, kept):
        of_entry.extend(more)
    return True


def _keep(
    job: Job,
    entries: Sequence[Entry],
    name: str,
    first: int,
    answers: Sequence[Sequence[Answer]],
    found: list[list[Answer]],
) -> None:
    """Add what was written now, and keep it for a run that goes on."""
    for entry, of_entry, more in zip(entries, found, answers, strict=True):
        content = answers_bytes(entry.id, name, entry.members, more)
        job.store.storage.write(unfinished_file(entry.folder, name, first), content)
        of_entry.extend(more)


def _finish(
    job: Job, entries: Sequence[Entry], name: str, found: Sequence[Sequence[Answer]], parts: range
) -> None:
    for entry, of_entry in zip(entries, found, strict=True):
        content = answers_bytes(entry.id, name, entry.members, of_entry)
        job.store.write_entry(entry.folder, {answers_file(name): content})
    for entry, first in itertools.product(entries, parts):
        job.store.storage.delete(unfinished_file(entry.folder, name, first))
