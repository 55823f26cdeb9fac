"""All metrics of one table row, from one probability tensor, and each metric's direction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from lorae.metrics import calibration, diversity, ood, proper, selective
from lorae.metrics.mixtures import is_of_values
from lorae.metrics.probability import Direction, Rule, Undefined, combine
from lorae.metrics.regression import (
    VALUE_METRICS,
    VALUE_SCORES,
    Mixture,
    pooled_loss,
    value_scores,
)

Arguments = Literal["pooled", "members", "logits"]

# In-distribution metrics: direction; arguments, as `summary` names them; function
METRICS: dict[str, tuple[Direction, Arguments, Callable[..., float]]] = {
    "acc": ("higher", "pooled", proper.acc),
    "f1": ("higher", "pooled", proper.f1),
    "mcc": ("higher", "pooled", proper.mcc),
    "ensemble_nll": ("lower", "pooled", proper.ensemble_nll),
    "mean_member_nll": ("lower", "members", proper.mean_member_nll),
    "brier": ("lower", "pooled", proper.brier),
    "ece15": ("lower", "pooled", calibration.ece15),
    "ece10": ("lower", "pooled", calibration.ece10),
    "ace15": ("lower", "pooled", calibration.ace15),
    "mce15": ("lower", "pooled", calibration.mce15),
    "classwise_ece15": ("lower", "pooled", calibration.classwise_ece15),
    "debiased_ce15": ("lower", "pooled", calibration.debiased_ce15),
    "signed_gap": ("none", "pooled", calibration.signed_gap),
    "aurc": ("lower", "pooled", selective.aurc),
    "acc_at_80_coverage": ("higher", "pooled", selective.acc_at_80_coverage),
    "disagreement": ("none", "logits", diversity.disagreement),
    "disagreement_per_error": ("none", "members", diversity.disagreement_per_error),
    "jsd": ("none", "logits", diversity.jsd),
    "credal_width": ("none", "logits", diversity.credal_width),
    "mutual_information": ("none", "logits", diversity.mutual_information),
    "error_correlation": ("none", "members", diversity.error_correlation),
}
DIRECTION: dict[str, Direction] = {
    **{name: direction for name, (direction, _, _) in METRICS.items()},
    **{f"auroc_{score}": "higher" for score in ood.SCORES},
    **{f"aupr_{score}": "higher" for score in ood.SCORES},
    **{f"fpr95_{score}": "lower" for score in ood.SCORES},
    **{name: direction for name, (direction, _) in VALUE_METRICS.items()},
    **{f"{metric}_{score}": "higher" for metric in ("auroc", "aupr") for score in VALUE_SCORES},
    **{f"fpr95_{score}": "lower" for score in VALUE_SCORES},
}


def summary(logits_MNC: np.ndarray, labels_N: np.ndarray, rule: Rule = "probs") -> dict[str, float | None]:
    """Every in-distribution metric of an ensemble by name; None if undefined (such as diversity of one).

    A soup, "weights", is one model, whose prediction does not determine its members' NLLs, so
    `mean_member_nll` is None. For a single member it is the member's own NLL.

    Args:
        logits_MNC: class scores of each member, -inf for a class that an example lacks.
        labels_N: gold class in [0, C).
        rule: what is averaged over members for the pooled prediction; diversity does not depend on it.
    Raises:
        ValueError: as `combine` and `checked`.
    """
    arguments: dict[Arguments, tuple[np.ndarray, ...]] = {
        "pooled": (combine(logits_MNC, rule), labels_N),
        "members": (logits_MNC, labels_N),
        "logits": (logits_MNC,),
    }
    has_members = rule != "weights"
    return {
        name: _or_none(metric, *arguments[which]) if which == "pooled" or has_members else None
        for name, (_, which, metric) in METRICS.items()
    }


def ood_summary(
    in_logits_MNC: np.ndarray, ood_logits_MNC: np.ndarray, rule: Rule = "probs"
) -> dict[str, float | None]:
    """auroc, aupr and fpr95 of every score, named like `auroc_msp`; None if one member has no such score.

    Args:
        in_logits_MNC: class scores on the in-distribution examples.
        ood_logits_MNC: the same members' scores on the OOD examples; N and C may differ.
    Raises:
        ValueError: the numbers of members differ, or as `combine`.
    """
    if len(in_logits_MNC) != len(ood_logits_MNC):
        raise ValueError(
            f"{len(in_logits_MNC)} members in distribution, {len(ood_logits_MNC)} out of it; "
            "must be the same members; predict the missing ones on the OOD task"
        )
    return _separation(ood.SCORES, ood.scores(in_logits_MNC, rule), ood.scores(ood_logits_MNC, rule))


def value_ood_summary(in_values_MNC: np.ndarray, ood_values_MNC: np.ndarray) -> dict[str, float | None]:
    """`ood_summary` for numbers, with the scores of VALUE_SCORES."""
    return _separation(VALUE_SCORES, value_scores(in_values_MNC), value_scores(ood_values_MNC))


def pooled_nll(logits_MNC: np.ndarray, labels_N: np.ndarray) -> float:
    """The loss for tuning and early stopping, in nats: NLL of the members' mean probability. For numbers, NLL
    of their mixture; without a variance, its mean square error.

    Args:
        labels_N: classes, or numbers if of a floating type.
    """
    if is_of_values(labels_N):
        return pooled_loss(Mixture.of(logits_MNC), labels_N)
    return proper.ensemble_nll(combine(logits_MNC, "probs"), labels_N)


def _separation(
    names: Sequence[str], in_scores: Mapping[str, np.ndarray], ood_scores: Mapping[str, np.ndarray]
) -> dict[str, float | None]:
    return {
        f"{metric.__name__}_{score}": metric(in_scores[score], ood_scores[score])
        if score in in_scores
        else None
        for metric in (ood.auroc, ood.aupr, ood.fpr95)
        for score in names
    }


def _or_none(metric: Callable[..., float], *predictions: np.ndarray) -> float | None:
    try:
        return metric(*predictions)
    except Undefined:
        return None
