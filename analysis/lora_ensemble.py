"""What every sweep of LoRA-Ensemble on an encoder shows, after the tables and figures of arXiv:2405.14438."""

from __future__ import annotations

from analysis.data import Trials
from analysis.differences import (
    against_rivals,
    ensembling,
    same_compute,
    same_parameters,
    same_predictions,
)
from analysis.figures import standard_figures
from analysis.figures_setting import metric_against_setting
from analysis.figures_sweep import diversity_against_gain, heat_maps, quality_against_cost
from analysis.paths import path_figures
from analysis.published import beside
from analysis.script import Content
from analysis.table import comparison
from analysis.weights import MAX_REPORT_ENTRIES, weight_table, with_updates
from lorae.results import OOD_SEPARATOR

CHANGES = (against_rivals, ensembling, same_parameters, same_compute, same_predictions)
SENSITIVITY = ("Xavier gain", "rank")


def metrics_of(trials: Trials) -> list[str]:
    """Accuracy, macro F1, NLL, calibration (10 bins, as in the paper, and 15) and OOD detection."""
    ood = [f"{name}{OOD_SEPARATOR}{task}" for task in trials.ood_tasks for name in ("auroc_msp", "aupr_msp")]
    scaled = ("ts_ensemble_nll", "ts_debiased_ce15")
    return ["acc", "f1", "ensemble_nll", "ece10", "ece15", "debiased_ce15", "brier", *ood, *scaled]


def content(trials: Trials) -> Content:
    """All rivals by `metrics_of` with their costs; matched baselines; diversity in function and in weight
    space; the published numbers."""
    metrics = metrics_of(trials)
    updated, notes = with_updates(trials, max_entries=MAX_REPORT_ENTRIES)
    tables = [
        comparison(trials, metrics),
        *(table for make in CHANGES if (table := make(trials)).blocks),
        weight_table(updated, notes),
        *beside(trials),
    ]
    plots = [
        *standard_figures(trials),
        *(
            plot
            for setting in SENSITIVITY
            for plot in metric_against_setting(trials, setting, "ensemble_nll")
        ),
        *heat_maps(trials),
        *diversity_against_gain(trials),
        *quality_against_cost(trials),
        *path_figures(trials),
    ]
    return Content(tables, plots)
