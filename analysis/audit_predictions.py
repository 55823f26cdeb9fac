"""Checks of `analysis.audit` on predictions."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analysis.audit_members import is_in_context
from analysis.findings import Finding, Problem, results
from analysis.rows import Row, eval_sets, ood_sets, pool
from lorae.draws import plain_set
from lorae.identity import digest
from lorae.store.names import reference_folder
from lorae.store.predictions import prediction_file, prediction_sets

if TYPE_CHECKING:
    from analysis.audit import Stored


def predictions_are_whole(stored: Stored) -> list[Finding]:
    """Every draw has one prediction for each example id, every label is below the number of logits, and every
    entry has the same examples and labels, in the plain set and in those of draws."""
    problems = [problem for faults in stored.unfit.values() for problem in faults]
    files = [s for folder in stored.folders if folder not in stored.broken for s in _sets(stored, folder)]
    return results("predictions are whole", problems, len(files), "prediction sets")


def _sets(stored: Stored, folder: str) -> list[str]:
    """Prediction sets of an entry; a plain set comes before those of its draws."""
    return sorted(prediction_sets(stored.store.files(folder)))


def unfit_entries(stored: Stored) -> dict[str, list[Problem]]:
    """Entries whose predictions cannot be compared -> what is wrong with them."""
    unfit: dict[str, list[Problem]] = {}
    first_seen: dict[str, tuple[str, pa.Table]] = {}  # plain set -> the first file read, its examples
    for folder in stored.folders:
        for eval_set in _sets(stored, folder) if folder not in stored.broken else ():
            name = prediction_file(eval_set)
            try:
                table = stored.store.prediction_table(folder, name)
            except ValueError as error:
                unfit.setdefault(folder, []).append((f"{folder}/{name}", str(error)))
                continue
            faults = list(_table_faults(table, folder.rsplit("/", 1)[-1]))
            if not faults:
                examples = _draw(table, table["draw"][0].as_py())
                first, expected = first_seen.setdefault(plain_set(eval_set), (f"{folder}/{name}", examples))
                if not examples.equals(expected):
                    faults = [("example_id, label", f"other examples or labels than in {first}")]
            if faults:
                unfit.setdefault(folder, []).extend((f"{folder}/{name} {column}", f) for column, f in faults)
    return unfit


def _draw(table: pa.Table, draw: int) -> pa.Table:
    """Examples of one draw of a prediction set."""
    return table.filter(pc.field("draw") == draw).select(["example_id", "label"])


def _table_faults(table: pa.Table, entry: str) -> Iterator[Problem]:
    """Faulty columns of one prediction set, and their faults."""
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


def splits_are_disjoint(stored: Stored) -> list[Finding]:
    """No example id of a trial is in two of the test, validation and training splits. Known of the training
    split are the examples that the backbone predicted (KL) and in-context demonstrations."""
    problems: dict[Problem, None] = {}
    for row in stored.sound:
        sets = {split: eval_sets(row)[split] for split in ("test", "validation")} | {"train": _train_set(row)}
        ids = {split: _ids(stored, row, name) for split, name in sets.items()}
        ids["train"] |= _demonstrated(stored, row)
        for one, other in itertools.combinations(ids, 2):
            if both := sorted(ids[one] & ids[other]):
                what = f"{len(both)} examples are also in {sets[other]}, first {both[0]!r}"
                problems[f"{sets[one]} example_id", what] = None
    return results("splits are disjoint", problems, len(stored.sound), stored.sound_trials)


def ood_prompts_are_the_tests(stored: Stored) -> list[Finding]:
    """The prompts of a trial's OOD sets use its test set's template: a detector would detect another one."""
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
    return results("OOD prompts are those of the test set", problems, pairs, "OOD sets of trials")


def _train_set(row: Row) -> str:
    """Name of the training split's prediction set, from the recipe: `Task.eval_set`."""
    content = {k: v for k, v in json.loads(row["recipe"])["task"].items() if k != "num_validation"}
    return f"{content['task'].replace('/', '-')}__train__{digest(content)[:8]}"


def _demonstrated(stored: Stored, row: Row) -> set[str]:
    """Ids of the demonstrations in the prompts of a trial's members."""
    records = [stored.members[m] for m in row["member_ids"] if m in stored.members]
    prompted = [record for record in records if is_in_context(record["recipe"])]
    return {example for record in prompted for example in record["context"]["demonstrations"]}


def _ids(stored: Stored, row: Row, eval_set: str) -> set[str]:
    """Example ids of a set in the trial's reference, or else its first member; empty if neither has it."""
    for folder in (reference_folder(row["reference_id"]), *pool(row)[:1]):
        if stored.is_sound(folder) and stored.store.has_predictions(folder, [eval_set]):
            return set(stored.predictions(folder, eval_set).example_ids)
    return set()


def zero_shot_is_not_below_chance(stored: Stored) -> list[Finding]:
    """The backbone's accuracy on a test set does not suggest swapped label words; see `below_chance`."""
    pairs = dict.fromkeys(
        (reference_folder(r["reference_id"]), plain_set(eval_sets(r)["test"]))
        for r in stored.done
        if r["decoding"] is None  # else it predicts tokens, and there are no classes to guess
    )
    here = [(f, s) for f, s in pairs if stored.is_sound(f) and stored.store.has_predictions(f, [s])]
    problems = []
    for folder, eval_set in here:
        predictions = stored.predictions(folder, eval_set)
        if (predictions.labels_N < 0).any():
            problems.append((f"{folder}/{prediction_file(eval_set)}", "a test set without labels"))
        elif fault := below_chance(predictions.logits_MNC[0], predictions.labels_N):
            problems.append((f"{folder}/{prediction_file(eval_set)}", fault))
    return results("zero-shot is not below chance", problems, len(here), "test sets of a backbone")


def below_chance(logits_NC: np.ndarray, labels_N: np.ndarray) -> str | None:
    """A message if the accuracy is more than three standard errors below chance, else None.

    Chance is the smaller of two accuracies: of a uniform guess among each example's classes, and of the
    predictions assigned to the examples at random. A backbone that always says "no" is poor on an unbalanced
    set, but its label words are not swapped.
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
