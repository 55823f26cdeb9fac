"""Titles and directions of table columns and figure axes, by their name in trials.parquet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lorae.metrics import DIRECTION, Direction
from lorae.results import CONFORMAL, METRICS, OOD_METRICS, OOD_SEPARATOR, SCALED, SETS
from lorae.texts import DIRECTION as TEXT_DIRECTION

if TYPE_CHECKING:
    from analysis.data import Trials

COST_COLUMNS = (
    *("train_tokens", "train_flops", "train_process_seconds", "train_seconds"),
    *("forwards_per_prediction", "trainable_parameters"),
)
FEW_TASKS = 2
SCALINGS = {"members_ts_": " members T-scaled", "ts_": " T-scaled"}
DIVERSITY_METRICS = ("disagreement", "jsd", "mutual_information", "error_correlation")
# The largest difference that does not matter, in the metric's own unit
MARGINS = {
    "acc": 0.01,
    "mcc": 0.01,
    "ensemble_nll": 0.005,
    "brier": 0.005,
    "debiased_ce15": 0.01,
    "auroc": 0.01,
    **dict.fromkeys(("exact_match", "token_f1", "number_match"), 0.01),
    **dict.fromkeys(("rouge_1", "rouge_2", "rouge_l", "rouge_l_e2e"), 0.01),
    "bleu": 1.0,
    "reference_nll": 0.005,
    "aupr_wrong": 0.01,
    "prr": 0.02,
    "aurc_wrong": 0.005,
    "cider": 0.05,
    "pearson": 0.01,
    **dict.fromkeys(("rmse", "mae", "crps"), 0.01),  # in the unit of the labels
}
TITLES = {
    "acc": "accuracy",
    "f1": "macro F1",
    "mcc": "Matthews correlation",
    "rmse": "RMSE",
    "mae": "MAE",
    "r2": "R²",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "crps": "CRPS",
    "picp90": "coverage of 90 % intervals",
    "width90": "width of 90 % intervals",
    "quantile_ece": "quantile CE",
    "lac_coverage90": "coverage of LAC sets",
    "lac_size90": "classes in LAC sets",
    "aps_coverage90": "coverage of APS sets",
    "aps_size90": "classes in APS sets",
    "conformal_picp90": "coverage of conformal 90 % intervals",
    "conformal_width90": "width of conformal 90 % intervals",
    "ensemble_nll": "NLL",
    "mean_member_nll": "mean member's NLL",
    "nll": "NLL",
    "nll_per_token": "NLL per token",
    "p_false": "1 - P(True)",
    "validation_nll": "validation NLL",
    "brier": "Brier",
    "token_f1": "token F1",
    "number_match": "right numbers",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "rouge_l_e2e": "ROUGE-L as E2E",
    "bleu": "BLEU",
    "chrf": "chrF",
    "nist": "NIST",
    "meteor": "METEOR",
    "cider": "CIDEr",
    "reference_nll": "NLL per token of references",
    "perplexity": "perplexity of references",
    "auroc_wrong": "AUROC of errors",
    "aupr_wrong": "AUPR of errors",
    "prr": "PRR",
    "aurc_wrong": "AURC",
    "quality_at_80": "quality at 80 % coverage",
    "calibrated_ece15": "calibrated ECE-15",
    "mean_tokens": "tokens",
    "not_finite": "not finite",
    "classwise_ece15": "classwise ECE-15",
    "debiased_ce15": "debiased CE-15",
    "aurc": "AURC",
    "jsd": "JSD",
    "num_intruder_dimensions": "intruders",
    "mean_update_norm": "mean update's norm",
    "mean_update_effective_rank": "mean update's effective rank",
    "mean_update_stable_rank": "mean update's stable rank",
    "mean_update_num_intruder_dimensions": "mean update's intruders",
    "r_nll_gain": "gain in NLL: r",
    "rho_nll_gain": "gain in NLL: rho",
    "r_acc_gain": "gain in accuracy: r",
    "rho_acc_gain": "gain in accuracy: rho",
    "train_tokens": "train tokens",
    "train_flops": "train FLOPs",
    "train_process_seconds": "train CPU/GPU s",
    "train_seconds": "train wall s",
    "tuning_tokens": "tuning tokens",
    "predict_seconds": "predict s",
    "forwards_per_prediction": "forwards",
    "trainable_parameters": "parameters",
    "law_nll": "law",
    "next_gain": "gain of one more",
    "member_tokens": "train tokens of a member",
    "member_flops": "train FLOPs of a member",
    "worth": "worth training",
    "pool": "members of a pool",
    "regularizers": "regulariser",
    "combine": "averaged",
}


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        name: as in trials.parquet.
        kind: "text"; "metric", a fraction or nats; "pooled", its mean over folds with the
            standard deviation; "difference" of a metric from a baseline; "estimate", a number with or without
            its interval; "level", the same for a metric, without a sign; "amount", a cost or a count; "data",
            machine-readable text that appears only in CSV.
        decimals: of every kind but texts and amounts.
    """

    name: str
    kind: Literal["text", "metric", "pooled", "difference", "estimate", "level", "amount", "data"]
    decimals: int = 3

    @property
    def head(self) -> str:
        """Title and direction."""
        arrow = {"lower": " ↓", "higher": " ↑", "none": ""}[direction(self.name)]
        return ("Δ " if self.kind == "difference" else "") + title(self.name) + arrow


def direction(column: str) -> Direction:
    """Whether lower or higher is better in a column of trials.parquet; "none" for costs and the like."""
    name = column.split(OOD_SEPARATOR)[0]
    for prefix in SCALINGS:
        name = name.removeprefix(prefix)
    known = DIRECTION | TEXT_DIRECTION
    return known.get("ensemble_nll" if name in ("nll", "validation_nll") else name, "none")


def margin_name(column: str) -> str:
    """Key of a tested column's margin in MARGINS."""
    metric = column.partition(OOD_SEPARATOR)[0].removeprefix("ts_")
    return "auroc" if metric.startswith("auroc_") else metric


def margins(texts: Sequence[str]) -> dict[str, float]:
    """Margins by metric from words such as "ensemble_nll=0.01".

    Raises:
        ValueError: an unknown metric, or a margin that is not above 0.
    """
    found = {}
    for text in texts:
        metric, _, number = text.partition("=")
        try:
            found[metric] = float(number)
        except ValueError:
            found[metric] = math.nan
        if metric not in MARGINS or not 0 < found[metric] < math.inf:
            raise ValueError(
                f"margin {text!r}: must be METRIC=X with X > 0 and METRIC one of {', '.join(MARGINS)}; write "
                "ensemble_nll=0.01"
            )
    return found


def title(column: str) -> str:
    """A column's name for people: `auroc_msp__greys` is "AUROC msp, greys", `ts_ece15` "ECE-15 T-scaled" and
    `members_ts_ece15` "ECE-15 members T-scaled"."""
    metric, _, task = column.partition(OOD_SEPARATOR)
    prefix = next((prefix for prefix in SCALINGS if metric.startswith(prefix)), "")
    base = metric.removeprefix(prefix)
    words = TITLES.get(base) or base.replace("_", " ")
    for acronym in ("auroc", "aupr", "fpr95"):
        words = words.replace(acronym, acronym.upper())
    for error in ("ece", "ace", "mce"):
        if base.startswith(error):
            words = f"{error.upper()}-{base.removeprefix(error)}"
    return words + SCALINGS.get(prefix, "") + (f", {task}" if task else "")


def ood_columns(trials: Trials) -> list[str]:
    """AUROC by the maximum probability for each OOD task; if there are many, they have their own table."""
    few = trials.ood_tasks if len(trials.ood_tasks) <= FEW_TASKS else ()
    return [f"auroc_msp{OOD_SEPARATOR}{task}" for task in few]


def default_metrics(trials: Trials) -> list[str]:
    """Accuracy, NLL, calibration and OOD detection by the maximum probability; NLL and calibration error also
    temperature-scaled. Of numbers errors, correlation, NLL, and calibration of intervals."""
    ood = ood_columns(trials)
    classes = [*("acc", "ensemble_nll", "ece15", "debiased_ce15", "brier"), *ood]
    values = ["rmse", "mae", "pearson", "spearman", "ensemble_nll", "crps", "quantile_ece"]
    answers = [
        [*classes, "ts_ensemble_nll", "ts_debiased_ce15"] if _has(trials, "acc") else [],
        [*values, "ts_ensemble_nll"] if _has(trials, "rmse") else [],
    ]
    return list(dict.fromkeys(name for of_answer in answers for name in of_answer))


def _has(trials: Trials, column: str) -> bool:
    return any(row.get(column) is not None for row in trials.rows)


def tested_metrics(trials: Trials) -> list[str]:
    """The `default_metrics` whose differences are tested; not ECE-15, which favours confident models."""
    return [column for column in default_metrics(trials) if trials.estimates.is_tested(column)]


def all_metrics(trials: Trials) -> list[str]:
    """Every metric column of the sweep's rows, and the temperature-scaled debiased calibration error."""
    ood = [f"{name}{OOD_SEPARATOR}{task}" for task in trials.ood_tasks for name in OOD_METRICS]
    return [*METRICS, *SCALED, *CONFORMAL, *SETS, "ts_debiased_ce15", "validation_nll", *ood]
