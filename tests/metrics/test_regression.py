"""Metrics of numbers against scipy, torchmetrics and integrals; invariants of mixtures; what is undefined."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torchmetrics.functional as tm
from scipy import integrate, stats

from lorae.metrics import VALUE_METRICS, Undefined, pooled_nll, value_summary
from lorae.metrics import regression as reg
from lorae.metrics.mixtures import Mixture
from lorae.metrics.summary import value_ood_summary
from lorae.recalibration import cross_fitted_variance

RNG = np.random.default_rng(0)
Y = RNG.normal(2, 1.5, 200)
VALUES = np.stack([Y + RNG.normal(0, 1, (3, 200)), RNG.normal(0, 0.4, (3, 200))], axis=2)  # M=3
MIXTURE = Mixture.of(VALUES)


def test_errors_and_correlations_are_those_of_torchmetrics():
    mean, gold = torch.tensor(VALUES[:, :, 0].mean(0)), torch.tensor(Y)
    found = value_summary(VALUES, Y)
    expected = {
        "rmse": tm.mean_squared_error(mean, gold, squared=False),
        "mae": tm.mean_absolute_error(mean, gold),
        "r2": tm.r2_score(mean, gold),
        "pearson": tm.pearson_corrcoef(mean, gold),
        "spearman": tm.spearman_corrcoef(mean, gold),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value.item(), rel=1e-6), name
    assert found.keys() == VALUE_METRICS.keys()


def test_spearman_shares_the_ranks_of_ties():
    y = np.array([0.0, 1, 1, 2, 5, 5])
    values = np.array([1.0, 1, 2, 0, 3, 3])[None, :, None]
    assert value_summary(values, y)["spearman"] == pytest.approx(stats.spearmanr(values[0, :, 0], y)[0])


def test_nll_is_that_of_the_mean_density():
    sd = np.exp(VALUES[:, :, 1] / 2)
    density = stats.norm(VALUES[:, :, 0], sd).pdf(Y).mean(axis=0)
    assert reg.density_nll(MIXTURE, Y) == pytest.approx(-np.log(density).mean(), rel=1e-12)
    assert reg.mean_member_density_nll(MIXTURE, Y) > reg.density_nll(MIXTURE, Y)


def crps_by_integral(mixture: Mixture, n: int, y: float) -> float:
    """Integral of (F(x) - [x >= y])^2 over x; of points F is a staircase."""
    mean, sd = mixture.mean_MN[:, n], np.sqrt(mixture.variance_MN[:, n])

    def squared(x: float) -> float:
        below = stats.norm.cdf((x - mean) / sd) if mixture.has_variance else x >= mean
        return float((np.mean(below) - (x >= y)) ** 2)

    kinks = sorted([y, *mean])
    edges = [kinks[0] - 25, *kinks, kinks[-1] + 25]
    return sum(integrate.quad(squared, a, b, limit=200)[0] for a, b in itertools.pairwise(edges))


@pytest.mark.parametrize("values", [VALUES[:, :4], VALUES[:1, :4], VALUES[:, :4, :1]])
def test_crps_is_the_integral_of_its_definition(values):
    mixture = Mixture.of(values)
    expected = [crps_by_integral(mixture, n, Y[n]) for n in range(4)]
    assert reg.example_crps(mixture, Y[:4]) == pytest.approx(expected, rel=1e-5)


def test_a_single_mean_has_its_absolute_error_as_crps():
    mixture = Mixture.of(VALUES[:1, :, :1])
    assert reg.crps(mixture, Y) == pytest.approx(reg.mae(mixture, Y), rel=1e-12)


def test_variance_is_aleatoric_and_epistemic():
    """Law of total variance, against samples of the mixture."""
    rng = np.random.default_rng(1)
    member = rng.integers(0, 3, 400_000)
    drawn = rng.normal(VALUES[member, 0, 0], np.exp(VALUES[member, 0, 1] / 2))
    assert MIXTURE.variance_N[0] == pytest.approx(drawn.var(), rel=0.02)
    assert MIXTURE.epistemic_N == pytest.approx(VALUES[:, :, 0].var(axis=0))
    same = Mixture.of(np.repeat(VALUES[:1], 3, axis=0))
    assert same.epistemic_N == pytest.approx(np.zeros(200), abs=1e-20)
    assert reg.density_nll(same, Y) == pytest.approx(reg.density_nll(Mixture.of(VALUES[:1]), Y))


def test_no_metric_depends_on_the_order_of_members():
    assert value_summary(VALUES, Y) == pytest.approx(value_summary(VALUES[[2, 0, 1]], Y), rel=1e-12)


def test_quantiles_and_intervals_of_one_gaussian_are_scipys():
    single = Mixture.of(VALUES[:1])
    sd = np.exp(VALUES[0, :, 1] / 2)
    assert single.quantile(0.95) == pytest.approx(stats.norm(VALUES[0, :, 0], sd).ppf(0.95), abs=1e-9)
    assert reg.width90(single, Y) == pytest.approx((2 * stats.norm.ppf(0.95) * sd).mean())
    inside = np.abs(Y - VALUES[0, :, 0]) <= stats.norm.ppf(0.95) * sd
    assert reg.picp90(single, Y) == inside.mean()


def test_a_calibrated_mixture_has_uniform_pit_and_a_sharp_one_has_not():
    rng = np.random.default_rng(2)
    mean, sd = rng.normal(size=4000), np.exp(rng.normal(0, 0.3, 4000))
    y = rng.normal(mean, sd)
    calibrated = Mixture.of(np.stack([mean, 2 * np.log(sd)], axis=1)[None])
    assert stats.kstest(reg.pit(calibrated, y), "uniform").pvalue > 0.01
    assert reg.quantile_ece(calibrated, y) < 0.02 and abs(reg.picp90(calibrated, y) - 0.9) < 0.02
    assert reg.quantile_ece(calibrated.scaled(0.2), y) > 0.1


def test_variance_scaling_finds_the_factor_and_never_sees_its_own_labels():
    rng = np.random.default_rng(3)
    mean, y = rng.normal(size=600), np.empty(600)
    y = rng.normal(mean, 3.0)
    fit = cross_fitted_variance(Mixture.of(np.stack([mean, np.zeros(600)], axis=1)[None]), y)
    assert fit.temperature == pytest.approx(np.sqrt(((y - mean) ** 2).mean()), rel=0.01) and fit.flag is None
    for k, factor in enumerate(fit.temperature_K):
        others = fit.fold_N != k
        assert factor == pytest.approx(np.sqrt(((y - mean)[others] ** 2).mean()), rel=1e-3)
    assert reg.density_nll(fit.mixture, y) < 3 - 0.4
    assert 0.5 / fit.log_se**2 == pytest.approx(600, rel=0.3), "var of log s is 1 / (2 N)"
    perfect = Mixture.of(np.stack([mean, np.zeros(600)], axis=1)[None])
    assert cross_fitted_variance(perfect, mean).flag == "at its bound 0.05 in 5 of 5 folds"


@pytest.mark.parametrize("has_variance", [True, False])
def test_conformal_intervals_hold_what_they_promise(has_variance):
    rng, held = np.random.default_rng(4), []
    for _ in range(300):
        mean, log_sd = rng.normal(size=60), rng.normal(0, 0.5, 60)
        y = mean + 2 * np.exp(log_sd) * rng.standard_t(3, 60)
        values = np.stack([mean, 2 * log_sd], axis=1)[None, :, : 1 + has_variance]
        seen, new = Mixture.of(values[:, :40]), Mixture.of(values[:, 40:])
        half = reg.conformal_factor(seen, y[:40]) * reg.conformal_scale(new)
        held.append((reg.absolute_errors(new, y[40:]) <= half).mean())
    assert np.mean(held) == pytest.approx(37 / 41, abs=0.015), "the 37th smallest of 41"
    assert reg.conformal_factor(Mixture.of(VALUES[:, :5]), Y[:5]) == np.inf


def test_far_examples_are_told_by_what_members_disagree_on():
    far = VALUES + np.array([[[0.0, 0]], [[4, 0]], [[-4, 0]]])
    found = value_ood_summary(VALUES, far)
    assert found["auroc_epistemic_variance"] > 0.9 and found["auroc_total_variance"] > 0.9
    single = value_ood_summary(VALUES[:1, :, :1], far[:1, :, :1])
    assert set(single.values()) == {None}


# Undefined and bad input


def test_what_is_undefined_is_none_and_never_a_number():
    constant = np.zeros((1, 5, 1))
    found = value_summary(constant, np.arange(5.0))
    without = {name for name, value in found.items() if value is None}
    no_variance = {
        "ensemble_nll",
        "mean_member_nll",
        "picp90",
        "width90",
        "quantile_ece",
        "aleatoric_variance",
    }
    assert without == {"pearson", "spearman", "epistemic_variance"} | no_variance
    same = value_summary(np.arange(5.0)[None, :, None], np.full(5, 0.1))
    assert same["r2"] is None and same["pearson"] is None and same["rmse"] > 0
    with pytest.raises(Undefined, match="all predictions are equal"):
        reg.pearson(Mixture.of(constant), np.arange(5.0))


def test_tuning_judges_by_nll_or_without_a_variance_by_squared_error():
    assert pooled_nll(VALUES, Y) == reg.density_nll(MIXTURE, Y)
    assert pooled_nll(VALUES[:, :, :1], Y) == pytest.approx(reg.rmse(Mixture.of(VALUES[:, :, :1]), Y) ** 2)


@pytest.mark.parametrize(
    ("values", "y", "rule", "fault"),
    [
        (VALUES[0], Y, "probs", "must be"),
        (np.where(VALUES[1, 3, 0] == VALUES, np.nan, VALUES), Y, "probs", r"\[1, 3, 0\] is nan"),
        (VALUES, np.where(Y[0] == Y, np.inf, Y), "probs", "1 of them not finite"),
        (VALUES, Y[:-1], "probs", "must be"),
        (VALUES, Y, "logits", 'rule="probs"'),
        (VALUES, Y, "weights", "of 3 members"),
    ],
)
def test_what_is_no_prediction_or_label_is_refused(values, y, rule, fault):
    with pytest.raises(ValueError, match=fault):
        value_summary(values, y, rule)
