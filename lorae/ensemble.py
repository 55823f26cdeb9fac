"""Ensembles as views over a pool of members' stored logits: sizes, subsets, temperatures, selection.

A selection is learned on the logits of the validation split and applied to those of the test split.
Temperatures are cross-fitted on the split that they scale: see `cross_fitted`.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from lorae.metrics.probability import Rule, Undefined, checked, combine, log_softmax
from lorae.metrics.proper import example_nll

__all__ = [
    "CrossFit",
    "combine",
    "cross_fitted",
    "cross_fitted_members",
    "fit_temperature",
    "folds",
    "greedy_selection",
    "scale",
    "subsets",
]

# Bounds of a temperature: a member that is right, or wrong, on all examples has no finite optimum.
COLDEST, HOTTEST = 0.05, 20.0
# Scaled predictions are usable if the temperature's 95 % interval spans at most this factor up and down: at 2
# the fit alone costs about 0.02 nats, as much as ensembles gain.
WIDEST = 2.0


def subsets(pool_size: int, members: int, max_subsets: int = 50, seed: int = 0) -> list[tuple[int, ...]]:
    """Different sets of `members` indices into the pool, in lexicographic order.

    All sets if there are at most `max_subsets`, else that many, drawn uniformly without replacement.

    Raises:
        ValueError: members is not in [1, pool_size].
    """
    if not 1 <= members <= pool_size:
        raise ValueError(
            f"members={members}; a pool of {pool_size} allows 1 to {pool_size}; train more members"
        )
    if math.comb(pool_size, members) <= max_subsets:
        return list(itertools.combinations(range(pool_size), members))
    rng = np.random.default_rng((seed, pool_size, members))
    drawn: set[tuple[int, ...]] = set()
    while len(drawn) < max_subsets:
        drawn.add(tuple(sorted(rng.choice(pool_size, members, replace=False).tolist())))
    return sorted(drawn)


def fit_temperature(logp_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Temperature T in [1/20, 20] that minimises the NLL of softmax(logp / T); T > 1 softens.

    The NLL is convex in 1/T. If its optimum lies beyond a bound, T is exactly that bound; if no T is better,
    as for uniform predictions, T = 1, so the NLL never gets worse.

    Args:
        logp_NC: log-probabilities of one member, or pooled (logits minus their log-sum-exp).
        labels_N: gold class in [0, C).
    Raises:
        Undefined: a gold class has probability 0, at every temperature.
    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """
    return _Sharpened.of(logp_NC, labels_N).temperature()


@dataclass(frozen=True, eq=False)
class Fit:
    """Temperatures, each fitted on other examples than those that it scales.

    Attributes:
        temperature_K: temperature of each fold, fitted on the examples of all other folds.
        fold_N: fold of each example, see `folds`.
        log_se: standard error of log T for a fit on all examples, robust to predictions that no temperature
            calibrates ("sandwich"); infinite if that fit is at a bound, or flat.
    """

    temperature_K: np.ndarray
    fold_N: np.ndarray
    log_se: float

    @property
    def temperature(self) -> float:
        """Geometric mean of the folds' temperatures."""
        return float(np.exp(np.log(self.temperature_K).mean()))

    @property
    def flag(self) -> str | None:
        """Why the scaled predictions are not usable, None if they are: the temperature of a fold is at a
        bound, or the 95 % interval is wider than a factor of `WIDEST` up and down."""
        num_folds, num_examples = len(self.temperature_K), len(self.fold_N)
        for bound in (COLDEST, HOTTEST):
            if at_bound := int((self.temperature_K == bound).sum()):
                return f"at its bound {bound:g} in {at_bound} of {num_folds} folds"
        factor = math.exp(1.96 * self.log_se) if self.log_se < 100 else math.inf
        if factor <= WIDEST:
            return None
        low, high = self.temperature / factor, self.temperature * factor
        return f"95 % interval {low:.2g} to {high:.2g} from {num_examples} examples"


@dataclass(frozen=True, eq=False)
class CrossFit(Fit):
    """Predictions scaled by temperatures that were fitted on other examples: no label is scored with a
    temperature that it helped to fit.

    Attributes:
        logp_NC: the scaled predictions, in the order of the examples.
    """

    logp_NC: np.ndarray


def cross_fitted(logp_NC: np.ndarray, labels_N: np.ndarray, num_folds: int = 5) -> CrossFit:
    """Temperature scaling without a separate data set: each fold of the examples is scaled by the temperature
    that `fit_temperature` finds on the other folds.

    The scaled examples were seen neither by training, early stopping or tuning, nor by their own temperature.

    Args:
        logp_NC: log-probabilities of one member, or of the pooled prediction.
        labels_N: gold class in [0, C).
    Raises:
        Undefined: a gold class has probability 0, at every temperature.
    Source: Ashukha et al. 2020, arXiv:2002.06470, "test-time cross-validation".
    """
    nll, fold_N = _Sharpened.of(logp_NC, labels_N), folds(len(labels_N), num_folds)
    rests = [nll.only(fold_N != k) for k in range(fold_N.max() + 1)]
    temperature_K = np.array([rest.temperature() if rest.num else 1.0 for rest in rests])
    scaled_NC = scale(logp_NC, temperature_K[fold_N][:, None])
    return CrossFit(temperature_K, fold_N, nll.log_se(nll.temperature()), logp_NC=scaled_NC)


def cross_fitted_members(
    logits_MNC: np.ndarray, labels_N: np.ndarray, num_draws: int = 1, rule: Rule = "probs"
) -> list[CrossFit]:
    """`cross_fitted` for each member separately, on the same folds; pool any subset with `combine`.

    A member with several draws is their pooled prediction. For a single member this equals `cross_fitted` of
    the ensemble; with two or more, calibrating before and after pooling differ.

    Args:
        logits_MNC: class scores of the members' draws, all draws of a member adjacent.
    Source: Rahaman and Thiery 2021, arXiv:2007.08792, who compare both orders.
    """
    pools = np.asarray(logits_MNC).reshape(-1, num_draws, *np.shape(logits_MNC)[1:])
    return [cross_fitted(combine(logits_KNC, rule), labels_N) for logits_KNC in pools]


def folds(num_examples: int, num_folds: int = 5) -> np.ndarray:
    """Fold (N,) of each example, from its position alone, so that all rows on a test set share the folds."""
    rng = np.random.RandomState(0)  # its stream is frozen (NEP 19): every numpy gives the same folds
    fold_N = np.empty(num_examples, np.intp)
    fold_N[rng.permutation(num_examples)] = np.arange(num_examples) % num_folds
    return fold_N


def scale(logp_NC: np.ndarray, temperature: float | np.ndarray) -> np.ndarray:
    """Log-probabilities at one temperature, or one per example (N, 1): log_softmax(logp / T)."""
    return log_softmax(np.asarray(logp_NC) / temperature)


@dataclass(frozen=True, eq=False)
class _Sharpened:
    """The NLL of some predictions as a function of b = 1/T: log sum_c exp(b z_c) - b z_gold.

    Attributes:
        z_CN: log-probabilities minus each example's largest; -1e100 for a class that the example lacks.
        gold_N: z of the gold class.
    """

    z_CN: np.ndarray
    gold_N: np.ndarray

    @classmethod
    def of(cls, logp_NC: np.ndarray, labels_N: np.ndarray) -> _Sharpened:
        logp_NC, labels_N = checked(logp_NC, labels_N)
        nll_N = example_nll(logp_NC, labels_N)
        if num_zero := int(np.isinf(nll_N).sum()):
            raise Undefined("temperature", f"{num_zero} examples have probability 0 on their gold class")
        z_CN = np.ascontiguousarray(logp_NC.T)  # numpy is slow at reducing a short last axis
        z_CN = np.maximum(z_CN - z_CN.max(axis=0), -1e100)  # finite, so that 0 times it is 0
        return cls(z_CN, z_CN[labels_N, np.arange(len(labels_N))])

    @property
    def num(self) -> int:
        return len(self.gold_N)

    def only(self, which_N: np.ndarray) -> _Sharpened:
        return _Sharpened(self.z_CN[:, which_N], self.gold_N[which_N])

    def derivatives(self, b: float) -> tuple[np.ndarray, np.ndarray]:
        """E_p z - z_gold and Var_p z of each example, (N,), with p = softmax(b z)."""
        p_CN = np.exp(b * self.z_CN)
        total_N = p_CN.sum(axis=0)
        mean_N = np.einsum("cn,cn->n", p_CN, self.z_CN) / total_N
        p_CN *= self.z_CN
        square_N = np.einsum("cn,cn->n", p_CN, self.z_CN) / total_N
        return mean_N - self.gold_N, np.maximum(square_N - mean_N**2, 0.0)

    def temperature(self) -> float:
        """The T with the smallest mean NLL, by Newton's method on log b from T = 1; a step that would leave
        the bracket of the slope's signs bisects it instead."""
        coldest, hottest = -math.log(COLDEST), -math.log(HOTTEST)
        low, high, at, inside = hottest, coldest, 0.0, False
        for iteration in range(100):
            slope_N, curvature_N = self.derivatives(math.exp(at))
            slope, curvature = slope_N.mean(), math.exp(at) * curvature_N.mean()
            low, high = (at, high) if slope < 0 else (low, at)
            step = -slope / curvature if curvature > 0 else math.inf
            if not inside and (iteration == 8 or not low < at + step < high):  # is there an optimum inside?
                rises, falls = self._slope(hottest) >= 0, self._slope(coldest) <= 0
                if rises or falls:
                    return 1.0 if rises and falls else HOTTEST if rises else COLDEST
                inside = True
            at = at + step if low < at + step < high else (low + high) / 2
            if abs(step) < 1e-6 or high - low < 1e-12:  # the next step would be about its square
                break
        return math.exp(-at)

    def _slope(self, log_b: float) -> float:
        return float(self.derivatives(math.exp(log_b))[0].mean())

    def log_se(self, temperature: float) -> float:
        """Standard error of log T at the optimum: sqrt(sum slope_n^2) / (b sum curvature_n), by the delta
        method; infinite at a bound, or if the NLL does not depend on the temperature."""
        slope_N, curvature_N = self.derivatives(1 / temperature)
        if temperature in (COLDEST, HOTTEST) or not curvature_N.sum() > 0 or self.num < 2:
            return math.inf
        root = math.sqrt(np.square(slope_N).sum() * self.num / (self.num - 1))
        return float(root * temperature / curvature_N.sum())


def greedy_selection(logits_MNC: np.ndarray, labels_N: np.ndarray, picks: int) -> list[int]:
    """Members chosen one by one, each to minimise the NLL of the mean probability on validation.

    With replacement: a member may be picked again, which gives it more weight. The first k picks are the
    selection of size k; the lowest index wins a tie. Apply with `combine(logits_MNC[selection])`.

    Source: Caruana et al. 2004, ICML, section 2.
    """
    gold_logp_MN = -np.array([example_nll(logp_NC, labels_N) for logp_NC in log_softmax(logits_MNC)])
    selection: list[int] = []
    sum_N = np.full(gold_logp_MN.shape[1], -np.inf)  # log of the picked members' summed probabilities
    for _ in range(picks):
        candidate_MN = np.logaddexp(sum_N, gold_logp_MN)
        selection.append(int(candidate_MN.mean(axis=1).argmax()))
        sum_N = candidate_MN[selection[-1]]
    return selection
