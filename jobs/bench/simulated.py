"""Recipes with known true metrics and any number of trainings, for `lorae bench verdicts`.

There are two classes. t is an example's true log-odds of class 1; every recipe sees x = t + an error that
none can know. Training m sees x through its own noise, with its own sharpness: z_mn = a_m (x_n + s_m e_mn).
Both vary between trainings, and with them accuracy, NLL and calibration. The constants give about the demo's
numbers: accuracy 0.82, and an NLL of 0.46 for one member and 0.42 for four.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
from scipy import optimize, special

from analysis.estimates import Subset
from analysis.influence import Measured, measured, of_separation
from analysis.significance import root_of
from lorae.ensemble import cross_fitted
from lorae.metrics import combine, score_msp

TRUE_SCALE = 4.0  # standard deviation of the true log-odds
OOD_SCALE = 1.0  # of the OOD examples' log-odds
UNKNOWABLE = 1.5  # standard deviation of what no recipe can know
COMMON = 0.5  # share of the calibrated models' errors that they have in common
KNOWN_EXAMPLES = 20_000  # over which expectations are computed
TESTED = ("acc", "ensemble_nll", "brier", "debiased_ce15")
SCALED = {f"ts_{name}": name for name in ("ensemble_nll", "debiased_ce15")}
COLUMNS = (*TESTED, "auroc_msp", *SCALED)


@dataclass(frozen=True)
class Examples:
    """What every recipe sees of a test set and of equally many OOD examples, and the labels."""

    seen_N: np.ndarray
    ood_N: np.ndarray
    labels_N: np.ndarray
    true_N: np.ndarray  # probability of class 1

    @classmethod
    def drawn(cls, rng: np.random.Generator, num: int) -> Examples:
        true_N, ood_N = TRUE_SCALE * rng.standard_normal(num), OOD_SCALE * rng.standard_normal(num)
        unknowable_N, unknowable_ood_N = UNKNOWABLE * rng.standard_normal((2, num))
        labels_N = (rng.random(num) < special.expit(true_N)).astype(np.intp)
        return cls(true_N + unknowable_N, ood_N + unknowable_ood_N, labels_N, special.expit(true_N))

    def expected_nll(self, p_N: np.ndarray) -> float:
        """Expected NLL over the labels, for these probabilities of class 1."""
        p_N = np.clip(p_N, 1e-15, 1 - 1e-15)
        return float(-np.mean(self.true_N * np.log(p_N) + (1 - self.true_N) * np.log1p(-p_N)))


@dataclass(frozen=True, eq=False)
class Members:
    """Predictions of some trainings of a recipe, and the metrics of any of their ensembles.

    Args:
        logits_PNC: of the test set.
        ood_PNC: of the OOD examples.
        labels_N: gold class.
    """

    logits_PNC: np.ndarray
    ood_PNC: np.ndarray
    labels_N: np.ndarray

    @cached_property
    def _found(self) -> dict[Subset, dict[str, Measured]]:
        return {}

    def columns(self, subset: Subset) -> dict[str, Measured]:
        """`COLUMNS` of an ensemble, without the temperature-scaled ones if the temperature is flagged."""
        if subset not in self._found:
            logp_NC, scaled_NC = self.pooled(subset)
            found = measured(logp_NC, self.labels_N)
            ood_NC = combine(self.ood_PNC[list(subset)])
            found["auroc_msp"] = of_separation(score_msp(logp_NC), score_msp(ood_NC))
            scaled = {} if scaled_NC is None else measured(scaled_NC, self.labels_N)
            self._found[subset] = found | {ts: scaled[name] for ts, name in SCALED.items() if scaled}
        return self._found[subset]

    def pooled(self, subset: Subset) -> tuple[np.ndarray, np.ndarray | None]:
        """Log-probabilities of an ensemble, and at cross-fitted temperatures; None for flagged ones."""
        logp_NC = combine(self.logits_PNC[list(subset)])
        fit = cross_fitted(logp_NC, self.labels_N)
        return logp_NC, None if fit.flag else fit.logp_NC


@dataclass(frozen=True)
class Recipe:
    """The parameters that trainings share.

    Args:
        sharpness: factor of the log-odds.
        noise: standard deviation of a training's own noise, in log-odds before that factor.
        variation: standard deviation, between trainings, of the logarithm of both.
    """

    sharpness: float = 1.2
    noise: float = 0.8
    variation: float = 0.0

    def members(self, rng: np.random.Generator, examples: Examples, num: int) -> Members:
        """Predictions of `num` trainings."""
        both_N = np.concatenate([examples.seen_N, examples.ood_N])
        logits_PNC = _logits(self.log_odds(rng, both_N, num))
        num_test = len(examples.labels_N)
        return Members(logits_PNC[:, :num_test], logits_PNC[:, num_test:], examples.labels_N)

    def log_odds(self, rng: np.random.Generator, seen_N: np.ndarray, num: int) -> np.ndarray:
        """Log-odds of class 1 by `num` trainings, (P, N)."""
        sharpness, noise = np.exp(self.variation * rng.standard_normal((2, num, 1)))
        own_PN = rng.standard_normal((num, len(seen_N)))
        return self.sharpness * sharpness * (seen_N + self.noise * noise * own_PN)

    def expected_nll(self, members: int) -> float:
        """Expected NLL of ensembles of this size: mean of 40, on the `KNOWN_EXAMPLES` that all recipes
        share."""
        known, rng = _known(), np.random.default_rng(1)
        ensembles = (special.expit(self.log_odds(rng, known.seen_N, members)).mean(axis=0) for _ in range(40))
        return float(np.mean([known.expected_nll(p_N) for p_N in ensembles]))

    def spread(self) -> float:
        """Standard deviation over trainings of a single member's expected NLL: by 9 x 9 Gauss-Hermite nodes
        of sharpness and noise, each on the same `KNOWN_EXAMPLES` examples."""
        known, own_N = _known(), np.random.default_rng(2).standard_normal(KNOWN_EXAMPLES)
        nodes, weights = np.polynomial.hermite_e.hermegauss(9)
        factors = np.exp(self.variation * nodes)
        nll = [
            [known.expected_nll(special.expit(a * (known.seen_N + s * own_N))) for s in self.noise * factors]
            for a in self.sharpness * factors
        ]
        share = np.outer(weights, weights) / weights.sum() ** 2
        return float(np.sqrt(np.sum(share * (nll - np.sum(share * nll)) ** 2)))


@cache
def recipe_of_spread(spread: float) -> Recipe:
    """The recipe with this `Recipe.spread`, in nats."""
    if spread == 0:
        return Recipe()
    return Recipe(variation=_root(lambda v: Recipe(variation=v).spread() - spread, 0, 0.5))


@cache
def improved(recipe: Recipe, gain: float, members: int) -> Recipe:
    """A less sharp recipe, whose ensembles of this size have an expected NLL lower by `gain` nats."""
    goal = recipe.expected_nll(members) - gain

    def excess(sharpness: float) -> float:
        return replace(recipe, sharpness=sharpness).expected_nll(members) - goal

    return replace(recipe, sharpness=_root(excess, recipe.sharpness / 2, recipe.sharpness))


@cache
def true_means(recipe: Recipe, members: int) -> dict[str, float]:
    """Expectation of every column for ensembles of this size, over 400 pools of 4 on 2,000 examples.

    A calibration error is the root of its mean square.
    """
    rng, size = np.random.default_rng(3), 4
    found: dict[str, list[float]] = {name: [] for name in COLUMNS}
    for _ in range(400):
        pool = recipe.members(rng, Examples.drawn(rng, 2000), size)
        for start in range(0, size, members):
            for name, one in pool.columns(tuple(range(start, start + members))).items():
                found[name].append(one.value)
    means = {name: float(np.mean(values)) for name, values in found.items()}
    return {name: root_of(mean) if "debiased" in name else mean for name, mean in means.items()}


def calibrated(
    rng: np.random.Generator, labels_N: np.ndarray, confidence: tuple[float, float], num: int
) -> Members:
    """Trainings whose confidences, uniform in this range, are their true chances of being right.

    They err on the same examples more often than by chance: their normal scores have a common part.
    """
    shape = (num, len(labels_N))
    common_N, own_PN = rng.standard_normal(len(labels_N)), rng.standard_normal(shape)
    luck_PN = special.ndtr(np.sqrt(COMMON) * common_N + np.sqrt(1 - COMMON) * own_PN)
    confidence_PN = rng.uniform(*confidence, shape)
    is_one_PN = (luck_PN < confidence_PN) == (labels_N == 1)
    log_odds_PN = special.logit(confidence_PN) * np.where(is_one_PN, 1, -1)
    return Members(_logits(log_odds_PN), np.zeros((*shape, 2)), labels_N)


def _logits(log_odds_PN: np.ndarray) -> np.ndarray:
    return np.stack([np.zeros_like(log_odds_PN), log_odds_PN], axis=-1)


def _root(excess: Callable[[float], float], low: float, high: float) -> float:
    return float(optimize.root_scalar(excess, bracket=(low, high), xtol=1e-4).root)


@cache
def _known() -> Examples:
    return Examples.drawn(np.random.default_rng(0), KNOWN_EXAMPLES)
