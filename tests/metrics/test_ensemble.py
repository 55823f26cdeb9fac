"""Ensembles of stored logits: combination, temperatures, selection, curve over ensemble sizes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.optimize
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from lorae import ensemble
from lorae.ensemble import combine
from lorae.metrics import Undefined, log_softmax


def sampled(
    seed: int, members: int = 4, examples: int = 300, classes: int = 3, noise: float | np.ndarray = 1.0
):
    """Members that see the true logits through noise; labels drawn from the true distribution."""
    rng = np.random.default_rng(seed)
    true_NC = 2 * rng.normal(size=(examples, classes))
    labels_N = (true_NC + rng.gumbel(size=true_NC.shape)).argmax(axis=1)
    return true_NC + noise * rng.normal(size=(members, examples, classes)), labels_N


def nll(logp_NC: np.ndarray, labels_N: np.ndarray) -> float:
    return float(-logp_NC[np.arange(len(labels_N)), labels_N].mean())


# Combination ----------------------------------------------------------------------------------------------


def test_combine_is_the_arithmetic_or_the_geometric_mean():
    logits_MNC, _ = sampled(0)
    p_MNC = scipy.special.softmax(logits_MNC, axis=2)
    geometric_NC = np.exp(np.log(p_MNC).mean(axis=0))
    np.testing.assert_allclose(np.exp(combine(logits_MNC, "probs")), p_MNC.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(
        np.exp(combine(logits_MNC, "logits")),
        geometric_NC / geometric_NC.sum(axis=1, keepdims=True),
        rtol=1e-12,
    )


@pytest.mark.parametrize("rule", ["probs", "logits"])
def test_combine_does_not_depend_on_the_order_of_members_in_any_bit(rule):
    logits_MNC, _ = sampled(1, members=5)
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 7):
        np.testing.assert_array_equal(combine(logits_MNC[list(order)], rule), combine(logits_MNC, rule))


def test_votes_that_tie_are_exact_ties():
    """Three members, mirrored classes: neither class may win by rounding."""
    votes_MNC = np.log([[[0.1, 0.7, 0.2]], [[0.7, 0.1, 0.2]], [[0.15, 0.15, 0.7]]])
    logp_C = combine(votes_MNC, "probs")[0]
    assert logp_C[0] == logp_C[1]


def test_combine_of_one_member_is_its_softmax_and_extreme_logits_stay_finite():
    logits_MNC = np.array([[[1e5, 0.0, -1e5]]])
    for rule in ("probs", "logits"):
        np.testing.assert_array_equal(combine(logits_MNC, rule), [[0.0, -1e5, -2e5]])


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match='allowed are "probs", "logits", and "weights" of one'):
        combine(np.zeros((1, 1, 2)), "votes")  # type: ignore[arg-type]


def test_mean_weights_are_those_of_one_model():
    logits_MNC = np.random.default_rng(0).normal(size=(2, 3, 4))
    np.testing.assert_array_equal(combine(logits_MNC[:1], "weights"), log_softmax(logits_MNC[0]))
    with pytest.raises(ValueError, match="of 2 members"):
        combine(logits_MNC, "weights")


# Sizes and subsets ----------------------------------------------------------------------------------------


def test_subsets_are_all_of_them_or_a_sample_without_repeats():
    assert ensemble.subsets(4, 2) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    some = ensemble.subsets(20, 10, max_subsets=30, seed=1)
    assert len(some) == len(set(some)) == 30
    assert all(list(subset) == sorted(set(subset)) and len(subset) == 10 for subset in some)
    assert some == ensemble.subsets(20, 10, max_subsets=30, seed=1) != ensemble.subsets(20, 10, 30, seed=2)
    assert len(ensemble.subsets(6, 3, max_subsets=19)) == 19  # of 20
    with pytest.raises(ValueError, match="pool of 3 allows 1 to 3"):
        ensemble.subsets(3, 4)


def test_sampled_subsets_hold_every_member_about_equally_often():
    count = np.bincount(np.ravel(ensemble.subsets(10, 3, max_subsets=100, seed=3)), minlength=10)
    assert count.sum() == 300 and count.min() > 15 and count.max() < 45


# Temperature ----------------------------------------------------------------------------------------------


def scipy_temperature(logp_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """The optimum of a grid, then of Brent's method around it, on log T."""

    def at(log_t: float) -> float:
        return nll(scipy.special.log_softmax(logp_NC / np.exp(log_t), axis=1), labels_N)

    grid = np.linspace(np.log(0.05), np.log(20), 60)
    best = int(np.argmin([at(log_t) for log_t in grid]))
    around = grid[max(best - 1, 0)], grid[min(best + 1, 59)]
    found = scipy.optimize.minimize_scalar(at, bounds=around, method="bounded", options={"xatol": 1e-12})
    return float(np.exp(found.x))


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_temperature_is_the_minimum_that_scipy_finds(sharpness):
    logits_MNC, labels_N = sampled(4, members=1, noise=0.1)
    logp_NC = log_softmax(sharpness * logits_MNC[0])
    fitted = ensemble.fit_temperature(logp_NC, labels_N)
    assert fitted == pytest.approx(scipy_temperature(logp_NC, labels_N), rel=1e-6)  # scipy's own accuracy
    assert fitted == pytest.approx(sharpness, rel=0.2)
    slope = [
        nll(scipy.special.log_softmax(logp_NC / t, axis=1), labels_N)
        for t in (fitted * (1 - 1e-4), fitted * (1 + 1e-4))
    ]
    assert slope[0] == pytest.approx(slope[1], abs=1e-12)  # an error of 1e-8 in log T shows


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(-3, 3), st.floats(-2, 2), st.integers(2, 40))
def test_temperature_is_found_from_afar_and_at_the_bounds(seed, log_scale, log_truth, examples):
    rng = np.random.default_rng(seed)
    logp_NC = log_softmax(np.exp(log_scale) * rng.normal(size=(examples, 3)))
    labels_N = (np.exp(log_truth) * logp_NC + rng.gumbel(size=logp_NC.shape)).argmax(axis=1)
    fitted, reference = (f(logp_NC, labels_N) for f in (ensemble.fit_temperature, scipy_temperature))
    ours, scipys = (nll(ensemble.scale(logp_NC, t), labels_N) for t in (fitted, reference))
    assert ours <= scipys + 1e-12 and 0.05 <= fitted <= 20


def test_temperature_stays_in_bounds_where_the_optimum_is_infinite():
    logits_NC, labels_N = np.array([[2.0, 0, 0], [0, 3.0, 1.0]]), np.array([0, 1])
    right, wrong = log_softmax(logits_NC), log_softmax(-5 * logits_NC)
    assert ensemble.fit_temperature(right, labels_N) == ensemble.COLDEST
    steep = log_softmax(900 * logits_NC)  # the slope underflows
    assert ensemble.fit_temperature(steep, labels_N) == ensemble.COLDEST
    assert ensemble.fit_temperature(wrong, labels_N) == ensemble.HOTTEST
    assert ensemble.fit_temperature(log_softmax(np.zeros((2, 3))), labels_N) == 1


def test_temperature_is_undefined_where_no_temperature_helps():
    zero = np.array([[-np.inf, 0.0], [-0.7, -0.7]]) - np.array([[0.0], [np.logaddexp(-0.7, -0.7)]])
    for fit in (ensemble.fit_temperature, ensemble.cross_fitted):
        with pytest.raises(Undefined, match="1 examples have probability 0"):
            fit(zero, np.array([0, 0]))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 30), st.integers(1, 12), st.booleans())
def test_temperature_never_worsens_the_nll_nor_changes_the_class(seed, sharpness, examples, masked):
    logits_MNC, labels_N = sampled(seed, 2, examples, classes=4)
    if masked:
        logits_MNC[:, labels_N < 3, 3] = -np.inf
    logp_NC = combine(sharpness * logits_MNC)
    scaled_NC = ensemble.scale(logp_NC, ensemble.fit_temperature(logp_NC, labels_N))
    assert nll(scaled_NC, labels_N) <= nll(logp_NC, labels_N) + 1e-12
    second_N, top_N = np.sort(logp_NC, axis=1)[:, -2:].T
    sure_N = top_N - second_N > 1e-6  # rounding may swap classes that tie
    np.testing.assert_array_equal(scaled_NC.argmax(axis=1)[sure_N], logp_NC.argmax(axis=1)[sure_N])
    np.testing.assert_array_equal(np.isinf(scaled_NC), np.isinf(logp_NC))


# Cross-fitting --------------------------------------------------------------------------------------------


def test_each_fold_is_scaled_by_the_temperature_of_the_others():
    logits_MNC, labels_N = sampled(5, members=1, examples=103)
    logp_NC = log_softmax(3 * logits_MNC[0])
    fit = ensemble.cross_fitted(logp_NC, labels_N)
    assert np.bincount(fit.fold_N).tolist() == [21, 21, 21, 20, 20]
    assert len(set(fit.temperature_K)) == 5 and fit.flag is None
    for k in range(5):
        rest = fit.fold_N != k
        expected = scipy_temperature(logp_NC[rest], labels_N[rest])
        assert fit.temperature_K[k] == pytest.approx(expected, rel=1e-6)
        scaled = scipy.special.log_softmax(logp_NC[~rest] / fit.temperature_K[k], axis=1)
        np.testing.assert_allclose(fit.logp_NC[~rest], scaled, rtol=1e-12)
    assert fit.temperature == pytest.approx(np.prod(fit.temperature_K) ** 0.2)


def test_no_label_moves_its_own_prediction():
    logits_MNC, labels_N = sampled(6, members=1, examples=60)
    logp_NC = log_softmax(logits_MNC[0])
    before = ensemble.cross_fitted(logp_NC, labels_N)
    for n in (0, 17, 59):
        other = labels_N.copy()
        other[n] = (labels_N[n] + 1) % 3
        after = ensemble.cross_fitted(logp_NC, other)
        own = before.fold_N == before.fold_N[n]
        np.testing.assert_array_equal(after.logp_NC[own], before.logp_NC[own])
        assert (after.logp_NC[~own] != before.logp_NC[~own]).any(axis=1).all()


def test_folds_depend_on_the_number_of_examples_alone():
    """Written out, so that no other numpy, and no later lorae, moves them unnoticed."""
    assert ensemble.folds(7).tolist() == [4, 2, 1, 3, 1, 0, 0]
    assert sorted(ensemble.folds(3).tolist()) == [0, 1, 2]
    logp_NC, labels_N = log_softmax(np.zeros((9, 2))), np.zeros(9, int)
    folds = [ensemble.cross_fitted(x, labels_N).fold_N for x in (logp_NC, log_softmax(np.eye(9)[:, :2]))]
    np.testing.assert_array_equal(*folds)


def test_the_standard_error_is_that_of_repeated_test_sets():
    """Predictions that no temperature calibrates, so that the error of a correct model would not do."""
    rng = np.random.default_rng(7)
    fits = []
    for _ in range(300):
        z_NC = 2 * rng.normal(size=(200, 4)) * rng.choice([0.3, 3.0], size=(200, 1))
        labels_N = (np.sign(z_NC) * np.abs(z_NC) ** 0.5 + rng.gumbel(size=z_NC.shape)).argmax(axis=1)
        fit = ensemble.cross_fitted(log_softmax(z_NC), labels_N)
        fits.append((np.log(ensemble.fit_temperature(log_softmax(z_NC), labels_N)), fit.log_se))
    log_t, log_se = np.transpose(fits)
    assert np.mean(log_se) == pytest.approx(np.std(log_t), rel=0.15)


def test_a_temperature_that_says_little_is_flagged():
    right_NC, wrong_NC = np.tile([0.0, -1.0, -2.0], (20, 1)), np.tile([-3.0, 0.0, -3.0], (20, 1))
    labels_N = np.zeros(20, int)
    assert ensemble.cross_fitted(log_softmax(right_NC), labels_N).flag == "at its bound 0.05 in 5 of 5 folds"
    assert ensemble.cross_fitted(log_softmax(wrong_NC), labels_N).flag == "at its bound 20 in 5 of 5 folds"
    one_wrong = labels_N.copy()
    one_wrong[3] = 1  # in the fold without it all are right
    assert ensemble.cross_fitted(log_softmax(right_NC), one_wrong).flag == "at its bound 0.05 in 1 of 5 folds"
    logits_MNC, labels_N = sampled(9, members=1, examples=400)
    logp_NC = log_softmax(logits_MNC[0])
    few = ensemble.cross_fitted(logp_NC[:12], labels_N[:12])
    low, high = (few.temperature * np.exp(sign * 1.96 * few.log_se) for sign in (-1, 1))
    assert high / low > 4
    assert few.flag == f"95 % interval {low:.2g} to {high:.2g} from 12 examples"
    many = ensemble.cross_fitted(logp_NC, labels_N)
    assert many.flag is None and np.exp(1.96 * many.log_se) < 2
    for flat in (np.zeros((9, 3)), np.zeros((1, 3))):
        fit = ensemble.cross_fitted(log_softmax(flat), labels_N[: len(flat)])
        assert fit.temperature == 1 and fit.flag == f"95 % interval 0 to inf from {len(flat)} examples"


@pytest.mark.parametrize("rule", ["probs", "logits"])
def test_each_member_gets_its_own_temperature_before_pooling(rule):
    logits_MNC, labels_N = sampled(5, members=3)
    sharpness_M = np.array([0.5, 1.0, 6.0])[:, None, None]
    fits = ensemble.cross_fitted_members(sharpness_M * logits_MNC, labels_N, rule=rule)
    calibrated = ensemble.cross_fitted_members(logits_MNC, labels_N, rule=rule)
    for m, (fit, other) in enumerate(zip(fits, calibrated, strict=True)):
        np.testing.assert_allclose(fit.temperature_K, sharpness_M[m].item() * other.temperature_K, rtol=1e-6)
        np.testing.assert_allclose(fit.logp_NC, other.logp_NC, atol=1e-6)
    pooled_first = ensemble.cross_fitted(combine(sharpness_M * logits_MNC, rule), labels_N)
    pooled_last = combine(np.stack([fit.logp_NC for fit in fits]), rule)
    assert nll(pooled_last, labels_N) < nll(pooled_first.logp_NC, labels_N) - 0.005


@pytest.mark.parametrize("rule, draws", [("probs", 1), ("probs", 3), ("logits", 3), ("weights", 1)])
def test_both_orders_are_one_for_a_single_member(rule, draws):
    logits_KNC, labels_N = sampled(8, members=draws)
    (fit,) = ensemble.cross_fitted_members(logits_KNC, labels_N, num_draws=draws, rule=rule)
    pooled = ensemble.cross_fitted(combine(logits_KNC, rule), labels_N)
    np.testing.assert_array_equal(fit.logp_NC, pooled.logp_NC)
    np.testing.assert_allclose(combine(fit.logp_NC[None], rule), pooled.logp_NC, atol=1e-12)


# Selection -------------------------------------------------------------------------------------------------


def test_greedy_selection_takes_the_best_next_member_each_time_by_brute_force():
    logits_MNC, labels_N = sampled(8, members=5, examples=60, noise=2.0)
    expected: list[int] = []
    for _ in range(6):
        candidates = [nll(combine(logits_MNC[[*expected, m]]), labels_N) for m in range(5)]
        expected.append(int(np.argmin(candidates)))
    selection = ensemble.greedy_selection(logits_MNC, labels_N, picks=6)
    assert selection == expected and 1 < len(set(expected)) < 6
    assert selection[:3] == ensemble.greedy_selection(logits_MNC, labels_N, picks=3)


def test_greedy_selection_picks_a_much_better_member_again():
    good_NC, labels_N = np.tile([3.0, 0.0], (5, 1)), np.zeros(5, dtype=int)
    assert ensemble.greedy_selection(np.stack([-good_NC, good_NC]), labels_N, picks=3) == [1, 1, 1]
