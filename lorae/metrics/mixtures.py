"""An ensemble's prediction of a number: the mixture of its members' Gaussians."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lorae.metrics.probability import Rule, Undefined, logsumexp

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class Mixture:
    """The members' Gaussians with equal weights; points, if members have no variance."""

    mean_MN: np.ndarray
    variance_MN: np.ndarray  # 0 for points
    has_variance: bool

    @classmethod
    def of(cls, values_MNC: np.ndarray, rule: Rule = "probs") -> Mixture:
        """The mixture of stored outputs.

        Raises:
            ValueError: another shape, an output that is not finite, or a rule other than "probs" or, for one
                model, "weights".
        """
        values = np.asarray(values_MNC, np.float64)
        if values.ndim != 3 or 0 in values.shape or values.shape[2] > 2:
            raise ValueError(
                f"values of shape {values.shape}; must be (members, examples, 1 or 2); for one member write "
                "values[None]"
            )
        if not np.isfinite(values).all():
            place = np.argwhere(~np.isfinite(values))[0].tolist()
            raise ValueError(f"the value at {place} is {values[tuple(place)]}; must be finite")
        if rule == "logits" or (rule == "weights" and len(values) > 1):
            raise ValueError(
                f'rule={rule!r} of {len(values)} members; a mixture of Gaussians is rule="probs"'
            )
        mean_MN = values[:, :, 0]
        variance_MN = np.exp(values[:, :, 1]) if values.shape[2] == 2 else np.zeros_like(mean_MN)
        return cls(mean_MN, variance_MN, values.shape[2] == 2)

    @property
    def mean_N(self) -> np.ndarray:
        return np.sort(self.mean_MN, axis=0).mean(axis=0)  # whatever the order of the members

    @property
    def aleatoric_N(self) -> np.ndarray:
        """Mean of the members' variances: the noise that no member can predict."""
        return self.variance_MN.mean(axis=0)

    @property
    def epistemic_N(self) -> np.ndarray:
        """Variance of the members' means: their disagreement. Divided by M."""
        return self.mean_MN.var(axis=0)

    @property
    def variance_N(self) -> np.ndarray:
        """Variance of the mixture: the sum of both, by the law of total variance."""
        return self.aleatoric_N + self.epistemic_N

    def log_density(self, y_N: np.ndarray) -> np.ndarray:
        """Natural logarithm of the mixture's density at one number per example, (N,)."""
        self.check_variance("density")
        square_MN = (y_N - self.mean_MN) ** 2 / self.variance_MN
        log_MN = -0.5 * (LOG_2PI + np.log(self.variance_MN) + square_MN)
        return logsumexp(np.sort(log_MN, axis=0), axis=0) - math.log(len(log_MN))

    def cdf(self, y_N: np.ndarray) -> np.ndarray:
        """Probability of numbers below these under the mixture, (N,)."""
        from scipy.special import ndtr

        self.check_variance("distribution")
        return ndtr((y_N - self.mean_MN) / np.sqrt(self.variance_MN)).mean(axis=0)

    def quantile(self, level: float) -> np.ndarray:
        """Numbers at which `cdf` is `level`, (N,), by bisection to 2^-60 of the members' Gaussians' range."""
        sd_MN = np.sqrt(self.variance_MN)
        low_N, high_N = (self.mean_MN - 12 * sd_MN).min(axis=0), (self.mean_MN + 12 * sd_MN).max(axis=0)
        for _ in range(60):
            middle_N = (low_N + high_N) / 2
            below_N = self.cdf(middle_N) < level
            low_N, high_N = np.where(below_N, middle_N, low_N), np.where(below_N, high_N, middle_N)
        return (low_N + high_N) / 2

    def scaled(self, factor: float | np.ndarray) -> Mixture:
        """The mixture stretched about its mean: its standard deviation times `factor`, or times one factor
        per example."""
        mean_MN = self.mean_N + (self.mean_MN - self.mean_N) * factor
        return Mixture(mean_MN, self.variance_MN * factor**2, self.has_variance)

    def check_variance(self, metric: str) -> None:
        """Raises `Undefined` if the members predict only a mean."""
        if not self.has_variance:
            raise Undefined(metric, "members predict a mean without a variance")


def is_of_values(labels_N: np.ndarray) -> bool:
    """Whether labels are numbers to predict, not classes, according to their type."""
    return np.issubdtype(np.asarray(labels_N).dtype, np.floating)


def checked_values(y_N: np.ndarray, num_examples: int) -> np.ndarray:
    """The labels as float64.

    Raises:
        ValueError: their number is wrong, or one is NaN or infinite.
    """
    y_N = np.asarray(y_N, np.float64)
    if y_N.shape != (num_examples,) or not np.isfinite(y_N).all():
        raise ValueError(
            f"labels of shape {y_N.shape}, {int((~np.isfinite(y_N)).sum())} of them not finite; must be "
            f"({num_examples},) finite numbers, one for each example"
        )
    return y_N
