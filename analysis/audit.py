"""Mistakes that published results contain, looked for in a storage: `lorae audit STORAGE`.

findings = audit("lorae-results", sweep=None)
print(text(findings))

Every check works from stored files alone; an entry that one check finds broken is left out of the others, so
that a fault is named once. What no stored file can show: that a cell is missing with all its seeds; an
overlap of texts under different ids (removed when data are read), or of the training split where no trial has
KL, for which the backbone predicts it; an OOD set that overlaps; whether a member without KL, whose data
order no other member has, began as the backbone; and costs, which are measured.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from analysis.audit_members import (
    SAME_NLL,
    adapters_are_distinct_and_trained,
    first_step,
    members_differ_after_training,
    members_start_as_the_backbone,
    vera_members_differ,
    weights_of,
)
from analysis.audit_predictions import (
    ood_prompts_are_the_tests,
    predictions_are_whole,
    splits_are_disjoint,
    unfit_entries,
    zero_shot_is_not_below_chance,
)
from analysis.data import Row, describe, eval_sets, is_soup, load_trials, ood_sets, pool
from analysis.findings import Finding, Problem, results
from lorae.identity import digest
from lorae.prediction_files import Predictions
from lorae.results import read_trials, trial_metrics
from lorae.store import (
    ADAPTER_CONFIG,
    CURVE_FILE,
    RECORD,
    WEIGHTS,
    Store,
    member_folder,
    reference_folder,
    trials_file,
)
from lorae.untrusted import count, number

SAME_METRIC = 1e-9


def _regularizer(value: Any) -> bool:
    if not isinstance(value, dict) or type(value.get("type")) is not str:
        return False
    return value["type"] != "KL" or (number(value.get("beta")) and value["beta"] > 0)


def _precision(value: Any) -> bool:
    return value in list(SAME_NLL)


_MEMBER = {  # what the checks rely on in a member.json
    "recipe": {
        "backbone": {},
        "task": {"scoring": {"type": str}},
        "method": {"type": str},
        "regularizers": [_regularizer],
        "budget": {"batch_size": count, "max_tokens": count},
        "precision": _precision,
    },
    "streams": {"init": list, "order": list},
}


def audit(storage: str, sweep: str | None = None) -> list[Finding]:
    """Run every check on a storage.

    Args:
        storage: path or URI.
        sweep: look only at this sweep and the entries that its trials name; None = everything stored.
    Raises:
        ValueError: there is no such sweep, or the storage holds nothing.
    """
    stored = _open(storage, sweep)
    return [finding for check in CHECKS for finding in check(stored)]


def text(findings: Sequence[Finding]) -> str:
    """The findings by check, faults below the check that saw them, and a last line with the counts."""
    lines, counts = [], dict.fromkeys(("passed", "failed", "not applicable"), 0)
    for check, group in itertools.groupby(findings, key=lambda finding: finding.check):
        found = list(group)
        status = found[0].status
        counts[status] += 1
        if status == "failed":
            lines.append(f"FAILED          {check}: {len(found)} found")
            lines += [f"    {finding.where}: {finding.what}" for finding in found]
        else:
            lines.append(f"{status:<15} {check}: {found[0].what}")
    total = ", ".join(f"{count} {status}" for status, count in counts.items())
    return "\n".join([*lines, f"{sum(counts.values())} checks: {total}"])


# What is looked at -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Stored:
    """A storage, its trials, and what is wrong with its entries."""

    store: Store
    rows: tuple[Row, ...]  # of all tables, done or not
    done: tuple[Row, ...]
    incomplete: tuple[Problem, ...]  # what the tables lack
    folders: tuple[str, ...]  # entries that are stored or named by a trial, references first
    failures: dict[str, str]  # member id -> why it failed

    @cached_property
    def broken(self) -> dict[str, str]:
        """Entries that are missing, damaged or lack a file, with the fault."""
        faults = {folder: _entry_fault(self, folder) for folder in self.folders}
        return {folder: fault for folder, fault in faults.items() if fault}

    @cached_property
    def unfit(self) -> dict[str, list[Problem]]:
        """Whole entries with a prediction set that is not what it should be, with the faults."""
        return unfit_entries(self)

    def is_sound(self, folder: str) -> bool:
        return folder not in self.broken and folder not in self.unfit

    @cached_property
    def sound(self) -> tuple[Row, ...]:
        """Done trials of which every entry is sound."""
        return tuple(row for row in self.done if all(map(self.is_sound, _trained_folders(row))))

    @property
    def sound_trials(self) -> str:
        left_out = len(self.done) - len(self.sound)
        return "trials" + (f" ({left_out} with broken entries left out)" if left_out else "")

    @cached_property
    def members(self) -> dict[str, dict[str, Any]]:
        """Sound members of the done trials -> their member.json."""
        ids = dict.fromkeys(m for row in self.done for m in row["member_ids"])
        sound = [m for m in ids if self.is_sound(member_folder(m))]
        return {m: self.store.record(member_folder(m), _MEMBER) for m in sound}

    def predictions(self, folder: str, eval_set: str) -> Predictions:
        return self.store.predictions([folder], eval_set)


def _open(storage: str, sweep: str | None) -> Stored:
    store = Store(storage)
    names = store.storage.names("sweeps")
    if sweep is not None and sweep not in names:
        raise ValueError(f"{store.storage.uri} has no sweep {sweep}; it has: {', '.join(names) or 'none'}")
    rows, done, incomplete = [], [], []
    for name in names if sweep is None else [sweep]:
        where = trials_file(name)
        try:
            rows += read_trials(store, name).to_pylist()
            trials = load_trials(storage, name, allow_missing=True)
            done += trials.rows
            incomplete += [(where, missing) for missing in trials.missing]
        except ValueError as error:
            incomplete.append((where, str(error)))
    kinds = ("reference", "members", "soups")
    stored = [f"{kind}/{entry}" for kind in kinds for entry in store.storage.names(kind)]
    failed = [name.removesuffix(".json") for name in store.storage.names("failures")]
    if not names and not stored and not failed:
        raise ValueError(
            f"{store.storage.uri} holds no member and no sweep; give the folder that a sweep wrote to"
        )
    kept = [row for row in rows if row["status"] != "pruned"]  # no member of a pruned trial is expected
    named = dict.fromkeys(folder for row in kept for folder in _named_folders(row))
    folders = sorted({*named} if sweep is not None else {*named, *stored}, reverse=True)
    folders.sort(key=lambda folder: folder.startswith("soups/"))  # after what they are made of
    failures = {m: store.failure(m) or "" for m in failed if sweep is None or member_folder(m) in named}
    return Stored(store, tuple(rows), tuple(done), tuple(incomplete), tuple(folders), failures)


def _named_folders(row: Row) -> list[str]:
    """Entries that a trial needs; a backbone below members with heads of their own predicts nothing."""
    reference = [] if row["reference_id"] == "none" else [reference_folder(row["reference_id"])]
    return [*reference, *_trained_folders(row)]


def _trained_folders(row: Row) -> list[str]:
    """Entries that a trial's predictions come from: of a soup also its members."""
    return [*pool(row), *(map(member_folder, row["member_ids"]) if is_soup(row) else ())]


# Entries ---------------------------------------------------------------------------------------------------


def entries_are_whole(stored: Stored) -> list[Finding]:
    """Every entry that is stored or named by a trial has its files, they agree with their checksums, and no
    member failed."""
    faults = dict(stored.broken)
    for member, reason in stored.failures.items():
        folder, reason = member_folder(member), " ".join(reason.split())
        faults[folder] = "; ".join(filter(None, [faults.get(folder), f"failed when last tried: {reason}"]))
    return results("entries are whole", faults.items(), len(stored.folders), "members and references")


def _entry_fault(stored: Stored, folder: str) -> str | None:
    """What keeps an entry from being read: a file that is missing, damaged, or not what its name says."""
    try:
        return _missing_files(stored, folder) or stored.store.damage(folder) or _check_record(stored, folder)
    except ValueError as error:
        return str(error)


def _missing_files(stored: Stored, folder: str) -> str | None:
    store = stored.store
    files = store.files(folder)
    if not files:
        if store.storage.names(folder):
            return "has no DONE.json that is valid: unfinished, or discarded as damaged; repeat the sweep"
        count = sum(folder in _named_folders(row) for row in stored.rows)
        return f"named by {count} trials, but not stored; repeat the sweep"
    needed = (WEIGHTS, ADAPTER_CONFIG, CURVE_FILE, RECORD) if folder.startswith("members/") else ()
    if lacking := [name for name in needed if name not in files]:
        return f"lacks {', '.join(lacking)}; repeat the sweep"
    return None


def _check_record(stored: Stored, folder: str) -> None:
    """Raise ValueError where a member's record, curve or adapter cannot be read."""
    if folder.startswith("members/"):
        member = folder.removeprefix("members/")
        stored.store.record(folder, _MEMBER)
        first_step(stored.store, member)
        weights_of(stored.store, member)


def members_are_who_they_say(stored: Stored) -> list[Finding]:
    """A member's id is the hash of the recipe and streams beside it; a trial has M members of its recipe.

    Members are allowed to be one and the same only where the trial says so: a diversity of "none".
    """
    problems = []
    for member, record in stored.members.items():
        identity = digest(record["recipe"] | {"streams": record["streams"]})
        if identity != member:
            what = f"its recipe and streams have the identity {identity}"
            problems.append((f"{member_folder(member)}/{RECORD}", what))
    for row in stored.sound:
        ids = row["member_ids"]
        if len(ids) != row["members"] or (len(set(ids)) < len(ids) and row["diversity"] != "none"):
            problems.append((_trial(row), f"has {len(set(ids))} distinct members, not {row['members']}"))
        for member in dict.fromkeys(ids):
            if digest(stored.members[member]["recipe"]) != digest(json.loads(row["recipe"])):
                problems.append((_trial(row), f"member {member} was trained with another recipe"))
    return results("members are who they say", problems, len(stored.members), "members")


# Trials ----------------------------------------------------------------------------------------------------


def metrics_come_from_the_logits(stored: Stored) -> list[Finding]:
    """Every metric column of every done trial, computed again from its stored logits, within 1e-9."""
    problems = []
    for row in stored.sound:
        try:
            sets = eval_sets(row)
            predictions = {where: stored.store.predictions(pool(row), name) for where, name in sets.items()}
            found = trial_metrics(predictions, list(ood_sets(row)), row["combine"])
        except ValueError as error:
            problems.append((_trial(row), str(error)))
            continue
        for name, value in found.items():
            if not _same(row.get(name), value):
                what = f"the table says {row.get(name)!r}, the logits {value!r}"
                problems.append((f"{_trial(row)} {name}", what))
    return results("metrics come from the logits", problems, len(stored.sound), stored.sound_trials)


def _same(stored: float | None, computed: float | None) -> bool:
    if stored is None or computed is None:
        return stored is computed
    return math.isclose(stored, computed, rel_tol=SAME_METRIC, abs_tol=SAME_METRIC)


def trials_are_complete(stored: Stored) -> list[Finding]:
    """Every trial is done or was pruned, and every cell has the seeds that the others have."""
    pruned = sum(row["status"] == "pruned" for row in stored.rows)
    seen = f"trials ({pruned} pruned by a search, in no table)" if pruned else "trials"
    return results("trials are complete", stored.incomplete, len(stored.rows), seen)


def _trial(row: Row) -> str:
    return f"{row['sweep']}/{row['trial_id']} ({describe(row)})"


CHECKS = (
    entries_are_whole,
    members_are_who_they_say,
    predictions_are_whole,
    splits_are_disjoint,
    ood_prompts_are_the_tests,
    zero_shot_is_not_below_chance,
    members_start_as_the_backbone,
    members_differ_after_training,
    adapters_are_distinct_and_trained,
    vera_members_differ,
    metrics_come_from_the_logits,
    trials_are_complete,
)
