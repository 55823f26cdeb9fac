"""All metrics of one row of a table at once, from one probability tensor; and each metric's direction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from lorae.metrics import calibration, diversity, ood, proper, selective
from lorae.metrics.probability import Rule, Undefined, combine

Direction = Literal["lower", "higher", "none"]

DIRECTION: dict[str, Direction] = {
    "acc": "higher",
    "f1": "higher",
    "ensemble_nll": "lower",
    "mean_member_nll": "lower",
    "brier": "lower",
    "ece15": "lower",
    "ece10": "lower",
    "ace15": "lower",
    "mce15": "lower",
    "classwise_ece15": "lower",
    "signed_gap": "none",
    "aurc": "lower",
    "acc_at_80_coverage": "higher",
    "disagreement": "none",
    "disagreement_per_error": "none",
    "jsd": "none",
    "mutual_information": "none",
    "error_correlation": "none",
    **{f"auroc_{score}": "higher" for score in ood.SCORES},
    **{f"aupr_{score}": "higher" for score in ood.SCORES},
    **{f"fpr95_{score}": "lower" for score in ood.SCORES},
}


def summary(logits_MNC: np.ndarray, labels_N: np.ndarray, rule: Rule = "probs") -> dict[str, float | None]:
    """Every in-distribution metric of an ensemble by name; None where undefined (say, diversity of one).

    Args:
        logits_MNC: class scores of each member, -inf for a class that an example does not have.
        labels_N: gold class in [0, C).
        rule: what is averaged over members for the pooled prediction; diversity does not depend on it.
    Raises:
        ValueError: as `combine` and `checked`.
    """
    pooled = (combine(logits_MNC, rule), labels_N)
    members = (logits_MNC, labels_N)
    return {
        "acc": proper.acc(*pooled),
        "f1": proper.f1(*pooled),
        "ensemble_nll": proper.ensemble_nll(*pooled),
        "mean_member_nll": proper.mean_member_nll(*members),
        "brier": proper.brier(*pooled),
        "ece15": calibration.ece15(*pooled),
        "ece10": calibration.ece10(*pooled),
        "ace15": calibration.ace15(*pooled),
        "mce15": calibration.mce15(*pooled),
        "classwise_ece15": calibration.classwise_ece15(*pooled),
        "signed_gap": calibration.signed_gap(*pooled),
        "aurc": selective.aurc(*pooled),
        "acc_at_80_coverage": selective.acc_at_80_coverage(*pooled),
        "disagreement": _or_none(diversity.disagreement, logits_MNC),
        "disagreement_per_error": _or_none(diversity.disagreement_per_error, *members),
        "jsd": _or_none(diversity.jsd, logits_MNC),
        "mutual_information": _or_none(diversity.mutual_information, logits_MNC),
        "error_correlation": _or_none(diversity.error_correlation, *members),
    }


def ood_summary(
    in_logits_MNC: np.ndarray, ood_logits_MNC: np.ndarray, rule: Rule = "probs"
) -> dict[str, float | None]:
    """auroc, aupr and fpr95 of every score, as `auroc_msp`; None where one member has no such score.

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
    in_scores, ood_scores = ood.scores(in_logits_MNC, rule), ood.scores(ood_logits_MNC, rule)
    return {
        f"{metric.__name__}_{score}": metric(in_scores[score], ood_scores[score])
        if score in in_scores
        else None
        for metric in (ood.auroc, ood.aupr, ood.fpr95)
        for score in ood.SCORES
    }


def _or_none(metric: Callable[..., float], *predictions: np.ndarray) -> float | None:
    try:
        return metric(*predictions)
    except Undefined:
        return None
