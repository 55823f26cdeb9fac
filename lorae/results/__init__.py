"""Rows of trials: what a sweep found, one row per trial, and its columns."""

from lorae.results.columns import (
    CONFORMAL,
    COST,
    COUNTED,
    FACTORS,
    FLAGS,
    LATER,
    METRICS,
    OLDER,
    OOD_METRICS,
    OOD_SEPARATOR,
    POOLED_FLAG,
    SCALED,
    SETS,
    TEXT_METRICS,
    trial_schema,
)
from lorae.results.cost import trial_cost
from lorae.results.reading import read_trials
from lorae.results.scores import row_answers, scaled_metrics, text_metrics, token_metrics, trial_metrics
from lorae.results.table import Pruned, trial_id, trials_table

__all__ = [
    "CONFORMAL",
    "COST",
    "COUNTED",
    "FACTORS",
    "FLAGS",
    "LATER",
    "METRICS",
    "OLDER",
    "OOD_METRICS",
    "OOD_SEPARATOR",
    "POOLED_FLAG",
    "SCALED",
    "SETS",
    "TEXT_METRICS",
    "Pruned",
    "read_trials",
    "row_answers",
    "scaled_metrics",
    "text_metrics",
    "token_metrics",
    "trial_cost",
    "trial_id",
    "trial_metrics",
    "trial_schema",
    "trials_table",
]
