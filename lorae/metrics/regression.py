"""Metrics of numbers: members predict a mean, or a mean with a variance, and their ensemble is a mixture.

Members' outputs are `values_MNC`: C = 1, the mean, or C = 2, the mean and the natural logarithm of the
variance of a Gaussian. A metric that needs a variance is `Undefined` without one. Values have the labels'
unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from lorae.metrics.mixtures import Mixture, checked_values
from lorae.metrics.probability import Direction, Rule, Undefined

LEVELS = np.arange(1, 20) / 20  # of `quantile_ece`
TAIL = 0.05  # on each side of a central 90 % interval
BLOCK = 2**20  # numbers in a temporary


# Each example's term ---------------------------------------------------------------------------------------


def squared_errors(mixture: Mixture, y_N: np.ndarray) -> np.ndarray:
    """(mean - y)^2 of each example, (N,)."""
    return (mixture.mean_N - y_N) ** 2


def absolute_errors(mixture: Mixture, y_N: np.ndarray) -> np.ndarray:
    """|mean - y| of each example, (N,)."""
    return np.abs(mixture.mean_N - y_N)


def example_density_nll(mixture: Mixture, y_N: np.ndarray) -> np.ndarray:
    """-log of the mixture's density at y, (N,), in nats."""
    return -mixture.log_density(y_N)


def example_crps(mixture: Mixture, y_N: np.ndarray) -> np.ndarray:
    """Continuous ranked probability score of each example, (N,), in the unit of the labels.

    1/M sum_i A(y - mu_i, var_i) - 1/(2 M^2) sum_ij A(mu_i - mu_j, var_i + var_j), where A(m, v) = E|X| of a
    Gaussian X; for points A(m, 0) = |m|, so the score of a single mean is its absolute error.
    Source: Grimit et al. 2006, Quarterly Journal of the Royal Meteorological Society 132, equation 5.
    """
    mean_MN, variance_MN = mixture.mean_MN, mixture.variance_MN
    num, size = len(mean_MN), max(1, BLOCK // len(mean_MN) ** 2)
    spread_N = np.empty_like(y_N)
    for start in range(0, len(y_N), size):
        part = slice(start, start + size)
        mean, variance = mean_MN[:, part], variance_MN[:, part]
        pairs = _mean_absolute(mean[:, None] - mean[None], variance[:, None] + variance[None])
        spread_N[part] = pairs.sum(axis=(0, 1)) / (2 * num**2)
    return _mean_absolute(y_N - mean_MN, variance_MN).mean(axis=0) - spread_N


def _mean_absolute(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """E|X| of a Gaussian: 2 s phi(m / s) + m (2 Phi(m / s) - 1)."""
    from scipy.special import erf

    sd = np.sqrt(variance)
    z = np.divide(mean, sd, out=np.zeros_like(mean), where=sd > 0)
    spread = 2 * sd * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return np.where(sd > 0, spread + mean * erf(z / math.sqrt(2)), np.abs(mean))


def pit(mixture: Mixture, y_N: np.ndarray) -> np.ndarray:
    """Probability integral transform: the mixture's distribution function at y, (N,); uniform in [0, 1] if
    the mixture is calibrated. Source: Gneiting et al. 2007, Journal of the Royal Statistical Society B 69."""
    return mixture.cdf(y_N)


# Metrics ---------------------------------------------------------------------------------------------------


def rmse(mixture: Mixture, y_N: np.ndarray) -> float:
    """Root mean square error of the mixture's mean, in the unit of the labels; lower is better."""
    return float(np.sqrt(squared_errors(mixture, y_N).mean()))


def mae(mixture: Mixture, y_N: np.ndarray) -> float:
    """Mean absolute error of the mixture's mean, in the unit of the labels; lower is better."""
    return float(absolute_errors(mixture, y_N).mean())


def r2(mixture: Mixture, y_N: np.ndarray) -> float:
    """1 - MSE / variance of the labels, at most 1; higher is better; predicting the labels' mean gives 0.

    Raises:
        Undefined: all labels are equal.
    """
    _check_varies("r2", y_N, "labels")
    return float(1 - squared_errors(mixture, y_N).mean() / y_N.var())


def pearson(mixture: Mixture, y_N: np.ndarray) -> float:
    """Correlation between the mixture's means and the labels, in [-1, 1]; higher is better.

    Raises:
        Undefined: all means, or all labels, are equal.
    """
    return correlation("pearson", mixture.mean_N, y_N)


def spearman(mixture: Mixture, y_N: np.ndarray) -> float:
    """`pearson` of the ranks; ties share their mean rank."""
    from scipy.stats import rankdata

    return correlation("spearman", rankdata(mixture.mean_N), rankdata(y_N))


def correlation(metric: str, x_N: np.ndarray, y_N: np.ndarray) -> float:
    """Pearson's correlation.

    Raises:
        Undefined: one side does not vary.
    """
    _check_varies(metric, x_N, "predictions")
    _check_varies(metric, y_N, "labels")
    x_N, y_N = x_N - x_N.mean(), y_N - y_N.mean()
    return float(np.clip(x_N @ y_N / np.sqrt((x_N @ x_N) * (y_N @ y_N)), -1, 1))


def _check_varies(metric: str, x_N: np.ndarray, what: str) -> None:
    if np.ptp(x_N) <= 1e-12 * np.abs(x_N).max():  # rounding makes no difference
        raise Undefined(metric, f"all {what} are equal")


def density_nll(mixture: Mixture, y_N: np.ndarray) -> float:
    """Negative log-likelihood of the mixture, in nats per example; lower is better; may be below 0."""
    return float(example_density_nll(mixture, y_N).mean())


def mean_member_density_nll(mixture: Mixture, y_N: np.ndarray) -> float:
    """Mean over members of their own NLL; at least `density_nll`."""
    rows = zip(mixture.mean_MN, mixture.variance_MN)
    return float(
        np.mean([density_nll(Mixture(m[None], v[None], mixture.has_variance), y_N) for m, v in rows])
    )


def crps(mixture: Mixture, y_N: np.ndarray) -> float:
    """Mean of `example_crps`; lower is better."""
    return float(example_crps(mixture, y_N).mean())


def picp90(mixture: Mixture, y_N: np.ndarray) -> float:
    """Share of labels in the mixture's central 90 % interval; 0.9 is best."""
    return float((np.abs(pit(mixture, y_N) - 0.5) <= 0.5 - TAIL).mean())


def width90(mixture: Mixture, y_N: np.ndarray) -> float:
    """Mean width of the central 90 % interval, in the unit of the labels."""
    return float((mixture.quantile(1 - TAIL) - mixture.quantile(TAIL)).mean())


def quantile_ece(mixture: Mixture, y_N: np.ndarray) -> float:
    """Mean over 19 levels p of |share of labels below the p-quantile - p|; lower is better; at most 1/2.

    Source: Kuleshov et al. 2018, arXiv:1807.00263, equation 9 (there with squares).
    """
    below_L = np.searchsorted(np.sort(pit(mixture, y_N)), LEVELS, side="right") / len(y_N)
    return float(np.abs(below_L - LEVELS).mean())


def aleatoric_variance(mixture: Mixture, y_N: np.ndarray) -> float:
    """Mean of the members' variances, in the unit of the labels squared."""
    mixture.check_variance("aleatoric_variance")
    return float(mixture.aleatoric_N.mean())


def epistemic_variance(mixture: Mixture, y_N: np.ndarray) -> float:
    """Mean variance of the members' means. Raises `Undefined` for fewer than two members."""
    if len(mixture.mean_MN) < 2:
        raise Undefined("epistemic_variance", "it compares members, and there is 1")
    return float(mixture.epistemic_N.mean())


def pooled_loss(mixture: Mixture, y_N: np.ndarray) -> float:
    """The loss for tuning and early stopping: the mixture's NLL; without a variance, mean square error."""
    return density_nll(mixture, y_N) if mixture.has_variance else float(squared_errors(mixture, y_N).mean())


# Conformal intervals ---------------------------------------------------------------------------------------


def conformal_factor(mixture: Mixture, y_N: np.ndarray, coverage: float = 0.9) -> float:
    """Half-width, in units of `conformal_scale`, of intervals with the given coverage: the
    ceil((N + 1) coverage)-th smallest |y - mean| / scale; infinite if N is too small.

    Args:
        y_N: labels that training has not seen.
        coverage: share of labels in the intervals, in (0, 1).
    Source: Lei et al. 2018, arXiv:1604.04173, section 5.2 (locally weighted).
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage={coverage}: must be in (0, 1); write coverage=0.9")
    rank = math.ceil((len(y_N) + 1) * coverage - 1e-9)
    if rank > len(y_N):
        return math.inf
    return float(np.sort(absolute_errors(mixture, y_N) / conformal_scale(mixture))[rank - 1])


def conformal_scale(mixture: Mixture) -> np.ndarray:
    """Standard deviation of each example's mixture, (N,); 1 if members predict no variance."""
    return np.sqrt(mixture.variance_N) if mixture.has_variance else np.ones(mixture.mean_MN.shape[1])


# All at once -----------------------------------------------------------------------------------------------

VALUE_METRICS: dict[str, tuple[Direction, Callable[[Mixture, np.ndarray], float]]] = {
    "rmse": ("lower", rmse),
    "mae": ("lower", mae),
    "r2": ("higher", r2),
    "pearson": ("higher", pearson),
    "spearman": ("higher", spearman),
    "ensemble_nll": ("lower", density_nll),
    "mean_member_nll": ("lower", mean_member_density_nll),
    "crps": ("lower", crps),
    "picp90": ("none", picp90),
    "width90": ("none", width90),
    "quantile_ece": ("lower", quantile_ece),
    "aleatoric_variance": ("none", aleatoric_variance),
    "epistemic_variance": ("none", epistemic_variance),
}
VALUE_SCORES = ("epistemic_variance", "total_variance")


def value_summary(values_MNC: np.ndarray, y_N: np.ndarray, rule: Rule = "probs") -> dict[str, float | None]:
    """Every metric of an ensemble of numbers by name; None where undefined.

    Raises:
        ValueError: as `Mixture.of` and `checked_values`.
    """
    mixture = Mixture.of(values_MNC, rule)
    y_N = checked_values(y_N, mixture.mean_MN.shape[1])
    return {name: _or_none(metric, mixture, y_N) for name, (_, metric) in VALUE_METRICS.items()}


def value_scores(values_MNC: np.ndarray) -> dict[str, np.ndarray]:
    """Every score of VALUE_SCORES that is defined for these members, each (N,); higher: more likely OOD."""
    mixture = Mixture.of(values_MNC)
    found = {}
    if len(mixture.mean_MN) > 1:
        found["epistemic_variance"] = mixture.epistemic_N
    if mixture.has_variance or found:
        found["total_variance"] = mixture.variance_N
    return {name: np.round(score_N, 12) for name, score_N in found.items()}


def _or_none(metric: Callable[..., float], *arguments: object) -> float | None:
    try:
        return metric(*arguments)
    except Undefined:
        return None
