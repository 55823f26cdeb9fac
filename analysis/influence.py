"""Metrics of a pooled prediction, with each example's contribution to them.

The contribution of an example is its empirical influence divided by N, scaled so that the sum of squares is
the variance of the metric over test sets: (x_n - mean) / sqrt(N (N - 1)) for a mean. Source: Efron 1982, The
Jackknife, the Bootstrap and Other Resampling Plans, chapter 6 (infinitesimal jackknife).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lorae.metrics import calibration, proper, regression
from lorae.metrics.mixtures import Mixture
from lorae.metrics.probability import Undefined, checked


@dataclass(frozen=True, eq=False)
class Measured:
    """A metric and the contribution of each example, (N,)."""

    value: float
    examples: np.ndarray


def measured_values(mixture: Mixture, y_N: np.ndarray) -> dict[str, Measured]:
    """RMSE as its square, MAE, NLL, CRPS and Pearson's correlation of a mixture; those that are defined."""
    found = {
        "rmse": of_mean(regression.squared_errors(mixture, y_N)),
        "mae": of_mean(regression.absolute_errors(mixture, y_N)),
        "crps": of_mean(regression.example_crps(mixture, y_N)),
    }
    with contextlib.suppress(Undefined):
        found["pearson"] = of_correlation(mixture.mean_N, y_N)
    with contextlib.suppress(Undefined):
        found["ensemble_nll"] = of_mean(regression.example_density_nll(mixture, y_N))
    return found


def of_correlation(x_N: np.ndarray, y_N: np.ndarray) -> Measured:
    """Pearson's correlation r, whose influence is z_x z_y - r (z_x^2 + z_y^2) / 2 of standardised numbers.

    Source: Devlin et al. 1975, Biometrika 62, equation 2.
    """
    r = regression.correlation("pearson", x_N, y_N)
    zx_N, zy_N = ((v - v.mean()) / v.std() for v in (x_N, y_N))
    return Measured(r, of_mean(zx_N * zy_N - r * (zx_N**2 + zy_N**2) / 2).examples)


def of_mcc(logp_NC: np.ndarray, labels_N: np.ndarray) -> Measured:
    """`proper.mcc`, (c - p t) / sqrt((1 - p p)(1 - t t)), by the derivatives of its shares."""
    value = proper.mcc(logp_NC, labels_N)
    right, p_C, t_C = proper.class_shares(logp_NC, labels_N)
    predicted_N = np.asarray(logp_NC).argmax(axis=1)
    a, b = 1 - p_C @ p_C, 1 - t_C @ t_C
    above_N = (predicted_N == labels_N) - right - t_C[predicted_N] - p_C[labels_N] + 2 * p_C @ t_C
    below_N = (p_C @ p_C - p_C[predicted_N]) / a + (t_C @ t_C - t_C[labels_N]) / b
    return Measured(value, of_mean(above_N / np.sqrt(a * b) - value * below_N).examples)


def measured(logp_NC: np.ndarray, labels_N: np.ndarray) -> dict[str, Measured]:
    """Accuracy, Matthews correlation, NLL, Brier score and the square of the debiased calibration error of a
    pooled prediction; those that are defined.

    Args:
        logp_NC: log-probabilities from `combine`.
        labels_N: gold class in [0, C).
    """
    logp_NC, labels_N = checked(logp_NC, labels_N)
    correct_N = proper.correct(logp_NC, labels_N).astype(np.float64)
    found = {
        "acc": of_mean(correct_N),
        "ensemble_nll": of_mean(proper.example_nll(logp_NC, labels_N)),
        "brier": of_mean(proper.example_brier(logp_NC, labels_N)),
    }
    with contextlib.suppress(Undefined):
        found["debiased_ce15"] = of_squared_error(logp_NC, labels_N)
    with contextlib.suppress(Undefined):
        found["mcc"] = of_mcc(logp_NC, labels_N)
    return found


def of_mean(value_N: np.ndarray) -> Measured:
    """A mean over the examples."""
    mean, num = float(np.mean(value_N)), len(value_N)
    return Measured(mean, (value_N - mean) / np.sqrt(num * max(num - 1, 1)))


def of_squared_error(logp_NC: np.ndarray, labels_N: np.ndarray) -> Measured:
    """The square of `debiased_ce15`, a mean over bins of U-statistics of two examples each."""
    value, examples = 0.0, np.zeros(len(labels_N))
    runs = calibration.gaps_of_runs(logp_NC, labels_N)
    total = sum(len(run) for run, _ in runs)
    for run, gap in runs:
        num = len(gap)
        others = (gap.sum() - gap) / (num - 1)  # mean gap of a run's other examples
        squared = float(np.mean(gap * others))
        value += num * squared / total
        examples[run] = 2 * (gap * others - squared) / total * np.sqrt(num / (num - 1))
    return Measured(value, examples)


def of_separation(in_N: np.ndarray, ood_N: np.ndarray) -> Measured:
    """AUROC of a score, with contributions of N_in, then N_ood examples. Source: DeLong et al. 1988,
    Biometrics."""
    above_in, below_ood = of_mean(1 - _placements(ood_N, in_N)), of_mean(_placements(in_N, ood_N))
    if min(len(in_N), len(ood_N)) < 2:
        return Measured(below_ood.value, np.zeros(0))
    return Measured(below_ood.value, np.concatenate([_widened(above_in), _widened(below_ood)]))


def _widened(of_side: Measured) -> np.ndarray:
    """Contributions of one side of an AUROC, widened for its own degrees of freedom."""
    return of_side.examples * stats.t.isf(0.025, len(of_side.examples) - 1) / stats.norm.isf(0.025)


def _placements(reference: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Share of the reference below each score, ties count 1/2."""
    ordered = np.sort(reference)
    below, not_above = (np.searchsorted(ordered, score, side) for side in ("left", "right"))
    return (below + not_above) / 2 / len(reference)
