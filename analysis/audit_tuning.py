"""Checks of `analysis.audit` on how the rows of a table were tuned."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from analysis.audit_trials import same, trial_name
from analysis.cells import PROMPTED
from analysis.findings import Finding, results
from analysis.rows import Row, eval_sets
from analysis.tuned import Tuning, tuning_of
from lorae.draws import plain_set
from lorae.identity import canonical
from lorae.metrics import pooled_nll
from lorae.store.names import member_folder
from lorae.trial import Trial
from lorae.trial.axes import value_at, with_values
from lorae.trial.tuning import values_text

if TYPE_CHECKING:
    from analysis.audit import Stored


def tuning_folders(row: Row, failed: bool = False) -> list[str]:
    """Folders of the members of the points at which a row's recipe was tuned: of the points with an NLL, or
    of those where a member `failed`."""
    points = (tuning_of(row) or {"points": []})["points"]
    kept = [point for point in points if (point["validation_nll"] is None) == failed]
    return [member_folder(member) for point in kept for member in point["member_ids"]]


def recipes_are_tuned_alike(stored: Stored) -> list[Finding]:
    """The trained rows of one sweep and test set were tuned over the same number of points, unless the sweep
    says otherwise."""
    compared: dict[tuple[str, str], list[Row]] = {}
    for row in stored.done:
        if row["members"] and row["method"] not in PROMPTED:
            compared.setdefault((row["sweep"], plain_set(eval_sets(row)["test"])), []).append(row)
    problems, num_tuned = [], 0
    for (sweep, test), rows in compared.items():
        tunings = [tuning_of(row) for row in rows]
        if not any(tunings):
            continue
        num_tuned += len(rows)
        num_points = [len(tuning["points"]) if tuning else 0 for tuning in tunings]
        least = num_points.index(min(num_points))
        if min(num_points) < max(num_points) and not all(t and t["uneven_tuning"] for t in tunings):
            what = f"{trial_name(rows[least])} over {min(num_points)} points, others over {max(num_points)}; "
            what += "tune all alike, or write Sweep(uneven_tuning=True)"
            problems.append((f"{sweep} on {test}", what))
    return results("recipes are tuned alike", problems, num_tuned, "trials of sweeps that tune")


def choices_come_from_validation(stored: Stored) -> list[Finding]:
    """Every tuned row has the values with the lowest mean validation NLL of single members. The NLLs
    recomputed from stored predictions agree within 1e-9, and the members are those of the row's recipe with
    the point's values."""
    tuned = [(row, trial, tuning) for row, trial in stored.trials if (tuning := tuning_of(row))]
    sound = [(r, t, tuning) for r, t, tuning in tuned if all(map(stored.is_sound, tuning_folders(r)))]
    problems = [(trial_name(r), fault) for r, t, tuning in sound for fault in _faults(stored, t, tuning)]
    return results("choices come from validation", problems, len(sound), "tuned trials")


def _faults(stored: Stored, trial: Trial, tuning: Tuning) -> Iterator[str]:
    nlls = []
    for point in tuning["points"]:
        where, members = values_text(point["values"]), point["member_ids"]
        try:
            expected = _members(trial, tuning, point)
        except ValueError as error:
            yield f"at {where} there is no such trial: {error}"
            return
        if members != expected:
            yield f"at {where} the table names {', '.join(members)}, the recipe's members are not these"
            return
        nlls.append(_nll(stored, tuning["eval_set"], members))
        if not same(point["validation_nll"], nlls[-1]):
            yield f"at {where} the table says {point['validation_nll']!r}, the logits {nlls[-1]!r}"
    best = min((i for i, nll in enumerate(nlls) if nll is not None), key=nlls.__getitem__, default=None)
    for axis, said in tuning["axes"].items():
        chosen = None if best is None else tuning["points"][best]["values"].get(axis)
        for what, value in {"the table": said.get("chosen"), "the recipe": value_at(trial, axis)}.items():
            if canonical(value) != canonical(chosen):
                yield f"{axis}: {what} says {value!r}, the lowest validation NLL is at {chosen!r}"


def _members(trial: Trial, tuning: Tuning, point: dict[str, Any]) -> list[str]:
    """Members of the row's recipe at a point; members that share every stream count once."""
    num = min(tuning["members"], len(point["member_ids"]) + 1)  # enough to tell; a table may state any
    judged = replace(trial, seed=tuning["seed"] or 0, members=num, combine="probs", draws=None)
    return list(dict.fromkeys(with_values(judged, point["values"]).member_ids()))


def _nll(stored: Stored, eval_set: str, members: list[str]) -> float | None:
    """Mean NLL of single members; None if one has no predictions."""
    folders = [member_folder(m) for m in members]
    if not all(stored.store.has_predictions(folder, [eval_set]) for folder in folders):
        return None
    nlls = []
    for folder in folders:
        predictions = stored.predictions(folder, eval_set)
        nlls.append(pooled_nll(predictions.logits_MNC, predictions.labels_N))
    return math.fsum(nlls) / len(nlls)
