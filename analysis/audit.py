"""Search a storage for the kinds of mistakes found in published results: `lorae audit STORAGE`.

findings = audit("lorae-results", sweep=None)
print(text(findings))

Every check works from stored files alone. An entry that one check finds broken is left out of the others, so
that each fault is reported once. In a copy without weights (`analysis.archive`), adapters are told apart by
their checksums, and checks of their values are skipped. Stored files cannot show: whether a cell is missing
with all its seeds; whether texts overlap under different ids (removed when data are read), or overlap the
training split where no trial has KL, for which the backbone predicts it; whether an OOD set overlaps; whether
a member without KL, whose data order no other member has, began as the backbone; whether a backbone loaded
from files has the name that its rows give it, unless another one has that name; and whether the costs in a
member's record were measured correctly.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from analysis.audit_answers import answers_are_whole
from analysis.audit_members import (
    SAME_NLL,
    adapters_are_distinct_and_trained,
    first_step,
    has_weights,
    is_in_context,
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
from analysis.audit_students import students_have_their_teachers
from analysis.audit_trials import (
    costs_come_from_the_records,
    factors_come_from_the_recipe,
    member_faults,
    members_are_who_they_say,
    metrics_come_from_the_logits,
    trial_of,
    trials_are_complete,
)
from analysis.audit_tuning import choices_come_from_validation, recipes_are_tuned_alike, tuning_folders
from analysis.data import load_trials
from analysis.findings import Finding, Problem, results
from analysis.rows import Row, is_soup, pool, together
from lorae import untrusted
from lorae.near import did_you_mean
from lorae.results import read_trials
from lorae.store.names import (
    ADAPTER_CONFIG,
    CURVE_FILE,
    RECORD,
    SOUP_RECORD,
    WEIGHTS,
    member_folder,
    reference_folder,
    trials_file,
)
from lorae.store.predictions import Predictions
from lorae.store.records import SOUP
from lorae.store.store import Store
from lorae.trial import Trial
from lorae.untrusted import count, number


def _regularizer(value: Any) -> bool:
    if not isinstance(value, dict) or type(value.get("type")) is not str:
        return False
    return value["type"] != "KL" or (number(value.get("beta")) and value["beta"] > 0)


def _precision(value: Any) -> bool:
    return value in list(SAME_NLL)


def _source(value: Any) -> bool:
    """Where the backbone came from, or None: an older lorae did not record it."""
    return value is None or (isinstance(value, dict) and all(type(part) is str for part in value.values()))


_MEMBER = {  # what the checks rely on in a member.json
    "recipe": {
        "backbone": {},
        "task": {"scoring": {"type": str}},
        "method": {"type": str},
        "regularizers": [_regularizer],
        "budget": {"batch_size": count, "max_tokens": count},
        "precision": _precision,
    },
    "streams": {str: list},
    "source": _source,
}
_TRAINED = {"streams": {"init": list, "order": list}}
_PROMPTED = {"recipe": {"method": {"shots": count}}, "context": {"demonstrations": [str], "text": str}}

_NEEDED = {  # files of an entry, besides its predictions
    "reference": (),
    "members": (WEIGHTS, ADAPTER_CONFIG, CURVE_FILE, RECORD),
    "soups": (SOUP_RECORD,),
    "pools": (),
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
    """The findings by check, faults below the check that found them, and a last line with the counts."""
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


# What is checked -------------------------------------------------------------------------------------------


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
        """Entries that are not broken but have a faulty prediction set, with the faults."""
        return unfit_entries(self)

    def is_sound(self, folder: str) -> bool:
        return folder not in self.broken and folder not in self.unfit

    @cached_property
    def sound(self) -> tuple[Row, ...]:
        """Done trials whose entries are all sound."""
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

    @cached_property
    def member_faults(self) -> tuple[tuple[Row, list[str]], ...]:
        """Sound trials, each with the faults of its members."""
        return tuple((row, list(member_faults(self, row))) for row in self.sound)

    @cached_property
    def trials(self) -> tuple[tuple[Row, Trial], ...]:
        """Sound rows without member faults, each with its trial."""
        return tuple((row, trial_of(row)) for row, faults in self.member_faults if not faults)

    def predictions(self, folder: str, eval_set: str) -> Predictions:
        return self.store.predictions([folder], eval_set)


def _open(storage: str, sweep: str | None) -> Stored:
    store = Store(storage)
    names = store.storage.names("sweeps")
    if sweep is not None and sweep not in names:
        near = did_you_mean(sweep, names)
        known = ", ".join(names) or "none"
        raise ValueError(f"{store.storage.uri} has no sweep {sweep}; {near}it has: {known}")
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
    kinds = ("reference", "members", "soups", "pools")
    stored = [f"{kind}/{entry}" for kind in kinds for entry in store.storage.names(kind)]
    failed = [name.removesuffix(".json") for name in store.storage.names("failures")]
    if not names and not stored and not failed:
        raise ValueError(
            f"{store.storage.uri} holds no member and no sweep; give the folder that a sweep wrote to"
        )
    kept = [row for row in rows if row["status"] != "pruned"]  # no member of a pruned trial is expected
    named = dict.fromkeys(folder for row in kept for folder in _named_folders(row))
    folders = sorted({*named} if sweep is not None else {*named, *stored}, reverse=True)
    folders.sort(key=lambda folder: folder.startswith(("soups/", "pools/")))  # after their members
    diverged = {folder for row in rows for folder in tuning_folders(row, failed=True)}  # so it was not chosen
    failed = [m for m in failed if member_folder(m) not in diverged]
    failures = {m: store.failure(m) or "" for m in failed if sweep is None or member_folder(m) in named}
    return Stored(store, tuple(rows), tuple(done), tuple(incomplete), tuple(folders), failures)


def _named_folders(row: Row) -> list[str]:
    """Entries that a trial needs or that tuned its recipe. A backbone whose members have their own heads
    predicts nothing."""
    reference = [] if row["reference_id"] == "none" else [reference_folder(row["reference_id"])]
    return [*reference, *_trained_folders(row), *together(row), *tuning_folders(row)]


def _trained_folders(row: Row) -> list[str]:
    """Entries that a trial's predictions come from; for a soup, also its members."""
    return [*pool(row), *(map(member_folder, row["member_ids"]) if is_soup(row) else ())]


# Entries ---------------------------------------------------------------------------------------------------


def entries_are_whole(stored: Stored) -> list[Finding]:
    """Every entry that is stored or named by a trial has its files; they match their checksums and belong to
    the entry; a member's id is the hash of the recipe and streams beside it; and no member failed."""
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
    known = files | {*store.left_out(folder)}
    if lacking := [name for name in _NEEDED[folder.split("/")[0]] if name not in known]:
        return f"lacks {', '.join(lacking)}; repeat the sweep"
    return None


def _check_record(stored: Stored, folder: str) -> None:
    """Raise ValueError if a member's record, curve or adapter, or a soup's record, cannot be read."""
    if folder.startswith("soups/"):
        stored.store.record(folder, SOUP, SOUP_RECORD)
    if folder.startswith("members/"):
        member = folder.removeprefix("members/")
        record = stored.store.record(folder, _MEMBER)
        if is_in_context(record["recipe"]):
            _check_context(untrusted.check(record, f"{folder}/{RECORD}", _PROMPTED), folder)
        else:
            untrusted.check(record, f"{folder}/{RECORD}", _TRAINED)
            first_step(stored.store, member)
        if has_weights(stored.store, member):
            weights_of(stored.store, member)


def _check_context(record: dict[str, Any], folder: str) -> None:
    """Raise ValueError if a member does not have exactly `shots` distinct demonstrations."""
    shots, found = record["recipe"]["method"]["shots"], record["context"]["demonstrations"]
    if len(set(found)) != shots or len(found) != shots:
        what = f"{len(found)} demonstrations, {len(set(found))} distinct, of {shots} shots"
        raise ValueError(f"{folder}/{RECORD} has {what}; delete it and repeat the sweep")


CHECKS = (
    entries_are_whole,
    members_are_who_they_say,
    predictions_are_whole,
    answers_are_whole,
    splits_are_disjoint,
    ood_prompts_are_the_tests,
    zero_shot_is_not_below_chance,
    members_start_as_the_backbone,
    members_differ_after_training,
    adapters_are_distinct_and_trained,
    vera_members_differ,
    factors_come_from_the_recipe,
    metrics_come_from_the_logits,
    costs_come_from_the_records,
    recipes_are_tuned_alike,
    choices_come_from_validation,
    students_have_their_teachers,
    trials_are_complete,
)
