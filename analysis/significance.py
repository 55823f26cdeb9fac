"""How sure is a difference: paired bootstrap, standard errors over seeds, many comparisons, verdicts.

A bootstrap resample draws the N examples with replacement, so it is a vector of N counts. Metrics are here
written as functions of such counts, weights_RN -> values_R, for many resamples at once; all rows of a table
see the same resamples, which pairs them. `weighted_summary` has the names of `lorae.metrics.summary`:

    rows = {"lora": weighted_summary(a, labels), "ensemble": weighted_summary(b, labels)}
    boot = bootstrap({name: row["ece15"] for name, row in rows.items()}, [len(labels)])
    difference(boot, "ensemble", baseline="lora"), verdicts(boot, DIRECTION["ece15"])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse

from lorae.metrics import calibration, ood, proper, selective
from lorae.metrics.probability import Rule, Undefined, checked, combine, log_softmax
from lorae.metrics.summary import Direction

WeightedMetric = Callable[[np.ndarray], np.ndarray]  # counts of the examples (R, N) -> values (R,)
Verdict = Literal["best", "tied", "worse"]
BLOCK_COUNTS = 250_000  # resamples x examples at once: what is made of them stays in the cache
ALPHA = 0.05  # of the confidence intervals (1 - ALPHA) and the verdicts


# Bootstrap --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bootstrap:
    """Each row's metric on the examples as they are, and on every resample; rows share the resamples."""

    value: dict[str, float]
    resampled: dict[str, np.ndarray]  # (resamples,)

    @property
    def num_resamples(self) -> int:
        return len(next(iter(self.resampled.values())))


@dataclass(frozen=True)
class Difference:
    """Row minus baseline, with its 95 % interval and the two-sided p-value of "no difference"."""

    value: float
    lo: float
    hi: float
    p_value: float


def bootstrap(
    metrics: Mapping[str, WeightedMetric], strata: Sequence[int], resamples: int = 10_000, seed: int = 0
) -> Bootstrap:
    """Every row's metric on the same resamples of the examples; memory stays below about 200 MB.

    Args:
        metrics: one metric of each row of a table; over several seeds, see `averaged`.
        strata: numbers of examples that are resampled apart: [N]; [N_in, N_ood] for OOD metrics.
        seed: of the resamples; equal seeds give equal results.
    Raises:
        ValueError: a metric was made from another number of examples.
    Source: Efron and Tibshirani 1993, chapters 13 and 16; paired as in Koehn 2004, EMNLP.
    """
    whole = np.ones((1, sum(strata)))
    value = {row: float(metric(whole)[0]) for row, metric in metrics.items()}
    parts: dict[str, list[np.ndarray]] = {row: [] for row in metrics}
    for weights_RN in _resampled_weights(strata, resamples, seed):
        for row, metric in metrics.items():
            parts[row].append(metric(weights_RN))
    return Bootstrap(value, {row: np.concatenate(values) for row, values in parts.items()})


def _resampled_weights(strata: Sequence[int], resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Counts (block, N) of examples drawn with replacement inside each stratum, in blocks of bounded size."""
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK_COUNTS // sum(strata))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        counts = []
        for size in strata:
            drawn = rng.integers(0, size, (rows, size)) + size * np.arange(rows)[:, None]
            counts.append(np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size))
        yield np.hstack(counts).astype(np.float64)


def difference(boot: Bootstrap, row: str, baseline: str) -> Difference:
    """`row` minus `baseline` with an interval that holds the percentile and the basic one, of resamples that
    are reflected in the value, and the larger of their p-values. For means the two agree.

    Chance gives even a calibrated model a calibration error (ECE, ACE, MCE), and resampling adds to it once
    more, most to confidences that are unsure or fill many bins. Of two calibrated models, one with
    confidences in [0.5, 1] and one near 0.97, percentile intervals alone find the first worse by ECE-15 in
    all of 100 samples of 240 examples, these in 30: differences still favour the surer model. Of two with
    confidences in [0.5, 1] basic intervals alone find one worse in 6, these in none.

    Source: Davison and Hinkley 1997, section 5.2.
    """
    value = boot.value[row] - boot.value[baseline]
    resampled_R = boot.resampled[row] - boot.resampled[baseline]
    reflected_R = np.round(2 * value - resampled_R, 12)  # what is 0 but for rounding is on neither side
    one, other = _against_zero(value, resampled_R), _against_zero(value, reflected_R)
    return Difference(value, min(one.lo, other.lo), max(one.hi, other.hi), max(one.p_value, other.p_value))


def estimate(boot: Bootstrap, row: str) -> Difference:
    """A row minus 0, with the percentile interval, which stays inside a correlation's bounds."""
    return _against_zero(boot.value[row], boot.resampled[row])


def _against_zero(value: float, replicate_R: np.ndarray) -> Difference:
    """With the quantiles of the replicates; the p-value is twice the smaller share of them on a side of 0, at
    least 2 / (resamples + 1)."""
    lo, hi = np.quantile(replicate_R, [ALPHA / 2, 1 - ALPHA / 2])
    one_sided = (1 + min(np.sum(replicate_R <= 0), np.sum(replicate_R >= 0))) / (len(replicate_R) + 1)
    return Difference(value, float(lo), float(hi), min(1.0, 2 * float(one_sided)))


def verdicts(boot: Bootstrap, direction: Direction) -> dict[str, Verdict]:
    """Marks each row of a column: "best" value, "tied" (indistinguishable from the best), or "worse".

    Each row is compared with the first best one; the p-values are Holm-corrected over the column, and "worse"
    has p <= 0.05. Rows of exactly the best value are all "best".

    Raises:
        ValueError: the metric has no direction.
    """
    if direction == "none":
        raise ValueError(
            'direction="none" has no best row; allowed are "lower" and "higher"; leave the column unmarked'
        )
    best_value = (min if direction == "lower" else max)(boot.value.values())
    best = next(row for row, value in boot.value.items() if value == best_value)
    others = [row for row, value in boot.value.items() if value != best_value]
    p_values = holm([difference(boot, row, best).p_value for row in others])
    worse = {row for row, p_value in zip(others, p_values, strict=True) if p_value <= ALPHA}
    return {row: "best" if row not in others else "worse" if row in worse else "tied" for row in boot.value}


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, controlling the family-wise error rate; in the order given.

    The k-th smallest of n becomes the largest of (n - j + 1) p_(j) over j <= k, at most 1. Source: Holm 1979.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return corrected.tolist()


@dataclass(frozen=True)
class OverSeeds:
    """A metric over n seeds."""

    mean: float
    stderr: float | None  # sample standard deviation / sqrt(n); None for n = 1
    n: int


def over_seeds(values: Sequence[float]) -> OverSeeds:
    """Mean and standard error of a metric over seeds.

    Raises:
        Undefined: no values, or one of them is infinite or NaN.
    """
    if not len(values) or not np.isfinite(values).all():
        raise Undefined("mean over seeds", f"the values are {list(values)}")
    stderr = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return OverSeeds(float(np.mean(values)), stderr, len(values))


def averaged(boot: Bootstrap, rows: Mapping[str, Sequence[str]]) -> Bootstrap:
    """A bootstrap whose rows are means of rows, such as the one of a setting over its seeds."""
    return Bootstrap(
        {name: float(np.mean([boot.value[row] for row in of])) for name, of in rows.items()},
        {name: np.mean([boot.resampled[row] for row in of], axis=0) for name, of in rows.items()},
    )


# Metrics as functions of the examples' counts ---------------------------------------------


def weighted_summary(
    logits_MNC: np.ndarray, labels_N: np.ndarray, rule: Rule = "probs"
) -> dict[str, WeightedMetric | None]:
    """The performance metrics of `lorae.metrics.summary` as functions of the examples' counts.

    None where no resample could have a finite difference, an NLL that is infinite, and the mean member's NLL
    of a soup. The diversity metrics, which have no direction, and `classwise_ece15` are not here.
    """
    logp_NC, labels_N = checked(combine(logits_MNC, rule), labels_N)
    confidence_N = selective.confidence(logp_NC, labels_N)
    correct_N = proper.correct(logp_NC, labels_N)
    gap_N = correct_N - confidence_N
    member_nll_N = np.mean(
        [proper.example_nll(member, labels_N) for member in log_softmax(logits_MNC)], axis=0
    )
    kept = selective.num_at_80(len(labels_N))
    return {
        "acc": _mean(correct_N),
        "f1": _f1(logp_NC.argmax(axis=1), labels_N),
        "ensemble_nll": _finite_mean(proper.example_nll(logp_NC, labels_N)),
        "mean_member_nll": None if rule == "weights" else _finite_mean(member_nll_N),
        "brier": _mean(proper.example_brier(logp_NC, labels_N)),
        "ece15": _ece(confidence_N, gap_N, 15),
        "ece10": _ece(confidence_N, gap_N, 10),
        "ace15": _ranked(confidence_N, gap_N, calibration.equal_mass_gap),
        "mce15": _mce15(confidence_N, gap_N),
        "signed_gap": _mean(-gap_N),
        "aurc": _ranked(confidence_N, 1 - correct_N, lambda error_RN: selective.risks(error_RN).mean(axis=1)),
        "acc_at_80_coverage": _ranked(
            confidence_N, correct_N, lambda right_RN: right_RN[:, :kept].mean(axis=1)
        ),
    }


def weighted_ood_summary(
    in_logits_MNC: np.ndarray, ood_logits_MNC: np.ndarray, rule: Rule = "probs"
) -> dict[str, WeightedMetric | None]:
    """`lorae.metrics.ood_summary` as functions of the counts of the N_in and then the N_ood examples."""
    in_scores, ood_scores = ood.scores(in_logits_MNC, rule), ood.scores(ood_logits_MNC, rule)
    metrics = {"auroc": ood.auroc_of_counts, "aupr": ood.aupr_of_counts, "fpr95": ood.fpr95_of_counts}
    return {
        f"{name}_{score}": _separation(in_scores[score], ood_scores[score], of_counts)
        if score in in_scores
        else None
        for name, of_counts in metrics.items()
        for score in ood.SCORES
    }


def _mean(value_N: np.ndarray) -> WeightedMetric:
    return lambda weights_RN: weights_RN @ value_N / len(value_N)


def _finite_mean(value_N: np.ndarray) -> WeightedMetric | None:
    return _mean(value_N) if np.isfinite(value_N).all() else None


def _f1(predicted_N: np.ndarray, labels_N: np.ndarray) -> WeightedMetric:
    present_C = np.union1d(predicted_N, labels_N)
    gold_NC, predicted_NC = (_one_hot(class_N, present_C) for class_N in (labels_N, predicted_N))
    hits_NC, total_NC = gold_NC * predicted_NC, gold_NC + predicted_NC
    return lambda weights_RN: proper.f1_of_counts(weights_RN @ hits_NC, weights_RN @ total_NC)


def _one_hot(class_N: np.ndarray, present_C: np.ndarray) -> scipy.sparse.csr_array:
    """1.0 in the column of each example's class, (N, C); sparse, since many rows of many classes are held."""
    num = len(class_N)
    places = (np.arange(num), np.searchsorted(present_C, class_N))
    return scipy.sparse.csr_array((np.ones(num), places), shape=(num, len(present_C)))


def _in_bins(value_N: np.ndarray, confidence_N: np.ndarray, bins: int) -> np.ndarray:
    """`value_N` in the column of its example's bin, 0 elsewhere, (N, bins)."""
    bin_N = calibration.equal_width_bin(confidence_N, bins)
    return value_N[:, None] * (bin_N[:, None] == np.arange(bins))


def _ece(confidence_N: np.ndarray, gap_N: np.ndarray, bins: int) -> WeightedMetric:
    gap_NK = _in_bins(gap_N, confidence_N, bins)
    return lambda weights_RN: np.abs(weights_RN @ gap_NK).sum(axis=1) / len(gap_N)


def _mce15(confidence_N: np.ndarray, gap_N: np.ndarray) -> WeightedMetric:
    gap_NK = _in_bins(gap_N, confidence_N, 15)
    one_NK = _in_bins(np.ones_like(gap_N), confidence_N, 15)
    return lambda weights_RN: np.max(np.abs(weights_RN @ gap_NK) / np.maximum(weights_RN @ one_NK, 1), axis=1)


def _ranked(
    confidence_N: np.ndarray, value_N: np.ndarray, finish: Callable[[np.ndarray], np.ndarray]
) -> WeightedMetric:
    """`finish` of every resample's `most_confident_first` values (R, N)."""
    group_sums = _group_sums(selective.tied_groups(confidence_N))

    def metric(weights_RN: np.ndarray) -> np.ndarray:
        size_RG = group_sums(weights_RN)
        mean_RG = group_sums(weights_RN * value_N) / np.maximum(size_RG, 1)
        return finish(np.repeat(mean_RG.ravel(), size_RG.ravel().astype(np.intp)).reshape(weights_RN.shape))

    return metric


def _separation(
    in_N: np.ndarray, ood_N: np.ndarray, of_counts: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> WeightedMetric:
    group_sums = _group_sums(ood.score_groups(in_N, ood_N))
    is_ood = np.repeat([0.0, 1.0], [len(in_N), len(ood_N)])
    return lambda weights_RN: of_counts(
        group_sums(weights_RN * (1 - is_ood)), group_sums(weights_RN * is_ood)
    )


def _group_sums(group_N: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Sums (R, N) over the examples of each group, (R, G)."""
    order = np.argsort(group_N, kind="stable")
    start_G = np.searchsorted(group_N[order], np.arange(group_N.max() + 1))
    if len(start_G) == len(order):  # no ties
        return lambda x_RN: x_RN.take(order, axis=1)
    return lambda x_RN: np.add.reduceat(x_RN.take(order, axis=1), start_G, axis=1)
