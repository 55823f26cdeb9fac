"""Normal scores of statistics whose variances have their own degrees of freedom."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import optimize, special


def half_width(score: float, variances: np.ndarray, df: np.ndarray) -> float:
    """Half-width of the interval with the tail probability of a normal score."""
    quantiles = special.stdtrit(df, special.ndtr(-score))  # scipy.stats takes forty times as long
    return float(np.sqrt(quantiles**2 @ variances))


def normal_score(difference: float, variances: np.ndarray, df: np.ndarray) -> float:
    """The normal score at which `half_width` is the absolute difference."""
    if difference == 0:
        return 0.0
    top = 8.0  # a tail of 6e-16
    if abs(difference) >= half_width(top, variances, df):
        return top
    found: Any = optimize.brentq(lambda score: half_width(score, variances, df) - abs(difference), 0, top)
    return float(found)


def largest_scores(t_RP: np.ndarray, df_P: np.ndarray) -> np.ndarray:
    """The largest |z| of each row (R,), where z has the tail of t at df degrees of freedom.

    Exact tails are slow, so they are computed only where Wallace's approximation, which is between 0.84 and
    1.03 times as large, comes near the row's largest. Source: Wallace 1959, eq. 6.3.
    """
    near_RP = np.sqrt(df_P * np.log1p(t_RP**2 / df_P)) * (8 * df_P + 1) / (8 * df_P + 3)
    row, pair = np.nonzero(near_RP >= 0.8 * near_RP.max(axis=1, keepdims=True))
    largest_R = np.zeros(len(t_RP))
    np.maximum.at(largest_R, row, -special.ndtri(special.stdtr(df_P[pair], -np.abs(t_RP[row, pair]))))
    return largest_R
