"""Metrics as pure numpy functions of stored logits.

Metrics of the pooled prediction take `logp_NC` (from `combine`) and `labels_N`; metrics that compare members
take `logits_MNC`. A metric without a value on the given predictions raises `Undefined`; none returns NaN.
"""

from lorae.metrics.calibration import (
    ReliabilityBins,
    ace15,
    classwise_ece15,
    debiased_ce15,
    ece10,
    ece15,
    mce15,
    reliability_bins,
    signed_gap,
)
from lorae.metrics.conformal import aps_sets, aps_threshold, conformal_sets, conformal_threshold, set_summary
from lorae.metrics.diversity import (
    credal_width,
    disagreement,
    disagreement_per_error,
    error_correlation,
    jsd,
    mutual_information,
)
from lorae.metrics.mixtures import Mixture, is_of_values
from lorae.metrics.ood import (
    SCORES,
    aupr,
    auroc,
    fpr95,
    score_energy,
    score_entropy,
    score_msp,
    score_mutual_information,
    score_top_prob_variance,
    scores,
)
from lorae.metrics.probability import Direction, Rule, Undefined, combine, log_softmax
from lorae.metrics.proper import acc, brier, ensemble_nll, f1, mcc, mean_member_nll
from lorae.metrics.regression import VALUE_METRICS, VALUE_SCORES, value_summary
from lorae.metrics.selective import acc_at_80_coverage, aurc, risk_coverage
from lorae.metrics.summary import DIRECTION, ood_summary, pooled_nll, summary, value_ood_summary
from lorae.metrics.updates import (
    effective_rank,
    left_singular_vectors,
    num_intruder_dimensions,
    random_cosine,
    singular_values,
    stable_rank,
    update_cosine,
    update_products,
)

__all__ = [
    "DIRECTION",
    "SCORES",
    "VALUE_METRICS",
    "VALUE_SCORES",
    "Direction",
    "Mixture",
    "ReliabilityBins",
    "Rule",
    "Undefined",
    "acc",
    "acc_at_80_coverage",
    "ace15",
    "aps_sets",
    "aps_threshold",
    "aupr",
    "aurc",
    "auroc",
    "brier",
    "classwise_ece15",
    "combine",
    "conformal_sets",
    "conformal_threshold",
    "credal_width",
    "debiased_ce15",
    "disagreement",
    "disagreement_per_error",
    "ece10",
    "ece15",
    "effective_rank",
    "ensemble_nll",
    "error_correlation",
    "f1",
    "fpr95",
    "is_of_values",
    "jsd",
    "left_singular_vectors",
    "log_softmax",
    "mcc",
    "mce15",
    "mean_member_nll",
    "mutual_information",
    "num_intruder_dimensions",
    "ood_summary",
    "pooled_nll",
    "random_cosine",
    "reliability_bins",
    "risk_coverage",
    "score_energy",
    "score_entropy",
    "score_msp",
    "score_mutual_information",
    "score_top_prob_variance",
    "scores",
    "set_summary",
    "signed_gap",
    "singular_values",
    "stable_rank",
    "summary",
    "update_cosine",
    "update_products",
    "value_ood_summary",
    "value_summary",
]
