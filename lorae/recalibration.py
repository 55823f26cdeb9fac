"""Variance scaling of numbers, cross-fitted on the examples that it scales as temperatures are."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lorae.ensemble import COLDEST, HOTTEST, Fit, folds
from lorae.metrics.mixtures import Mixture

STEP = 1e-4  # of log s, of differences in place of derivatives


@dataclass(frozen=True, eq=False)
class ScaledMixture(Fit):
    """Mixtures stretched by factors that were each fitted on other examples; a factor multiplies standard
    deviations.

    Attributes:
        mixture: the stretched one, in the order of the examples.
    """

    mixture: Mixture


def cross_fitted_variance(mixture: Mixture, y_N: np.ndarray, num_folds: int = 5) -> ScaledMixture:
    """Variance scaling without data of its own: each fold of the examples is stretched about its mean by the
    factor that minimises the NLL of the others.

    Raises:
        Undefined: members predict no variance.
    Source: Laves et al. 2020, MIDL, "Well-calibrated regression uncertainty"; the folds as of temperatures.
    """
    mixture.check_variance("temperature")
    fold_N = folds(len(y_N), num_folds)
    factor_K = np.array(
        [_factor(_only(mixture, fold_N != k), y_N[fold_N != k]) for k in range(fold_N.max() + 1)]
    )
    scaled = mixture.scaled(factor_K[fold_N])
    return ScaledMixture(factor_K, fold_N, _log_se(mixture, y_N), mixture=scaled)


def _only(mixture: Mixture, which_N: np.ndarray) -> Mixture:
    return replace(mixture, mean_MN=mixture.mean_MN[:, which_N], variance_MN=mixture.variance_MN[:, which_N])


def _example_nll(mixture: Mixture, y_N: np.ndarray, log_factor: float) -> np.ndarray:
    """NLL of each example (N,) with the mixture stretched: log s - log p(mean + (y - mean) / s)."""
    centre_N = mixture.mean_N
    return log_factor - mixture.log_density(centre_N + (y_N - centre_N) * math.exp(-log_factor))


def _factor(mixture: Mixture, y_N: np.ndarray) -> float:
    """Where the NLL is lowest between the bounds; at a bound, that bound exactly; 1 of no examples."""
    from scipy.optimize import minimize_scalar

    if not len(y_N):
        return 1.0
    low, high = math.log(COLDEST), math.log(HOTTEST)
    found: Any = minimize_scalar(
        lambda at: _example_nll(mixture, y_N, at).mean(), bounds=(low, high), method="bounded"
    )
    for bound, value in ((low, COLDEST), (high, HOTTEST)):
        if abs(found.x - bound) < 1e-3:
            return value
    return math.exp(found.x)


def _log_se(mixture: Mixture, y_N: np.ndarray) -> float:
    """Standard error of log s of a fit on all examples: sqrt(sum slope_n^2) / sum curvature_n."""
    factor, num = _factor(mixture, y_N), len(y_N)
    if factor in (COLDEST, HOTTEST) or num < 2:
        return math.inf
    below, at, above = (_example_nll(mixture, y_N, math.log(factor) + d) for d in (-STEP, 0, STEP))
    slope_N, curvature = (above - below) / (2 * STEP), ((above - 2 * at + below) / STEP**2).sum()
    return math.sqrt(np.square(slope_N).sum() * num / (num - 1)) / curvature if curvature > 0 else math.inf
