"""One row per trial, computed from stored logits alone: factors, metrics, cost and provenance.

`sweeps/<name>/trials.parquet` is rebuilt whole from members and references, so it cannot disagree with them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from lorae import ensemble, metrics, untrusted
from lorae.combinations import COMBINATIONS, SOUPS
from lorae.draws import Fitted
from lorae.identity import canonical_json, digest
from lorae.metrics import regression
from lorae.planning.choice import TUNING, Choice
from lorae.recalibration import cross_fitted_variance
from lorae.store.ahead import ahead
from lorae.store.answers import Answer, answer_set
from lorae.store.names import (
    LATER_RECORD,
    member_folder,
    pool_folders,
    soup_folder,
    texts_folder,
    trials_file,
)
from lorae.store.predictions import SCHEMA, Predictions
from lorae.store.store import Store
from lorae.tasks.base import Split, Task
from lorae.texts.kinds import NUMBERS, kind_of
from lorae.texts.quality import EXAMPLE_METRICS
from lorae.trial import Trial

FACTORS = {
    **dict.fromkeys(("backbone", "task", "scoring", "precision"), pa.string()),
    "max_tokens": pa.int32(),
    **dict.fromkeys(
        ("method", "init", "targets", "regularizers", "budget", "schedule", "diversity", "draws"),
        pa.string(),
    ),
    "rank": pa.int32(),
    **dict.fromkeys(("alpha", "lr", "warmup_frac", "weight_decay", "max_grad_norm"), pa.float64()),
    "seed": pa.int32(),
    "members": pa.int32(),
    "combine": pa.string(),
}
METRICS = [name for name in metrics.DIRECTION if not name.startswith(("auroc", "aupr", "fpr95"))]
# Of the answers that a trial writes: in lock-step by the members' mean probability, or alone
TEXT_METRICS = ("exact_match", "token_f1", "number_match")
OOD_METRICS = [name for name in metrics.DIRECTION if name.startswith(("auroc", "aupr", "fpr95"))]
# By cross-fitted temperatures: of the pooled prediction, and of each member before pooling. A flag says why
# its columns are null
FLAGS = POOLED_FLAG, MEMBERS_FLAG = "temperature_flag", "members_temperature_flag"
OF_TOKENS = "predictions are of the tokens of texts"
OLDER = "fitted on validation by an older lorae; repeat the sweep"
SCALED = [
    *("temperature", "ts_ensemble_nll", "ts_brier", "ts_ece15"),
    *("members_ts_ensemble_nll", "members_ts_ece15"),
    "ts_quantile_ece",
]
# Of numbers by intervals that hold 90 % of the validation examples
CONFORMAL = ["conformal_picp90", "conformal_width90"]
# Of classes the sets whose thresholds are found on validation, see `metrics.set_summary`
SETS = ["lac_coverage90", "lac_size90", "aps_coverage90", "aps_size90"]
NO_VARIANCE = "members predict a mean without a variance"
COUNTED = ("train_flops", "train_process_seconds")  # null where a member or fit is of a lorae that did not
COST = {
    "train_tokens": pa.int64(),
    "train_flops": pa.float64(),  # see `lorae.planning.flops`
    "train_seconds": pa.float64(),
    "train_process_seconds": pa.float64(),  # see `lorae.engine.clock`
    "predict_seconds": pa.float64(),
    "trainable_parameters": pa.int64(),
    "forwards_per_prediction": pa.int32(),
    "stored_bytes": pa.int64(),
}
LATER = {  # columns that tables of an older lorae lack
    **dict.fromkeys(
        (
            *SCALED,
            *COUNTED,
            *TEXT_METRICS,
            *metrics.VALUE_METRICS,
            *CONFORMAL,
            *SETS,
            "debiased_ce15",
            "mcc",
            "credal_width",
        ),
        pa.float64(),
    ),
    "decoding": pa.string(),
    "tuning": pa.string(),
}
OOD_SEPARATOR = "__"  # an OOD column is "<metric>__<task>"


def _targets(value: Any) -> bool:
    """Names of layers, or nothing."""
    return value is None or (type(value) is list and all(type(name) is str for name in value))


def _init(value: Any) -> bool:
    """A spec with a type, a name, or nothing."""
    return type(value.get("type")) is str if type(value) is dict else untrusted.text_if_any(value)


_SUMMED = {
    **dict.fromkeys(("train_tokens", "trainable_parameters"), untrusted.count),
    **dict.fromkeys(("train_seconds", "predict_seconds"), untrusted.number),
}
_COUNTED = dict.fromkeys((*COUNTED, "shared_flops"), untrusted.amount)
_LATER = {"cost": {"predict_seconds": untrusted.number}}
_JSON = {  # what readers of these columns rely on
    "eval_sets": {"test": str, "validation": str, str: str},
    "recipe": {
        "backbone": {"type": str},
        "task": {"task": str},
        "method": {"type": str, "targets": _targets, "init": _init},
        "regularizers": [{"type": str}],
        "budget": {},
        "precision": str,
    },
    "provenance": dict.fromkeys(("command", "commit"), untrusted.text_if_any),
}
_NEVER_NULL = ("trial_id", "sweep", "status", *FACTORS, "member_ids", "reference_id", *_JSON)


def trial_schema(ood_tasks: Sequence[str]) -> pa.Schema:
    """Columns of trials.parquet for a sweep with these OOD tasks, in order."""
    columns: list[tuple[str, pa.DataType]] = [
        ("trial_id", pa.string()),
        ("sweep", pa.string()),
        ("status", pa.string()),  # "done", "failed", or "pruned" by a search; `error` says why
        ("error", pa.string()),
        *FACTORS.items(),
        ("num_examples", pa.int32()),
        *(
            (name, pa.float64())
            for name in [*METRICS, *TEXT_METRICS, *SCALED, *CONFORMAL, *SETS, "validation_nll"]
        ),
        *((name, pa.string()) for name in FLAGS),
        ("pruned_step", pa.int32()),  # where a search stopped training; `validation_nll` is of that step
        *((f"{name}{OOD_SEPARATOR}{task}", pa.float64()) for task in ood_tasks for name in OOD_METRICS),
        *COST.items(),
        ("member_ids", pa.list_(pa.string())),
        ("reference_id", pa.string()),
        ("eval_sets", pa.string()),  # JSON: "test", "validation" and OOD task names -> prediction set
        ("decoding", pa.string()),  # in the names of the answers; null where none are written
        ("recipe", pa.string()),  # canonical JSON
        (
            "tuning",
            pa.string(),
        ),  # JSON, see `TUNING`; null where the sweep does not tune, or nothing is trained
        ("provenance", pa.string()),  # JSON
    ]
    return pa.schema(columns, metadata=SCHEMA)


def trial_id(trial: Trial) -> str:
    """Identity of a row: its recipe, seed, number of members, combination rule, and test set with draws."""
    parts = {name: getattr(trial, name) for name in ("seed", "members", "combine", "diversity")}
    return digest(parts | {"recipe": trial.recipe(), "test": trial.eval_set(trial.task, "test")})


@dataclass(frozen=True)
class Pruned:
    """Where a search stopped the stack of a member: steps done, and the ensemble's validation NLL there."""

    step: int
    num_steps: int
    validation_nll: float


def trials_table(
    store: Store,
    sweep: str,
    trials: Sequence[tuple[Trial, Sequence[Task]]],
    provenance: dict[str, Any],
    pruned: Mapping[str, Pruned] = MappingProxyType({}),
    choices: Mapping[Trial, Choice] = MappingProxyType({}),
) -> pa.Table:
    """Rows of a sweep's trials, each with its OOD tasks.

    A trial without all its predictions is "pruned" if a search stopped one of its members, else "failed"; so
    is one whose tuning chose nothing.

    Args:
        pruned: by member id.
        choices: of the trials that were tuned.
    """
    provenance_text = json.dumps(provenance)

    def read(row: tuple[Trial, Sequence[Task]]) -> _Stored:
        return _stored(store, *row, choices.get(row[0]))

    with store.remembering():
        stored = ahead(read, trials, size=lambda found: found.num_bytes)
        rows = [
            {"sweep": sweep, **found.identity, "provenance": provenance_text} | _outcome(store, found, pruned)
            for found in stored
        ]
    names = list(dict.fromkeys(task.name for _, ood in trials for task in ood))
    return pa.Table.from_pylist(rows, schema=trial_schema(names))


def read_trials(store: Store, sweep: str) -> pa.Table:
    """`sweeps/<sweep>/trials.parquet`, with the columns of `trial_schema` and rows that can be relied on.

    Raises:
        ValueError: there is no such sweep, or its table is of an older lorae, damaged or no table of trials.
    """
    where = trials_file(sweep)
    table, expected = store.read_table(sweep), trial_schema(())
    table = _with_later_columns(table)
    absent = [name for name in expected.names if name not in table.column_names]
    if absent:
        raise ValueError(
            f"{where} has no column {', '.join(absent)}: an older lorae wrote it; repeat the sweep, which "
            "rebuilds the table and trains nothing that is stored"
        )
    metrics_of_ood = [name for name in table.column_names if name not in expected.names]
    schema = pa.schema([*expected, *((name, pa.float64()) for name in metrics_of_ood)])
    if not table.schema.equals(pa.schema([schema.field(name) for name in table.column_names])):
        raise ValueError(f"{where} has columns of other types; delete it and repeat the sweep")
    for number, row in enumerate(table.to_pylist()):
        if fault := _row_fault(row) or (row["sweep"] != sweep and f"it is of the sweep {row['sweep']}"):
            raise ValueError(f"{where} row {number}: {fault}; delete it and repeat the sweep")
        shapes = _JSON if row["tuning"] is None else _JSON | {"tuning": TUNING}
        for column, shape in shapes.items():
            untrusted.json_object(row[column].encode(), f"{where} row {number} {column}", shape)
    return table


def _with_later_columns(table: pa.Table) -> pa.Table:
    """A table of a lorae that lacked some columns, with nulls in them. Its temperatures were fitted on
    validation, and are no values of today's columns."""
    if POOLED_FLAG not in table.column_names:
        table = table.drop_columns([name for name in SCALED if name in table.column_names])
        for flag in FLAGS:
            table = table.append_column(flag, pa.array([OLDER] * len(table), pa.string()))
    for name, kind in LATER.items():
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table), kind))
    return table


def _row_fault(row: dict[str, Any]) -> str | None:
    if null := [name for name in _NEVER_NULL if row[name] is None]:
        return f"{', '.join(null)} is null"
    if row["status"] not in ("done", "failed", "pruned"):
        return f"status {row['status']!r}, must be done, failed or pruned"
    if row["status"] != "done" and row["error"] is None:
        return f"{row['status']} without an error"
    if row["combine"] not in COMBINATIONS:
        return f"combine {row['combine']!r}, must be {', '.join(COMBINATIONS)}"
    if row["members"] < 0 or None in row["member_ids"]:
        return f"members={row['members']}, member_ids {row['member_ids']}"
    return None


@dataclass(frozen=True)
class _Stored:
    """What the store has for a row.

    Attributes:
        identity: columns of the row that are known without the store.
        predictions: by "test", "validation" and OOD task; none where there is a fault.
        answers: to the test set, of tasks whose answer is text.
        columns: of the row, that are not computed from predictions.
        fault: why the row cannot be computed, or None.
    """

    trial: Trial
    ood: Sequence[Task]
    choice: Choice | None
    folders: list[str]
    identity: dict[str, Any]
    predictions: dict[str, Predictions]
    answers: tuple[Answer, ...]
    columns: dict[str, Any]
    fault: str | None

    @property
    def num_bytes(self) -> int:
        return sum(found.logits_MNC.nbytes for found in self.predictions.values())


def _stored(store: Store, trial: Trial, ood: Sequence[Task], choice: Choice | None) -> _Stored:
    folders = pool_folders(trial.member_ids(), trial.reference_id(), trial.soup)
    splits: tuple[Split, Split] = ("validation", "test")
    eval_sets = {split: trial.eval_set(trial.task, split) for split in splits}
    eval_sets |= {task.name: trial.eval_set(task, "test") for task in ood}
    identity, columns, fault = _identity(trial, eval_sets), dict[str, Any](), None
    predictions, answers = dict[str, Predictions](), ()
    try:
        columns["tuning"] = choice and json.dumps(choice.record(store, trial.member_ids()))
        if untuned := choice and choice.failure(store):
            raise ValueError(untuned)
        predictions = {name: store.predictions(folders, s) for name, s in eval_sets.items()}
        if trial.task.scoring.writes_text:
            answers = row_answers(store, identity, eval_sets["test"])
        columns |= trial_cost(store, trial)
        if trial.soup and store.is_of_others(trial.member_ids(), trial.soup):
            raise ValueError(f"{folders[0]} is of members that were trained again; repeat the sweep")
    except ValueError as error:
        fault = str(error)
    return _Stored(trial, ood, choice, folders, identity, predictions, answers, columns, fault)


def _identity(trial: Trial, eval_sets: Mapping[str, str]) -> dict[str, Any]:
    scoring = trial.task.scoring
    return {
        "trial_id": trial_id(trial),
        **trial.factors(),
        "member_ids": trial.member_ids(),
        "reference_id": trial.reference_id(),
        "decoding": scoring.decoding if scoring.writes_text else None,
        "eval_sets": json.dumps(eval_sets),
        "recipe": canonical_json(trial.recipe()),
    }


def _outcome(store: Store, found: _Stored, pruned: Mapping[str, Pruned]) -> dict[str, Any]:
    """Status, metrics and costs of a row, or why it has none; what is damaged is set aside."""
    trial, fault = found.trial, found.fault
    if fault is None:
        rule, names = COMBINATIONS[trial.combine].rule, [task.name for task in found.ood]
        try:
            of_tokens = trial.task.scoring.writes_text
            scores = trial_metrics(found.predictions, names, rule, len(found.folders), of_tokens)
            scores |= text_metrics(found.answers) if of_tokens else {}
            return {"status": "done", **found.columns, **scores}
        except ValueError as error:
            fault = str(error)
    members = [*trial.member_ids(), *(found.choice.member_ids if found.choice else ())]
    texts = [texts_folder(trial.member_ids())] if trial.writes_together else []
    store.set_damaged_aside(dict.fromkeys([*found.folders, *texts, *map(member_folder, members)]))
    row = {"tuning": found.columns.get("tuning")}
    if stop := next((pruned[m] for m in trial.member_ids() if m in pruned), None):
        why = f"stopped by the search after {stop.step} of {stop.num_steps} steps"
        score = {"pruned_step": stop.step, "validation_nll": stop.validation_nll}
        return row | {"status": "pruned", "error": why} | score
    failures = [f"{m}: {reason}" for m in trial.member_ids() if (reason := store.failure(m))]
    untuned = found.choice and found.choice.failure(store)
    return row | {"status": "failed", "error": untuned or "; ".join(failures) or fault}


def trial_metrics(
    predictions: dict[str, Predictions],
    ood: Sequence[str],
    rule: metrics.Rule,
    num_entries: int,
    of_tokens: bool = False,
) -> dict[str, float | str | None]:
    """All metric columns of a row from its predictions on "test", "validation" and the OOD tasks.

    Args:
        num_entries: members, or soups, or the backbone itself, whose draws the predictions are.
        of_tokens: predictions are of the tokens of texts, which have `token_metrics` alone.
    """
    if of_tokens:
        return token_metrics(predictions, rule)
    test, validation = predictions["test"], predictions["validation"]
    if metrics.is_of_values(test.labels_N):
        return _value_metrics(predictions, ood, rule)
    pooled_validation = metrics.combine(validation.logits_MNC, rule)
    found: dict[str, float | str | None] = {"num_examples": len(test.labels_N)}
    found |= metrics.summary(test.logits_MNC, test.labels_N, rule)
    found |= {"validation_nll": metrics.ensemble_nll(pooled_validation, validation.labels_N)}
    found |= scaled_metrics(test, rule, num_entries)
    pooled_test = metrics.combine(test.logits_MNC, rule)
    found |= metrics.set_summary(pooled_validation, validation.labels_N, pooled_test, test.labels_N)
    for task in ood:
        separated = metrics.ood_summary(test.logits_MNC, predictions[task].logits_MNC, rule)
        found |= {f"{name}{OOD_SEPARATOR}{task}": value for name, value in separated.items()}
    return found


def _value_metrics(
    predictions: dict[str, Predictions], ood: Sequence[str], rule: metrics.Rule
) -> dict[str, float | str | None]:
    """The same of numbers; all else is null. Scaled is the mixture: members before pooling are not."""
    test, validation = predictions["test"], predictions["validation"]
    mixture, gold_N = metrics.Mixture.of(test.logits_MNC, rule), test.labels_N
    found: dict[str, float | str | None] = {"num_examples": len(gold_N)}
    found |= metrics.value_summary(test.logits_MNC, gold_N, rule)
    found["validation_nll"] = metrics.pooled_nll(validation.logits_MNC, validation.labels_N)
    found |= dict.fromkeys(FLAGS, NO_VARIANCE)
    if mixture.has_variance:
        fit = cross_fitted_variance(mixture, gold_N)
        found |= {POOLED_FLAG: fit.flag, MEMBERS_FLAG: "a mixture is scaled, not its members"}
        if not fit.flag:
            found["temperature"] = fit.temperature
            found["ts_ensemble_nll"] = regression.density_nll(fit.mixture, gold_N)
            found["ts_quantile_ece"] = regression.quantile_ece(fit.mixture, gold_N)
    factor = regression.conformal_factor(metrics.Mixture.of(validation.logits_MNC, rule), validation.labels_N)
    if np.isfinite(factor):
        half_N = factor * regression.conformal_scale(mixture)
        inside = regression.absolute_errors(mixture, gold_N) <= half_N
        found |= dict(zip(CONFORMAL, (float(inside.mean()), float(2 * half_N.mean()))))
    for task in ood:
        separated = metrics.value_ood_summary(test.logits_MNC, predictions[task].logits_MNC)
        found |= {f"{name}{OOD_SEPARATOR}{task}": value for name, value in separated.items()}
    return found


def token_metrics(predictions: dict[str, Predictions], rule: metrics.Rule) -> dict[str, float | str | None]:
    """The metric columns of a row whose predictions are of the tokens of references: NLL per token, whose
    exponential is the perplexity. A token among all others is no class, so all else is null."""
    test, validation = predictions["test"], predictions["validation"]
    found = metrics.summary(test.logits_MNC, test.labels_N, rule)
    pooled_validation = metrics.combine(validation.logits_MNC, rule)
    return {
        "num_examples": len({name.rpartition("#")[0] for name in test.example_ids}),
        **{name: found[name] for name in ("ensemble_nll", "mean_member_nll")},
        "validation_nll": metrics.ensemble_nll(pooled_validation, validation.labels_N),
        **dict.fromkeys(FLAGS, OF_TOKENS),
    }


def row_answers(store: Store, row: Mapping[str, Any], eval_set: str) -> tuple[Answer, ...]:
    """The stored answers of a row's model or members to a set, with what each says of all; of a soup those of
    its members, and its own.

    Raises:
        ValueError: they are missing or damaged, or of members that were trained again.
    """
    name, ids = answer_set(eval_set, row["decoding"]), row["member_ids"]
    if len(ids) < 2:
        (folder,) = pool_folders(ids, row["reference_id"], None)
        return store.answers(folder, name).answers
    found = store.answers(texts_folder(ids), name)
    if found.members != store.weight_checksums(ids):
        raise ValueError(f"{texts_folder(ids)} is of members that were trained again; repeat the sweep")
    if row["combine"] not in SOUPS:
        return found.answers
    soup = store.answers(soup_folder(ids, row["combine"]), name).answers
    return (*found.answers, *(answer for answer in soup if answer.kind == "soup"))


def text_metrics(answers: Sequence[Answer]) -> dict[str, float | None]:
    """TEXT_METRICS of a row's answers, means over the examples with references; null where they are not
    defined, as the number of an answer in words."""
    gold: dict[str, list[str]] = {}
    for answer in answers:
        if answer.kind == "reference":
            gold.setdefault(answer.example_id, []).append(answer.text)
    several = max(answer.source for answer in answers) > 0
    kinds = {answer.kind for answer in answers if not (answer.kind == "greedy" and several)}
    kind = next((kind for kind in ("soup", "lockstep", "greedy") if kind in kinds), None)
    texts = {a.example_id: a.text for a in answers if a.kind == kind and not a.draw and a.example_id in gold}
    has_numbers = kind_of([*gold.values()]) is NUMBERS
    defined = [n for n in TEXT_METRICS if texts and (has_numbers or n != NUMBERS.right)]
    means = {n: np.mean([EXAMPLE_METRICS[n](text, gold[e]) for e, text in texts.items()]) for n in defined}
    return dict.fromkeys(TEXT_METRICS) | {name: float(mean) for name, mean in means.items()}


def scaled_metrics(test: Predictions, rule: metrics.Rule, num_entries: int) -> dict[str, float | str | None]:
    """The columns of SCALED and their flags: of predictions that are calibrated after pooling, and before."""
    logits_MNC, labels_N = test.logits_MNC, test.labels_N
    pooled = ensemble.cross_fitted(metrics.combine(logits_MNC, rule), labels_N)
    members = ensemble.cross_fitted_members(logits_MNC, labels_N, len(logits_MNC) // num_entries, rule)
    flag = next((f"member {m}: {fit.flag}" for m, fit in enumerate(members) if fit.flag), None)
    found: dict[str, float | str | None] = dict.fromkeys(SCALED)
    found |= {POOLED_FLAG: pooled.flag, MEMBERS_FLAG: flag}
    if not pooled.flag:
        found |= {
            "temperature": pooled.temperature,
            "ts_ensemble_nll": metrics.ensemble_nll(pooled.logp_NC, labels_N),
            "ts_brier": metrics.brier(pooled.logp_NC, labels_N),
            "ts_ece15": metrics.ece15(pooled.logp_NC, labels_N),
        }
    if not flag:
        logp_NC = metrics.combine(np.stack([fit.logp_NC for fit in members]), rule)
        found |= {
            "members_ts_ensemble_nll": metrics.ensemble_nll(logp_NC, labels_N),
            "members_ts_ece15": metrics.ece15(logp_NC, labels_N),
        }
    return found


def trial_cost(store: Store, trial: Trial) -> dict[str, Any]:
    """All cost columns of a row, summed over the trial's distinct members; zero for the backbone itself.

    Members of `LastLayer` share the backbone's forward passes: one over each training row, and one per
    prediction; so do those of a soup when it predicts. Fitting draws to a member is training;
    the backward passes of `Laplace` count as forward ones.
    """
    members = list(dict.fromkeys(trial.member_ids()))
    folders = [member_folder(m) for m in members]
    costs = [store.record(folder, {"cost": _SUMMED | _COUNTED})["cost"] for folder in folders]
    fits = [store.fit_record(m, trial.draws) for m in members] if isinstance(trial.draws, Fitted) else []
    total: dict[str, Any] = {name: sum(c[name] for c in costs) for name in _SUMMED}
    for name in COUNTED:
        counts = [c.get(name) for c in costs] + [fit.get(name.replace("train", "search")) for fit in fits]
        total[name] = None if None in counts else sum(counts)
    total["train_seconds"] += sum(fit["search_seconds"] for fit in fits)
    later = [f for f in folders if LATER_RECORD in store.files(f)]
    total["predict_seconds"] += sum(
        store.record(f, _LATER, LATER_RECORD)["cost"]["predict_seconds"] for f in later
    )
    total["trainable_parameters"] *= trial.optimizer.cycles or 1  # a state is stored of each cycle
    stored = sum(store.size_bytes(folder) for folder in folders)
    forwards = max(1, trial.members * trial.num_draws)
    if fits:
        forwards = trial.members * fits[0].get("passes", trial.num_draws)
    if trial.soup:
        soup = store.soup_record(trial.member_ids(), trial.soup)
        forwards, total["predict_seconds"] = 1, soup["cost"]["predict_seconds"]
    if trial.method.regime == "features":
        forwards, total["train_tokens"] = 1, max((c["train_tokens"] for c in costs), default=0)
        if total["train_flops"] is not None:
            shared = [c.get("shared_flops") or 0.0 for c in costs]
            total["train_flops"] -= sum(shared) - max(shared, default=0.0)
    return total | {"forwards_per_prediction": forwards, "stored_bytes": stored}
