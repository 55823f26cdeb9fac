"""The columns of trials.parquet."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from lorae import metrics
from lorae.store.predictions import SCHEMA

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
