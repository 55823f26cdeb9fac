"""What averaging gains over the mean member, and whether more diverse ensembles gain more.

    correlations(with_gains(load_trials("lorae-results", "demo")))

Ensembles that share members (of one pool, at several sizes or averaging rules) are not independent, so whole
pools are resampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from analysis.columns import Column, title
from analysis.data import Trials
from analysis.rows import Row, is_soup
from analysis.significance import ALPHA, Difference
from analysis.table import Entry, Line, Table, made_by
from lorae import metrics
from lorae.metrics import Undefined

DIVERSITY = (
    "disagreement",
    "disagreement_per_error",
    "jsd",
    "mutual_information",
    "error_correlation",
    "update_cosine",
)
GAINS = ("nll_gain", "acc_gain", "brier_gain", "calibration_gain")
RESAMPLES = 10_000
Scores = dict[str, float | None]
Correlation = Callable[[np.ndarray], np.ndarray]  # how often each pool was drawn (R, K) -> values (R,)
MIN_POOLS = 10  # resampling fewer says little about how far other pools would differ
CAPTION = (
    "Correlation (Pearson's r, Spearman's rho) of an ensemble's diversity with what it gains over its mean "
    "member, over its members: the mean member's NLL, Brier score and squared debiased calibration error "
    "(over 15 runs) minus its own, its accuracy minus the mean member's. [95 % interval] by percentiles "
    f" of the bootstrap over pools of members, 10,000 resamples, if there are {MIN_POOLS} pools or "
    "more; bold: p ≤ 0.05 after Holm's correction over the column. Gains grow with the number of members "
    "whatever the diversity, and tasks differ in both: a correlation across a sweep describes it."
)


def nll_gain(row: Row) -> float:
    """What averaging gains over the mean member, in nats; with the "probs" rule never below 0 (Jensen)."""
    return row["mean_member_nll"] - row["ensemble_nll"]


def with_gains(trials: Trials) -> Trials:
    """The trials with columns `GAINS`, None for fewer than two members, or where a metric is undefined."""
    known: dict[tuple[str, str], Scores] = {}  # member, test set -> its scores
    rows = []
    for row in trials.rows:
        gains: dict[str, float | None] = dict.fromkeys(GAINS)
        if row["members"] > 1 and not is_soup(row):
            gains = {"nll_gain": nll_gain(row)} | _gains(row, _mean_member(trials, row, known))
        rows.append(row | gains)
    return replace(trials, rows=tuple(rows))


def _gains(row: Row, mean_member: Scores) -> Scores:
    """An ensemble against its mean member, by what is gained: higher is better."""
    own: Scores = {"acc": row["acc"], "brier": row["brier"], "calibration": _square(row["debiased_ce15"])}
    signs = {"acc": -1, "brier": 1, "calibration": 1}
    found: Scores = {}
    for name, sign in signs.items():
        ours, theirs = own[name], mean_member[name]
        found[f"{name}_gain"] = None if ours is None or theirs is None else sign * (theirs - ours)
    return found


def _mean_member(trials: Trials, row: Row, known: dict[tuple[str, str], Scores]) -> Scores:
    """Mean scores of a row's members; a member with several draws has their mean."""
    members = [(member, row["eval_sets"]) for member in row["member_ids"]]
    if not all(member in known for member in members):
        test = trials.predictions(row)
        of_draws = [_scores(logp_NC, test.labels_N) for logp_NC in metrics.log_softmax(test.logits_MNC)]
        num_draws = len(of_draws) // len(members)
        for place, member in enumerate(members):
            known[member] = _mean(of_draws[place * num_draws : (place + 1) * num_draws])
    return _mean([known[member] for member in members])


def _scores(logp_NC: np.ndarray, labels_N: np.ndarray) -> Scores:
    found: Scores = {"acc": metrics.acc(logp_NC, labels_N), "brier": metrics.brier(logp_NC, labels_N)}
    try:
        return found | {"calibration": _square(metrics.debiased_ce15(logp_NC, labels_N))}
    except Undefined:
        return found | {"calibration": None}


def _square(root: float | None) -> float | None:
    """The squared error of a signed root: its mean is unbiased, that of the roots is not."""
    return root and float(np.copysign(root**2, root))


def _mean(scores: Sequence[Scores]) -> Scores:
    """Mean of each score, None where one is."""
    found: Scores = {}
    for name in scores[0]:
        values = [value for one in scores if (value := one[name]) is not None]
        found[name] = float(np.mean(values)) if len(values) == len(scores) else None
    return found


def correlations(trials: Trials) -> Table:
    """One line for each measure of diversity, over the ensembles of all trials that have it.

    Args:
        trials: made by `with_gains`, and by `with_updates` for the cosine of updates.
    """
    names = [f"{coefficient}_{gain}" for gain in GAINS for coefficient in ("r", "rho")]
    columns = [Column(name, "estimate") for name in names]
    lines = []
    for measure in DIVERSITY:
        rows = [r for r in trials.rows if r.get(measure) is not None and r.get("nll_gain") is not None]
        rows = [row for row in rows if np.isfinite(row["nll_gain"])]
        if rows:
            found = [_correlations(rows, measure, gain) for gain in GAINS]
            line: Line = {"diversity": Entry(title(measure)), "ensembles": Entry(len(rows))}
            line["pools"] = Entry(len({_pool(row) for row in rows}))
            lines.append(line | dict(zip(names, (entry for pair in found for entry in pair), strict=True)))
    return Table(
        name="correlations",
        title="Diversity and gain",
        caption=f"Sweep {trials.sweep}. {CAPTION} {made_by(trials)}",
        columns=(
            Column("diversity", "text"), Column("ensembles", "amount"), Column("pools", "amount"), *columns
        ),
        blocks=(_corrected(lines, columns),) if lines else (),
    )  # fmt: skip


def _pool(row: Row) -> str:
    """An ensemble's pool, named by its first member, which is the same at every size."""
    return row["member_ids"][0]


def _correlations(rows: Sequence[Row], measure: str, gain: str) -> list[Entry | Difference]:
    """Pearson's and Spearman's correlation over the rows; no value if either variable is constant, or
    undefined for a row."""
    if any(row[gain] is None for row in rows):
        return [Entry(None), Entry(None)]
    x_N, y_N = (np.array([row[name] for row in rows]) for name in (measure, gain))
    if len(rows) < 3 or np.ptp(x_N) == 0 or np.ptp(y_N) == 0:
        return [Entry(None), Entry(None)]
    pools, pool_N = np.unique([_pool(row) for row in rows], return_inverse=True)
    of = {name: correlation(x_N, y_N, pool_N, ranks=name == "rho") for name in ("r", "rho")}
    if len(pools) < MIN_POOLS:
        whole = np.ones((1, len(pools)))
        return [Entry(float(metric(whole)[0])) for metric in of.values()]
    return [_bootstrapped(metric, len(pools)) for metric in of.values()]


def _bootstrapped(metric: Correlation, num_pools: int) -> Difference:
    """A correlation with its percentile interval over resampled pools, which stays in [-1, 1]. Its p-value is
    twice the smaller share of resamples on one side of 0.

    Source: Efron and Tibshirani 1993, chapters 13 and 16.
    """
    counts_RK = np.random.default_rng(0).multinomial(num_pools, np.full(num_pools, 1 / num_pools), RESAMPLES)
    found_R = metric(counts_RK.astype(np.float64))
    lo, hi = np.quantile(found_R, [ALPHA / 2, 1 - ALPHA / 2])
    one_sided = (1 + min(np.sum(found_R <= 0), np.sum(found_R >= 0))) / (RESAMPLES + 1)
    value = float(metric(np.ones((1, num_pools)))[0])
    return Difference(value, float(lo), float(hi), min(1.0, 2 * float(one_sided)))


def _corrected(lines: list[Line], columns: Sequence[Column]) -> tuple[Line, ...]:
    """The lines with the p-values of each column corrected for their number; a verdict where p <= 0.05."""
    for column in columns:
        found = [(line, e) for line in lines if isinstance(e := line[column.name], Difference)]
        for (line, e), p_value in zip(found, holm([e.p_value or 1.0 for _, e in found]), strict=True):
            verdict = "undecided" if p_value > ALPHA else "higher" if e.value > 0 else "lower"
            line[column.name] = replace(e, p_value=p_value, verdict=verdict)
    return tuple(lines)


def correlation(x_N: np.ndarray, y_N: np.ndarray, pool_N: np.ndarray, ranks: bool) -> Correlation:
    """Pearson's correlation, or with `ranks` Spearman's, as a function of how often each pool was drawn.

    0 on a resample where either is constant.

    Args:
        pool_N: index of each example's pool.
    """

    def metric(counts_RK: np.ndarray) -> np.ndarray:
        weights_RN = counts_RK[:, pool_N]
        x_RN, y_RN = (_ranks(v, weights_RN) if ranks else v[None] for v in (x_N, y_N))
        total_R = weights_RN.sum(axis=1, keepdims=True)
        x_RN, y_RN = (v - (weights_RN * v).sum(axis=1, keepdims=True) / total_R for v in (x_RN, y_RN))
        xx, yy, xy = (np.sum(weights_RN * p, axis=1) for p in (x_RN**2, y_RN**2, x_RN * y_RN))
        varies = (xx > 1e-12 * xx.max()) & (yy > 1e-12 * yy.max())  # else it is rounding
        return np.divide(xy, np.sqrt(xx * yy), out=np.zeros_like(xy), where=varies)

    return metric


def _ranks(x_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Rank of each value in each resample, (R, N); equal values share their mean rank."""
    below_NN, equal_NN = x_N[:, None] < x_N, x_N[:, None] == x_N
    return weights_RN @ (below_NN + equal_NN / 2)


def holm(p_values: list[float]) -> list[float]:
    """p-values corrected for their number, controlling the family-wise error rate; in the order given.

    The k-th smallest of n becomes the largest of (n - j + 1) p_(j) over j <= k, at most 1. Source: Holm 1979.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return corrected.tolist()
