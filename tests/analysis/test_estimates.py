"""Estimates over the subsets of pools: against brute force, and what a member moves."""

from __future__ import annotations

import itertools
import json
import math
from typing import cast

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import roc_auc_score

from analysis.cells import Cell
from analysis.estimates import Design, Pool, estimate
from analysis.influence import Measured, measured, of_mean, of_separation, of_squared_error
from analysis.pooling import Estimates
from lorae import metrics
from lorae.metrics import combine
from lorae.store.predictions import Predictions
from lorae.store.store import Store

N = 60


def logits(members: int, seed: int = 0, num: int = N) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels_N = rng.integers(0, 3, num)
    return 2 * np.eye(3)[labels_N] + rng.normal(0, 1.5, (members, num, 3)), labels_N


def nll_pool(logits_MNC: np.ndarray, labels_N: np.ndarray, members: int, seed: int = 0, **kwargs) -> Pool:
    def measure(subset: tuple[int, ...]) -> Measured:
        return measured(combine(logits_MNC[list(subset)]), labels_N)["ensemble_nll"]

    return Pool(seed, Design.of(len(logits_MNC), members, **kwargs), measure)


def test_the_estimate_is_the_mean_over_all_subsets_of_each_pool_then_over_seeds():
    logits_SMNC, labels_N = zip(*(logits(4, seed) for seed in (0, 0)))
    logits_SMNC = [logits_SMNC[0], logits_SMNC[0][:3] * 0.5]  # pools of four and of three
    found = estimate(
        [nll_pool(one, labels_N[0], 2, seed) for seed, one in enumerate(logits_SMNC)], exchangeable=True
    )
    means = [
        np.mean([metrics.ensemble_nll(combine(one[list(s)]), labels_N[0]) for s in pairs])
        for one in logits_SMNC
        for pairs in [list(itertools.combinations(range(len(one)), 2))]
    ]
    assert found.value == pytest.approx(np.mean(means)) and found.num_trainings == 7


def test_singles_have_the_standard_error_of_their_mean():
    logits_MNC, labels_N = logits(5)
    nll_M = [metrics.ensemble_nll(combine(one[None]), labels_N) for one in logits_MNC]
    found = estimate([nll_pool(logits_MNC, labels_N, 1)], exchangeable=True)
    assert found.mean == pytest.approx(np.mean(nll_M))
    assert found.stderr == pytest.approx(np.std(nll_M, ddof=1) / np.sqrt(5))


def test_what_a_member_moves_is_the_jackknife_over_members():
    logits_MNC, labels_N = logits(5)

    def u_statistic(members: list[int]) -> float:
        pairs = itertools.combinations(members, 2)
        return float(np.mean([metrics.ensemble_nll(combine(logits_MNC[list(s)]), labels_N) for s in pairs]))

    without = np.array([u_statistic([j for j in range(5) if j != i]) for i in range(5)])
    pool = nll_pool(logits_MNC, labels_N, 2)
    moved_P = pool.moved(np.arange(0))[:, 0]
    assert moved_P == pytest.approx(4 * (without.mean() - without))
    found = estimate([pool], exchangeable=True)
    assert found.stderr == pytest.approx(np.sqrt(4 / 5 * np.sum((without - without.mean()) ** 2)))


def test_of_a_sample_of_subsets_members_move_an_additive_metric_as_of_all():
    effect_P = np.random.default_rng(1).normal(size=12)
    value = lambda subset: of_mean(np.full(20, effect_P[list(subset)].mean()))  # noqa: E731
    pool = Pool(0, Design.of(12, 6, max_subsets=40), value)
    assert len(pool.design.chosen) == 40
    assert pool.moved(np.arange(0))[:, 0] == pytest.approx(effect_P - effect_P.mean())


@pytest.mark.parametrize(("pool_size", "members"), [(20, 5), (20, 7), (12, 6), (13, 12), (90, 45)])
def test_a_sample_of_subsets_holds_each_member_equally_often(pool_size, members):
    chosen = Design.of(pool_size, members, max_subsets=max(12, 2 * pool_size)).chosen
    times = np.bincount(np.concatenate(chosen), minlength=pool_size)
    assert len(set(times)) == 1 and all(len(set(subset)) == members for subset in chosen)
    assert len(chosen) <= 2 * pool_size or math.comb(pool_size, members) <= 2 * pool_size


def test_a_sample_of_subsets_finds_the_mean_of_an_additive_metric_exactly():
    """The mean over all subsets, whatever a few good members do."""
    effect_P = np.exp(np.random.default_rng(1).normal(size=20))
    found = estimate(
        [Pool(0, Design.of(20, 5), lambda subset: of_mean(np.full(9, effect_P[list(subset)].mean())))],
        exchangeable=True,
    )
    assert found.value == pytest.approx(effect_P.mean(), rel=1e-12)


def test_a_pool_no_larger_than_the_ensemble_tells_nothing_about_others_but_two_do():
    logits_MNC, labels_N = logits(6)
    one = estimate([nll_pool(logits_MNC[:3], labels_N, 3)], exchangeable=True)
    assert one.is_of_these and one.stderr is None
    pools = [nll_pool(half, labels_N, 3, seed) for seed, half in enumerate((logits_MNC[:3], logits_MNC[3:]))]
    two = estimate(pools, exchangeable=True)
    assert not two.is_of_these and two.members is not None and len(two.members) == 6


def test_members_that_share_a_stream_are_told_apart_by_seeds_alone():
    logits_MNC, labels_N = logits(6)
    pools = [nll_pool(half, labels_N, 1, seed) for seed, half in enumerate((logits_MNC[:3], logits_MNC[3:]))]
    found = estimate(pools, exchangeable=False)
    means = [pool.values[0] for pool in pools]
    assert found.members is None and found.stderr == pytest.approx(abs(means[0] - means[1]) / 2)
    assert estimate(pools[:1], exchangeable=False).is_of_these


def test_a_large_test_set_is_sampled_for_what_examples_and_trainings_move_together():
    logits_MNC, labels_N = logits(4, num=3000)
    found = estimate([nll_pool(logits_MNC, labels_N, 1)], exchangeable=True)
    assert found.members is not None and len(found.examples) == 3000
    rows = np.array(list(found.members.values()))
    of_all = np.array([measured(combine(one[None]), labels_N)["ensemble_nll"].examples for one in logits_MNC])
    expected = np.sum((of_all - of_all.mean(axis=0)) ** 2) / (4 * 3)
    assert rows.shape == (4, 1001) and np.sum(rows[:, 1:] ** 2) == pytest.approx(expected, rel=0.1)


def test_larger_ensembles_of_a_pool_have_lower_nlls_down_from_the_mean_members():
    logits_MNC, labels_N = logits(5)
    values = [nll_pool(logits_MNC, labels_N, size).values[0] for size in range(1, 6)]
    assert values == sorted(values, reverse=True)  # by convexity, exact when all subsets are taken
    assert values[0] == pytest.approx(metrics.mean_member_nll(logits_MNC, labels_N))
    assert values[-1] == pytest.approx(metrics.ensemble_nll(combine(logits_MNC), labels_N))


@pytest.mark.parametrize("rule", ["probs", "logits"])
def test_an_ensemble_of_a_cell_has_all_draws_of_its_members(rule):
    logits_DNC, labels_N = logits(6)  # two draws of each of three members

    class Stored:
        def predictions(self, folders: tuple[str, ...], eval_set: str) -> Predictions:
            return Predictions(logits_DNC, labels_N, tuple(map(str, range(N))))

    def row(members: int) -> dict:
        ids = ["a", "b", "c"][:members]
        sets = json.dumps({"test": "toy__test__aa-mc-2", "validation": "toy__validation__aa-mc-2"})
        fixed = {"recipe": "{}", "seed": 0, "diversity": "init+order", "num_examples": N, "reference_id": ""}
        return fixed | {"members": members, "member_ids": ids, "combine": rule, "eval_sets": sets}

    rows = [row(2), row(3)]
    pair = Cell({"members": 2}, (rows[0],))
    found = Estimates(cast(Store, Stored()), rows, {}).of(pair, "ensemble_nll")
    draws = [[0, 1, 2, 3], [0, 1, 4, 5], [2, 3, 4, 5]]
    expected = [metrics.ensemble_nll(combine(logits_DNC[pair], rule), labels_N) for pair in draws]
    assert found is not None and found.mean == pytest.approx(np.mean(expected)) and found.num_trainings == 3


# What examples contribute -----------------------------------------------------------------------------------


def test_values_are_those_of_the_metrics():
    logits_MNC, labels_N = logits(3)
    logp_NC = combine(logits_MNC)
    found = measured(logp_NC, labels_N)
    for name in ("acc", "ensemble_nll", "brier"):
        assert found[name].value == pytest.approx(getattr(metrics, name)(logp_NC, labels_N))
        assert np.sum(found[name].examples) == pytest.approx(0, abs=1e-12)
    square = found["debiased_ce15"].value
    assert np.sign(square) * np.sqrt(abs(square)) == pytest.approx(metrics.debiased_ce15(logp_NC, labels_N))


def test_contributions_to_a_mean_are_its_standard_error():
    value_N = np.random.default_rng(0).normal(size=N)
    assert np.sum(of_mean(value_N).examples ** 2) == pytest.approx(np.var(value_N, ddof=1) / N)


def test_contributions_to_an_auroc_are_those_of_delong():
    rng = np.random.default_rng(0)
    in_N, ood_N = rng.normal(size=50).round(1), rng.normal(0.8, 1, 30).round(1)  # with ties
    found = of_separation(in_N, ood_N)
    assert found.value == pytest.approx(
        roc_auc_score(np.repeat([0, 1], [50, 30]), np.concatenate([in_N, ood_N]))
    )
    above = (ood_N[:, None] > in_N) + 0.5 * (ood_N[:, None] == in_N)
    shares = [np.var(above.mean(axis=axis), ddof=1) / num for axis, num in ((0, 50), (1, 30))]
    widened = [scipy.stats.t.isf(0.025, num - 1) / scipy.stats.norm.isf(0.025) for num in (50, 30)]
    assert np.sum(found.examples**2) == pytest.approx(np.square(widened) @ shares)
    assert len(of_separation(in_N, ood_N[:1]).examples) == 0


def test_the_squared_calibration_error_is_unbiased_however_sure_the_model_is():
    """Calibrated models: ECE-15 is far above 0 for the unsure one, the debiased square is 0 on average."""
    rng, mean_ece = np.random.default_rng(0), []
    for low, high in ((0.5, 1.0), (0.95, 0.99)):
        squares, eces = [], []
        for _ in range(400):
            top_N = rng.uniform(low, high, 240)
            labels_N = (rng.random(240) > top_N).astype(int)  # class 0 has the top probability
            logp_NC = np.log(np.stack([top_N, 1 - top_N], axis=1))
            squares.append(of_squared_error(logp_NC, labels_N).value)
            eces.append(metrics.ece15(logp_NC, labels_N))
        assert abs(np.mean(squares)) < 3 * np.std(squares) / np.sqrt(400)
        mean_ece.append(np.mean(eces))
    assert mean_ece[0] > 4 * mean_ece[1] > 0


def test_the_squared_calibration_error_of_an_overconfident_model():
    labels_N = (np.arange(1000) % 10 >= 6).astype(int)  # right in 60 %
    logp_NC = np.log(np.tile([0.9, 0.1], (1000, 1)))
    assert metrics.debiased_ce15(logp_NC, labels_N) == pytest.approx(0.3, abs=0.01)
