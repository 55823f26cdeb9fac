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

import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analysis.data import Row, describe, eval_sets, load_trials, ood_sets, pool
from lorae.draws import plain_set
from lorae.identity import digest
from lorae.peft_format import read_tensors
from lorae.predictions import Predictions, prediction_file
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

Status = Literal["passed", "failed", "not applicable"]
Problem = tuple[str, str]  # where, what

SAME_NLL = {"fp32": 1e-3, "bf16": 0.1}  # nats between equal computations in differently composed batches
SAME_METRIC = 1e-9
ZERO_FACTORS = (".lora_B.weight", ".vera_lambda_b")  # PEFT's names of what starts at zero


def _regularizer(value: Any) -> bool:
    if not isinstance(value, dict) or type(value.get("type")) is not str:
        return False
    return value["type"] != "KL" or (number(value.get("beta")) and value["beta"] > 0)


def _precision(value: Any) -> bool:
    return value in list(SAME_NLL)


_MEMBER = {  # what the checks rely on in a member.json
    "recipe": {
        "backbone": {},
        "task": {},
        "method": {"type": str},
        "regularizers": [_regularizer],
        "budget": {"batch_size": count, "max_tokens": count},
        "precision": _precision,
    },
    "streams": {"init": list, "order": list},
}


@dataclass(frozen=True)
class Finding:
    """What one check says: one finding if it passed or has nothing to look at, else one for each fault."""

    check: str
    status: Status
    where: str  # entry, file and column, or trial
    what: str


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
class _Stored:
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
        return _unfit(self)

    def is_sound(self, folder: str) -> bool:
        return folder not in self.broken and folder not in self.unfit

    @cached_property
    def sound(self) -> tuple[Row, ...]:
        """Done trials of which every entry is sound."""
        return tuple(row for row in self.done if all(map(self.is_sound, pool(row))))

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


def _open(storage: str, sweep: str | None) -> _Stored:
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
    kinds = ("reference", "members")
    stored = [f"{kind}/{entry}" for kind in kinds for entry in store.storage.names(kind)]
    failed = [name.removesuffix(".json") for name in store.storage.names("failures")]
    if not names and not stored and not failed:
        raise ValueError(
            f"{store.storage.uri} holds no member and no sweep; give the folder that a sweep wrote to"
        )
    kept = [row for row in rows if row["status"] != "pruned"]  # no member of a pruned trial is expected
    named = dict.fromkeys(folder for row in kept for folder in _named_folders(row))
    folders = sorted({*named} if sweep is not None else {*named, *stored}, reverse=True)
    failures = {m: store.failure(m) or "" for m in failed if sweep is None or member_folder(m) in named}
    return _Stored(store, tuple(rows), tuple(done), tuple(incomplete), tuple(folders), failures)


def _named_folders(row: Row) -> list[str]:
    """Entries that a trial needs; a backbone below members with heads of their own predicts nothing."""
    reference = [] if row["reference_id"] == "none" else [reference_folder(row["reference_id"])]
    return [*reference, *pool(row)]


def _results(check: str, problems: Iterable[Problem], num_seen: int, seen: str) -> list[Finding]:
    """Findings of one check that looked at `num_seen` things, named by `seen`."""
    faults = [Finding(check, "failed", where, what) for where, what in problems]
    if faults:
        return faults
    if num_seen == 0:
        return [Finding(check, "not applicable", "", f"no {seen} to look at")]
    return [Finding(check, "passed", "", f"{num_seen} {seen}")]


# Entries ---------------------------------------------------------------------------------------------------


def entries_are_whole(stored: _Stored) -> list[Finding]:
    """Every entry that is stored or named by a trial has its files, they agree with their checksums, and no
    member failed."""
    faults = dict(stored.broken)
    for member, reason in stored.failures.items():
        folder, reason = member_folder(member), " ".join(reason.split())
        faults[folder] = "; ".join(filter(None, [faults.get(folder), f"failed when last tried: {reason}"]))
    return _results("entries are whole", faults.items(), len(stored.folders), "members and references")


def _entry_fault(stored: _Stored, folder: str) -> str | None:
    """What keeps an entry from being read: a file that is missing, damaged, or not what its name says."""
    try:
        return _missing_files(stored, folder) or stored.store.damage(folder) or _check_record(stored, folder)
    except ValueError as error:
        return str(error)


def _missing_files(stored: _Stored, folder: str) -> str | None:
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


def _check_record(stored: _Stored, folder: str) -> None:
    """Raise ValueError where a member's record, curve or adapter cannot be read."""
    if folder.startswith("members/"):
        member = folder.removeprefix("members/")
        stored.store.record(folder, _MEMBER)
        _first_step(stored.store, member)
        _weights(stored.store, member)


def members_are_who_they_say(stored: _Stored) -> list[Finding]:
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
    return _results("members are who they say", problems, len(stored.members), "members")


# Predictions -----------------------------------------------------------------------------------------------


def predictions_are_whole(stored: _Stored) -> list[Finding]:
    """As many predictions as unique example ids in every draw, labels inside the number of logits, and the
    same examples and labels in every entry."""
    problems = [problem for faults in stored.unfit.values() for problem in faults]
    files = [f for folder in stored.folders if folder not in stored.broken for f in _sets(stored, folder)]
    return _results("predictions are whole", problems, len(files), "prediction sets")


def _sets(stored: _Stored, folder: str) -> list[str]:
    """Prediction files of an entry."""
    return sorted(name for name in stored.store.files(folder) if name.startswith("predictions/"))


def _unfit(stored: _Stored) -> dict[str, list[Problem]]:
    unfit: dict[str, list[Problem]] = {}
    first_seen: dict[str, tuple[str, pa.Table]] = {}  # file -> entry that was read first, its examples
    for folder in stored.folders:
        for name in _sets(stored, folder) if folder not in stored.broken else ():
            try:
                table = stored.store.prediction_table(folder, name)
            except ValueError as error:
                unfit.setdefault(folder, []).append((f"{folder}/{name}", str(error)))
                continue
            faults = list(_table_faults(table, folder.rsplit("/", 1)[-1]))
            if not faults:
                examples = _draw(table, table["draw"][0].as_py())
                first, expected = first_seen.setdefault(name, (folder, examples))
                if not examples.equals(expected):
                    faults = [("example_id, label", f"other examples or labels than in {first}")]
            if faults:
                unfit.setdefault(folder, []).extend((f"{folder}/{name} {column}", f) for column, f in faults)
    return unfit


def _draw(table: pa.Table, draw: int) -> pa.Table:
    """Examples of one draw of a prediction set."""
    return table.filter(pc.field("draw") == draw).select(["example_id", "label"])


def _table_faults(table: pa.Table, entry: str) -> Iterator[Problem]:
    """Columns of one prediction set that are wrong, and how."""
    if not len(table):
        yield "example_id", "no predictions"
        return
    if others := set(table["member_id"].unique().to_pylist()) - {entry}:
        yield "member_id", f"predictions of {', '.join(sorted(others))}"
    first, *draws = [_draw(table, draw) for draw in table["draw"].unique().to_pylist()]
    num_examples, num_unique = len(first), len(first["example_id"].unique())
    if num_unique < num_examples:
        repeated = Counter(first["example_id"].to_pylist()).most_common(1)[0][0]
        yield "example_id", f"{num_examples} predictions of {num_unique} examples; {repeated!r} repeats"
    if not all(draw.equals(first) for draw in draws):
        yield "example_id, label", "the draws saw different examples or labels"
    labels = table["label"].to_numpy()
    num_classes = pc.call_function("list_value_length", [table["logits"]]).to_numpy()
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any() and not (labels == -1).all():  # all -1: an unlabelled OOD set
        n = int(outside.argmax())
        where = f"{table['example_id'][n].as_py()!r}: {labels[n]} of {num_classes[n]}"
        yield "label", f"{outside.sum()} labels are no class; {where}"


def splits_are_disjoint(stored: _Stored) -> list[Finding]:
    """No example id of a trial is in two of test, validation and, where the backbone predicted it (KL), the
    training split."""
    problems: dict[Problem, None] = {}
    for row in stored.sound:
        sets = {split: eval_sets(row)[split] for split in ("test", "validation")} | {"train": _train_set(row)}
        ids = {split: found for split, name in sets.items() if (found := _ids(stored, row, name))}
        for one, other in itertools.combinations(ids, 2):
            if both := sorted(ids[one] & ids[other]):
                what = f"{len(both)} examples are also in {sets[other]}, first {both[0]!r}"
                problems[f"{sets[one]} example_id", what] = None
    return _results("splits are disjoint", problems, len(stored.sound), stored.sound_trials)


def ood_prompts_are_the_tests(stored: _Stored) -> list[Finding]:
    """The prompts of a trial's OOD sets have the template of its test set: a detector that sees another one
    detects the template."""
    problems: dict[Problem, None] = {}
    pairs = 0
    for row in stored.sound:
        folder, sets = pool(row)[0], eval_sets(row)
        expected = stored.store.template(folder, sets["test"])
        for eval_set in ood_sets(row).values():
            pairs += 1
            if (found := stored.store.template(folder, eval_set)) != expected:
                what = f"prompts are {found!r}, those of {sets['test']} are {expected!r}"
                problems[f"{folder}/{prediction_file(eval_set)}", what] = None
    return _results("OOD prompts are those of the test set", problems, pairs, "OOD sets of trials")


def _train_set(row: Row) -> str:
    """Name of the training split's prediction set, from the recipe: `Task.eval_set`."""
    content = {k: v for k, v in json.loads(row["recipe"])["task"].items() if k != "num_validation"}
    return f"{content['task'].replace('/', '-')}__train__{digest(content)[:8]}"


def _ids(stored: _Stored, row: Row, eval_set: str) -> set[str]:
    """Example ids of a set in the trial's reference, or else its first member; empty if neither has it."""
    for folder in (reference_folder(row["reference_id"]), *pool(row)[:1]):
        if stored.is_sound(folder) and stored.store.has_predictions(folder, [eval_set]):
            return set(stored.predictions(folder, eval_set).example_ids)
    return set()


def zero_shot_is_not_below_chance(stored: _Stored) -> list[Finding]:
    """The backbone's accuracy on a test set is no sign of swapped label words, see `below_chance`."""
    pairs = dict.fromkeys(
        (reference_folder(r["reference_id"]), plain_set(eval_sets(r)["test"])) for r in stored.done
    )
    here = [(f, s) for f, s in pairs if stored.is_sound(f) and stored.store.has_predictions(f, [s])]
    problems = []
    for folder, eval_set in here:
        predictions = stored.predictions(folder, eval_set)
        if (predictions.labels_N < 0).any():
            problems.append((f"{folder}/{prediction_file(eval_set)}", "a test set without labels"))
        elif fault := below_chance(predictions.logits_MNC[0], predictions.labels_N):
            problems.append((f"{folder}/{prediction_file(eval_set)}", fault))
    return _results("zero-shot is not below chance", problems, len(here), "test sets of a backbone")


def below_chance(logits_NC: np.ndarray, labels_N: np.ndarray) -> str | None:
    """How far an accuracy is below chance by more than three standard errors, or None.

    Chance is the smaller of a uniform guess among each example's classes, and of the predictions assigned to
    the examples at random: a backbone that always says "no" is poor on an unbalanced set, but not swapped.
    """
    num, predicted_N = len(labels_N), logits_NC.argmax(axis=1)
    acc = float((predicted_N == labels_N).mean())
    uniform = float((1 / np.isfinite(logits_NC).sum(axis=1)).mean())
    shares = [np.bincount(x, minlength=logits_NC.shape[1]) / num for x in (predicted_N, labels_N)]
    chance = min(uniform, float(shares[0] @ shares[1]))
    stderr = math.sqrt(chance * (1 - chance) / num)
    if acc >= chance - 3 * stderr:
        return None
    return f"accuracy {acc:.3f}, chance {chance:.3f} +- {stderr:.3f}; are the label words swapped?"


# Members ---------------------------------------------------------------------------------------------------


def members_start_as_the_backbone(stored: _Stored) -> list[Finding]:
    """Members with the same first batch have the same NLL on it, and under KL a first divergence of zero.

    The first step's loss is computed before any update, when a zero-initialised factor makes the adapter
    nothing. Equal streams of data order give equal first batches, whatever method and regularisers are.
    """
    first_nlls: dict[str, tuple[str, float]] = {}
    problems, num_seen = [], 0
    for member, record in stored.members.items():
        recipe, where = record["recipe"], f"{member_folder(member)}/{CURVE_FILE}"
        if not _starts_as_the_backbone(recipe):
            continue
        loss, nll = _first_step(stored.store, member)
        tolerance = SAME_NLL[recipe["precision"]] * max(1.0, nll)
        other, expected = first_nlls.setdefault(_first_batch(record), (member, nll))
        if abs(nll - expected) > tolerance:
            what = f"first step has NLL {nll:.6g}, that of {other} on the same batch {expected:.6g}"
            problems.append((f"{where} nll", what))
        weighted = any(r["type"] == "ClassWeights" for r in recipe["regularizers"])
        for kl in (r for r in recipe["regularizers"] if r["type"] == "KL" and not weighted):
            divergence = (loss - nll) / kl["beta"]
            if abs(loss - nll) > kl["beta"] * tolerance + 1e-6 * max(1.0, loss):
                what = f"first step is {divergence:.6g} nats from the stored backbone, must be 0"
                problems.append((f"{where} loss", what))
        num_seen += other != member or any(r["type"] == "KL" for r in recipe["regularizers"])
    seen = "members with KL, or with the first batch of another one"
    return _results("members start as the backbone", problems, num_seen, seen)


def _starts_as_the_backbone(recipe: dict[str, Any]) -> bool:
    """Whether a member computes what the backbone does until its first update. One that is no low-rank branch
    does not under noise, nor where it is drawn at random."""
    method = recipe["method"]
    if method["type"] in ("Lora", "Vera"):
        return not method.get("b_std")
    noisy = any(r["type"] in ("AdapterDropout", "Masksembles") for r in recipe["regularizers"])
    return not noisy and method.get("init") != "signs" and not method.get("std")


def _first_step(store: Store, member: str) -> tuple[float, float]:
    """Loss and NLL of a member's first training step."""
    curve = store.curve(member_folder(member)).select(["split", "step", "loss", "nll"]).to_pylist()
    steps = [row for row in curve if row["split"] == "train" and None not in row.values()]
    if not steps:
        raise ValueError(f"{member_folder(member)}/{CURVE_FILE} has no training step")
    first = min(steps, key=lambda row: row["step"])
    return first["loss"], first["nll"]


def _first_batch(record: dict[str, Any]) -> str:
    """What a member's first batch and the NLL on it before training depend on: the backbone, and with a head
    its initialisation."""
    recipe = record["recipe"]
    shared = {name: recipe[name] for name in ("backbone", "precision", "task")}
    budget = {name: recipe["budget"][name] for name in ("batch_size", "max_tokens")}
    streams = ["order", "init"] if recipe["task"]["scoring"]["type"] == "Head" else ["order"]
    return digest(shared | budget | {name: record["streams"][name] for name in streams})


def members_differ_after_training(stored: _Stored) -> list[Finding]:
    """No two members of a recipe, of one seed or of several, have the same logits on a whole test set."""

    def logits(row: Row, member: str) -> str:
        predictions = stored.predictions(member_folder(member), eval_sets(row)["test"])
        return hashlib.sha256(predictions.logits_MNC.tobytes()).hexdigest()

    problems, num_seen = _repeats(stored, logits)
    named = [(f"{w}/predictions", f"logits on test are those of {other}") for w, other in problems]
    return _results("members differ after training", named, num_seen, "members with others of their recipe")


def adapters_are_distinct_and_trained(stored: _Stored) -> list[Finding]:
    """The adapters of a recipe's members are distinct, and no zero-initialised factor is still zero."""

    def weights(row: Row, member: str) -> str:
        content = stored.store.read(member_folder(member), WEIGHTS)
        return hashlib.sha256(content).hexdigest()

    repeated, _ = _repeats(stored, weights)
    problems = [(f"{where}/{WEIGHTS}", f"the same adapter as {other}") for where, other in repeated]
    for member in stored.members:
        for name, value in _weights(stored.store, member).items():
            if name.endswith(ZERO_FACTORS) and not value.any():
                what = "all zero, as before training"
                problems.append((f"{member_folder(member)}/{WEIGHTS} {name}", what))
    return _results("adapters are distinct and trained", problems, len(stored.members), "adapters")


def vera_members_differ(stored: _Stored) -> list[Finding]:
    """VeRA members with projections of their own differ in them, and those that share a data order also in
    what they learned."""
    groups: dict[str, list[str]] = {}
    for member, record in stored.members.items():
        method = record["recipe"]["method"]
        if method["type"] == "Vera" and method.get("projection") == "per_member":
            groups.setdefault(digest(record["recipe"]), []).append(member)
    problems = []
    for members in groups.values():
        factors = {member: _hashes(stored.store, member) for member in members}
        for one, other in itertools.combinations(members, 2):
            problems += _vera_repeats(stored, factors, one, other)
    num_seen = sum(len(members) for members in groups.values() if len(members) > 1)
    return _results("VeRA members differ", problems, num_seen, "VeRA members with projections of their own")


def _vera_repeats(
    stored: _Stored, factors: dict[str, dict[str, str]], one: str, other: str
) -> Iterator[Problem]:
    ours, theirs = (stored.members[m]["streams"] for m in (one, other))
    if ours["init"] == theirs["init"]:
        return
    shared = [name for name, value in factors[one].items() if factors[other].get(name) == value]
    frozen = [name for name in shared if name.endswith(("vera_A", "vera_B"))]
    where = f"{member_folder(other)}/{WEIGHTS}"
    if frozen:
        yield where, f"has {', '.join(frozen)} of {one}, though their init streams differ"
    if len(shared) > len(frozen) and ours["order"] == theirs["order"]:
        num_equal = len(shared) - len(frozen)
        yield where, f"learned {num_equal} vectors equal to those of {one}, from the same data order"


def _hashes(store: Store, member: str) -> dict[str, str]:
    return {n: hashlib.sha256(v.tobytes()).hexdigest() for n, v in _weights(store, member).items()}


def _weights(store: Store, member: str) -> dict[str, np.ndarray]:
    content = store.read(member_folder(member), WEIGHTS)
    return read_tensors(content, f"{member_folder(member)}/{WEIGHTS}")


def _repeats(stored: _Stored, key: Callable[[Row, str], str]) -> tuple[list[Problem], int]:
    """Members whose key an earlier member of the same recipe and test set has; and how many were compared."""
    groups: dict[tuple[str, str], dict[str, Row]] = {}
    for row in stored.done:
        group = groups.setdefault((row["recipe"], eval_sets(row)["test"]), {})
        group.update((m, row) for m in row["member_ids"] if m in stored.members)
    problems: dict[Problem, None] = {}
    for group in groups.values():
        owners: dict[str, str] = {}
        for member, row in group.items():
            owner = owners.setdefault(key(row, member), member)
            if owner != member:
                problems[member_folder(member), owner] = None
    return list(problems), sum(len(group) for group in groups.values() if len(group) > 1)


# Trials ----------------------------------------------------------------------------------------------------


def metrics_come_from_the_logits(stored: _Stored) -> list[Finding]:
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
    return _results("metrics come from the logits", problems, len(stored.sound), stored.sound_trials)


def _same(stored: float | None, computed: float | None) -> bool:
    if stored is None or computed is None:
        return stored is computed
    return math.isclose(stored, computed, rel_tol=SAME_METRIC, abs_tol=SAME_METRIC)


def trials_are_complete(stored: _Stored) -> list[Finding]:
    """Every trial is done or was pruned, and every cell has the seeds that the others have."""
    pruned = sum(row["status"] == "pruned" for row in stored.rows)
    seen = f"trials ({pruned} pruned by a search, in no table)" if pruned else "trials"
    return _results("trials are complete", stored.incomplete, len(stored.rows), seen)


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
