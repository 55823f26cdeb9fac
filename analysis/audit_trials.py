"""Checks of `analysis.audit` on the rows of trials.parquet."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

from analysis.findings import Finding, results
from analysis.rows import Row, describe, eval_sets, ood_sets, pool, rule, soup
from lorae.augmentation import Augment
from lorae.combinations import COMBINATIONS
from lorae.draws import plain_set, read_draws
from lorae.identity import canonical, canonical_json, digest, spec_of
from lorae.methods import METHODS, Init
from lorae.metrics import pooled_nll
from lorae.regularizers import REGULARIZERS
from lorae.results import (
    FLAGS,
    LATER,
    OLDER,
    POOLED_FLAG,
    SCALED,
    SETS,
    row_answers,
    text_metrics,
    trial_cost,
    trial_id,
    trial_metrics,
)
from lorae.sources import DataSource, Hub, Source
from lorae.store.names import SOUP_RECORD, is_fit_file, member_folder, soup_folder
from lorae.store.predictions import prediction_file, prediction_sets
from lorae.tasks.base import Split, Task
from lorae.tasks.scoring import SCORINGS
from lorae.trial import AdamW, Budget, Diversity, Trial

if TYPE_CHECKING:
    from analysis.audit import Stored

SAME_VALUE = 1e-9
SINCE_ADDED = ("mcc", "credal_width", *SETS)  # metrics of classes that tables of an older lorae lack
DIVERSITIES = [Diversity(i, o) for i, o in itertools.product(("per_member", "shared"), repeat=2)]
SPECS = (*METHODS, *get_args(Init), *REGULARIZERS, AdamW, Budget)


# The trial of a row, from the table alone ------------------------------------------------------------------


@dataclass(frozen=True)
class _StoredBackbone(Hub):
    """A backbone with the name and fingerprint that a row records; its files may be elsewhere."""

    content: str = ""

    def fingerprint(self) -> dict[str, Any]:
        return json.loads(self.content)


@dataclass(frozen=True, kw_only=True)
class _StoredTask(Task):
    """A task with the fingerprint and test set that a row records; its files may be elsewhere."""

    content: str
    test_set: str

    @property
    def name(self) -> str:
        return json.loads(self.content)["task"]

    def check_augment(self) -> None:
        """What a row records was checked when it was made."""

    def fingerprint(self) -> dict[str, Any]:
        return json.loads(self.content)

    def eval_set(self, split: Split) -> str:
        assert split == "test", "a row's recipe does not say how the other splits are called"
        return self.test_set


def trial_of(row: Row) -> Trial:
    """The trial of a row's recipe, with the row's seed, number of members and rule. Its draws are those of
    its prediction sets.

    Raises:
        ValueError: this lorae does not know the recipe, or refuses the trial.
    """
    recipe, test = json.loads(row["recipe"]), eval_sets(row)["test"]
    try:
        parts = ("method", "regularizers", "optimizer", "budget")
        trial = Trial(
            backbone=_backbone(row["backbone"], recipe["backbone"]),
            task=_StoredTask(
                scoring=spec_of(recipe["task"]["scoring"], SCORINGS),
                num_train=recipe["task"]["size"],
                train_per_class=recipe["task"].get("per_class"),
                augment=spec_of(recipe["task"].get("augment"), [Augment]),
                content=canonical_json(recipe["task"]),
                test_set=plain_set(test),
            ),
            **{name: spec_of(recipe[name], SPECS) for name in parts},
            precision=recipe["precision"],
            seed=row["seed"],
            members=row["members"],
            combine=row["combine"],
            draws=read_draws(test.removeprefix(plain_set(test)).removeprefix("-")),
        )
        trial.factors()  # parts of other types may have no label
    except (KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"its recipe is none of this lorae ({error}); repeat the sweep") from error
    trials = [replace(trial, diversity=diversity) for diversity in _diversities(row)]
    return next((t for t in trials if trial_id(t) == row["trial_id"]), trials[0])


def _backbone(name: str, content: dict[str, Any]) -> Source:
    """The recipe names a hub repository; no other backbone's name is in a recipe, so the row's is taken."""
    if content["type"] == "Hub":
        return spec_of(content, [Hub])
    return _StoredBackbone(name, content=canonical_json(content))


def _diversities(row: Row) -> list[Diversity]:
    """Diversities that a row may have; the untouched backbone's row does not say which."""
    return [d for d in DIVERSITIES if row["members"] and d.label == row["diversity"]] or DIVERSITIES


# Checks ----------------------------------------------------------------------------------------------------


def members_are_who_they_say(stored: Stored) -> list[Finding]:
    """A trial has M members of its recipe, with the streams that its seed gives them; a soup was made from
    its members as they are now. Reading a member already checks that its id is the hash of its recipe and
    streams.

    Members may be identical only if the trial says so, by a diversity of "none".
    """
    problems = [(trial_name(row), fault) for row, faults in stored.member_faults for fault in faults]
    return results("members are who they say", problems, len(stored.members), "members")


def member_faults(stored: Stored, row: Row) -> Iterator[str]:
    """Faults of the members that a trial names, each of which is sound."""
    ids, recipe = row["member_ids"], digest(json.loads(row["recipe"]))
    if len(ids) != row["members"] or (len(set(ids)) < len(ids) and row["diversity"] != "none"):
        yield f"has {len(set(ids))} distinct members, not {row['members']}"
        return
    others = [m for m in dict.fromkeys(ids) if digest(stored.members[m]["recipe"]) != recipe]
    yield from (f"member {member} was trained with another recipe" for member in others)
    if others:
        return
    try:
        trial = trial_of(row)
    except ValueError as error:
        yield str(error)
        return
    for index, member in enumerate(ids):
        streams, expected = stored.members[member]["streams"], canonical(trial.member_key(index))
        if streams != expected:
            yield f"member {member} has the streams {_text(streams)}, not this trial's {_text(expected)}"
    if name := soup(row):
        yield from _soup_faults(stored, row, name)


def _soup_faults(stored: Stored, row: Row, name: str) -> Iterator[str]:
    """Faults of the soup of a row's members."""
    ids, folder = row["member_ids"], soup_folder(row["member_ids"], name)
    if stored.store.is_of_others(ids, name):
        yield f"{folder} is of members that were trained again; repeat the sweep that made it"
        return

    def nll(chosen: Sequence[str]) -> float:
        entry = folder if len(chosen) > 1 else member_folder(chosen[0])
        found = stored.store.predictions([entry], eval_sets(row)["validation"])
        return pooled_nll(found.logits_MNC, found.labels_N)

    with contextlib.suppress(ValueError):  # another check reports what is missing
        faults = COMBINATIONS[name].faults(stored.store.soup_record(ids, name), nll)
        yield from (f"{folder}/{SOUP_RECORD}: {fault}" for fault in faults)


def _text(streams: dict[str, Any]) -> str:
    return ", ".join("/".join(map(str, key)) for key in streams.values())


def factors_come_from_the_recipe(stored: Stored) -> list[Finding]:
    """Every factor of every done trial, its id and its backbone's id are those derived again from its recipe,
    its seed and the names of its prediction sets."""
    problems, names = [], _backbone_names(stored)
    for row, trial in stored.trials:
        expected = trial.factors() | {"trial_id": trial_id(trial), "reference_id": trial.reference_id()}
        for name, value in expected.items():
            if row[name] != value:
                what = f"the table says {row[name]!r}, the recipe {value!r}"
                problems.append((f"{trial_name(row)} {name}", what))
        backbone = digest(trial.backbone)
        others = {name for content, found in names.items() if content != backbone for name in found}
        if row["backbone"] in others - names.get(backbone, set()):
            what = f"the table says {row['backbone']!r}, which another backbone is called"
            problems.append((f"{trial_name(row)} backbone", what))
    return results("factors come from the recipe", problems, len(stored.trials), "trials")


def _backbone_names(stored: Stored) -> dict[str, set[str]]:
    """Digest of each backbone -> its names where members were trained; a folder may hold another by now."""
    names: dict[str, set[str]] = {}
    for record in stored.members.values():
        with contextlib.suppress(ValueError, RuntimeError):  # no source, or a path that leads nowhere here
            source = spec_of(record.get("source") or {}, get_args(DataSource))
            names.setdefault(digest(record["recipe"]["backbone"]), set()).add(source.label)
    return names


def costs_come_from_the_records(stored: Stored) -> list[Finding]:
    """Every cost column of every done trial is the sum over its members' records.

    A row's `stored_bytes` excludes prediction sets and samples that a member got after the table was made.
    """
    problems = []
    for row, trial in stored.trials:
        try:
            found = trial_cost(stored.store, trial)
        except ValueError as error:
            problems.append((trial_name(row), str(error)))
            continue
        for name, value in found.items():
            least = value - _later_bytes(stored, row) if name == "stored_bytes" else value
            if _is_lacking(row, name):
                continue
            if not same(row[name], value) and not least <= (row[name] or 0) < value:
                what = f"the table says {row[name]!r}, the records {value!r}"
                problems.append((f"{trial_name(row)} {name}", what))
    return results("costs come from the records", problems, len(stored.trials), "trials")


def _later_bytes(stored: Stored, row: Row) -> int:
    """Bytes of the members' prediction sets that a row does not name, and of the fits of draws."""
    total = 0
    for member in dict.fromkeys(row["member_ids"]):
        sizes = stored.store.file_bytes(member_folder(member))
        others = prediction_sets(sizes) - set(eval_sets(row).values())
        later = [*map(prediction_file, others), *filter(is_fit_file, sizes)]
        total += sum(sizes[name] for name in later)
    return total


def metrics_come_from_the_logits(stored: Stored) -> list[Finding]:
    """Every metric column of every done trial agrees within 1e-9 with the value recomputed from its stored
    logits and answers. Metrics that an older lorae scaled differently are in no table."""
    problems = []
    for row in stored.sound:
        try:
            sets = eval_sets(row)
            entries = pool(row)
            predictions = {where: stored.store.predictions(entries, name) for where, name in sets.items()}
            written = row["decoding"] is not None
            found = trial_metrics(predictions, list(ood_sets(row)), rule(row), len(entries), written)
            if written:
                found |= text_metrics(row_answers(stored.store, row, sets["test"]))
        except ValueError as error:
            problems.append((trial_name(row), str(error)))
            continue
        if row[POOLED_FLAG] == OLDER:
            found = {name: value for name, value in found.items() if name not in (*SCALED, *FLAGS)}
        for name, value in found.items():
            if not _is_lacking(row, name) and not same(row.get(name), value):
                what = f"the table says {row.get(name)!r}, the logits {value!r}"
                problems.append((f"{trial_name(row)} {name}", what))
    return results("metrics come from the logits", problems, len(stored.sound), stored.sound_trials)


def _is_lacking(row: Row, name: str) -> bool:
    """Whether a row lacks a column that the lorae which made its table did not have."""
    added = LATER if row[POOLED_FLAG] == OLDER else SINCE_ADDED
    return name in added and row.get(name) is None


def same(stored: Any, computed: Any) -> bool:
    """Whether two numbers are equal within 1e-9, or two other values are equal."""
    if not (isinstance(stored, (int, float)) and isinstance(computed, (int, float))):
        return stored == computed
    return math.isclose(stored, computed, rel_tol=SAME_VALUE, abs_tol=SAME_VALUE)


def trials_are_complete(stored: Stored) -> list[Finding]:
    """Every trial is done or was pruned, and every cell has the seeds that the others have."""
    pruned = sum(row["status"] == "pruned" for row in stored.rows)
    seen = f"trials ({pruned} pruned by a search, in no table)" if pruned else "trials"
    return results("trials are complete", stored.incomplete, len(stored.rows), seen)


def trial_name(row: Row) -> str:
    """A row's name in a finding."""
    return f"{row['sweep']}/{row['trial_id']} ({describe(row)})"
