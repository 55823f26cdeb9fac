"""Checks of `analysis.audit` on what members learned and where they started."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.findings import Finding, Problem, results
from analysis.rows import Row, eval_sets
from lorae.identity import digest
from lorae.methods import METHODS, InContext
from lorae.store.names import CURVE_FILE, WEIGHTS, member_folder
from lorae.store.peft_format import read_tensors
from lorae.store.store import Store
from lorae.tasks.scoring import scoring_named

if TYPE_CHECKING:
    from analysis.audit import Stored

SAME_NLL = {"fp32": 1e-3, "bf16": 0.1}  # nats between equal computations in differently composed batches
_ZERO = ((method, method.zero_factor) for method in METHODS if method.zero_factor)
ZERO_FACTORS = tuple(
    {f".{method.peft_names.get(zero, zero)}" for method, zero in _ZERO}
)  # by their stored names


def members_start_as_the_backbone(stored: Stored) -> list[Finding]:
    """Members with the same first batch have the same NLL on it, and under KL a first divergence of zero.

    The first step's loss is computed before any update, while a zero-initialised factor makes the adapter
    zero. Equal data-order streams give equal first batches, whatever the method and regularisers.
    """
    first_nlls: dict[str, tuple[str, float]] = {}
    problems, num_seen = [], 0
    for member, record in stored.members.items():
        recipe, where = record["recipe"], f"{member_folder(member)}/{CURVE_FILE}"
        if not _starts_as_the_backbone(recipe):
            continue
        loss, nll = first_step(stored.store, member)
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
    return results("members start as the backbone", problems, num_seen, seen)


def _starts_as_the_backbone(recipe: dict[str, Any]) -> bool:
    """Whether a member computes the same as the backbone until its first update. It does not if its adapter
    is drawn at random; nor under noise, if it has a head or is not a low-rank branch."""
    method = recipe["method"]
    if is_in_context(recipe):
        return False  # it has no steps
    noisy = any(r["type"] in ("AdapterDropout", "Masksembles") for r in recipe["regularizers"])
    noisy = noisy or method["type"] == "Rank1BNN"
    if method["type"] in ("Lora", "Blob", "Vera"):
        head = scoring_named(recipe["task"]["scoring"]["type"]).trains_head
        return not method.get("b_std") and not (noisy and head)
    return not noisy and method.get("init") != "signs" and not method.get("std")


def is_in_context(recipe: dict[str, Any]) -> bool:
    """Whether a member trains nothing, and has demonstrations in its record."""
    return recipe["method"]["type"] == InContext.__name__


def first_step(store: Store, member: str) -> tuple[float, float]:
    """Loss and NLL of a member's first training step."""
    curve = store.curve(member_folder(member)).select(["split", "step", "loss", "nll"]).to_pylist()
    steps = [row for row in curve if row["split"] == "train" and None not in row.values()]
    if not steps:
        raise ValueError(f"{member_folder(member)}/{CURVE_FILE} has no training step")
    first = min(steps, key=lambda row: row["step"])
    return first["loss"], first["nll"]


def _first_batch(record: dict[str, Any]) -> str:
    """Digest of what determines a member's first batch and its NLL before training: the backbone, and the
    initialisation of its head, if it has one."""
    recipe = record["recipe"]
    shared = {name: recipe[name] for name in ("backbone", "precision", "task")}
    budget = {name: recipe["budget"][name] for name in ("batch_size", "max_tokens")}
    head = scoring_named(recipe["task"]["scoring"]["type"]).trains_head
    streams = ["order", "init"] if head else ["order"]
    return digest(shared | budget | {name: record["streams"][name] for name in streams})


def members_differ_after_training(stored: Stored) -> list[Finding]:
    """No two members of a recipe, within or across seeds, have the same logits on a whole test set, unless
    they drew the same demonstrations."""

    def logits(row: Row, member: str) -> str:
        predictions = stored.predictions(member_folder(member), eval_sets(row)["test"])
        return hashlib.sha256(predictions.logits_MNC.tobytes()).hexdigest()

    problems, num_seen = _repeats(stored, logits)
    named = [
        (f"{member_folder(member)}/predictions", f"logits on test are those of {other}")
        for member, other in problems
        if not is_in_context(stored.members[member]["recipe"])
        or stored.members[member]["context"] != stored.members[other]["context"]
    ]
    return results("members differ after training", named, num_seen, "members with others of their recipe")


def adapters_are_distinct_and_trained(stored: Stored) -> list[Finding]:
    """The adapters of a recipe's members are distinct, and no zero-initialised factor is still zero."""
    trained = [m for m, record in stored.members.items() if not is_in_context(record["recipe"])]
    whole = [m for m in trained if has_weights(stored.store, m)]

    def weights(row: Row, member: str) -> str:
        """Digest of the tensors, since the file also names its member; an archive has no tensors."""
        return digest(_hashes(stored.store, member)) if member in whole else member

    repeated, _ = _repeats(stored, weights)
    problems = [
        (f"{member_folder(member)}/{WEIGHTS}", f"the same adapter as {other}")
        for member, other in repeated
        if member in trained
    ]
    for member in whole:
        for name, value in weights_of(stored.store, member).items():
            if name.endswith(ZERO_FACTORS) and not value.any():
                what = "all zero, as before training"
                problems.append((f"{member_folder(member)}/{WEIGHTS} {name}", what))
    copies = len(trained) - len(whole)
    seen = "adapters with weights" + (f", beside {copies} copies without" if copies else "")
    return results("adapters are distinct and trained", problems, len(whole), seen)


def vera_members_differ(stored: Stored) -> list[Finding]:
    """VeRA members with their own projections differ in them; those that share a data order also differ in
    what they learned."""
    groups: dict[str, list[str]] = {}
    for member, record in stored.members.items():
        method = record["recipe"]["method"]
        drawn = method["type"] == "Vera" and method.get("projection") == "per_member"
        if drawn and has_weights(stored.store, member):
            groups.setdefault(digest(record["recipe"]), []).append(member)
    problems = []
    for members in groups.values():
        factors = {member: _hashes(stored.store, member) for member in members}
        for one, other in itertools.combinations(members, 2):
            problems += _vera_repeats(stored, factors, one, other)
    num_seen = sum(len(members) for members in groups.values() if len(members) > 1)
    seen = "VeRA members with weights and projections of their own"
    return results("VeRA members differ", problems, num_seen, seen)


def _vera_repeats(
    stored: Stored, factors: dict[str, dict[str, str]], one: str, other: str
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
    return {n: hashlib.sha256(v.tobytes()).hexdigest() for n, v in weights_of(store, member).items()}


def has_weights(store: Store, member: str) -> bool:
    """Whether a member's weights are stored; a copy may leave them out, see `analysis.archive`."""
    return WEIGHTS not in store.left_out(member_folder(member))


def weights_of(store: Store, member: str) -> dict[str, np.ndarray]:
    """Every tensor of a stored member, by its name in the file."""
    content = store.read(member_folder(member), WEIGHTS)
    return read_tensors(content, f"{member_folder(member)}/{WEIGHTS}")


def _repeats(stored: Stored, key: Callable[[Row, str], str]) -> tuple[list[tuple[str, str]], int]:
    """Pairs of a member and the earlier member of the same recipe and test set with the same key; and the
    number of members compared."""
    groups: dict[tuple[str, str], dict[str, Row]] = {}
    for row in stored.done:
        group = groups.setdefault((row["recipe"], eval_sets(row)["test"]), {})
        group.update((m, row) for m in row["member_ids"] if m in stored.members)
    pairs: dict[tuple[str, str], None] = {}
    for group in groups.values():
        owners: dict[str, str] = {}
        for member, row in group.items():
            owner = owners.setdefault(key(row, member), member)
            if owner != member:
                pairs[member, owner] = None
    return list(pairs), sum(len(group) for group in groups.values() if len(group) > 1)
