"""Error rates of verdicts, by a small simulation, and that the simulation's recipes are what they say."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest

from analysis.influence import of_squared_error
from jobs import cli
from jobs.bench import verdicts
from jobs.bench.examples_only import Resampled, Resampling, worse
from jobs.bench.simulated import Examples, Recipe, calibrated, improved, recipe_of_spread
from jobs.bench.verdicts import Row, Trained, family, tells_any
from lorae import metrics

POOL, SEEDS = Trained(1, 4, 1), Trained(3, 1, 1)
NLL, ROWS, EXAMPLES = "ensemble_nll", 6, 600


@functools.cache
def tables() -> list[list[Row]]:
    """30 tables of equal rows, each on a test set of its own; trainings vary by 0.03 nats."""
    rng, recipe = np.random.default_rng(0), recipe_of_spread(0.03)
    return [drawn(rng, [recipe] * ROWS) for _ in range(30)]


def drawn(rng: np.random.Generator, recipes: list[Recipe]) -> list[Row]:
    examples, resampling = Examples.drawn(rng, EXAMPLES), Resampling.drawn(rng, EXAMPLES)
    members = [recipe.members(rng, examples, 9) for recipe in recipes]
    return [Row.of(one, resampling, (POOL, SEEDS), [NLL]) for one in members]


def told(rows: list[Row], trained: Trained) -> tuple[bool, bool]:
    """Whether a table has a verdict: now, and before."""
    before = [one for row in rows if (one := row.before[trained, NLL])]
    return tells_any(family([row.now[trained, NLL] for row in rows], NLL)), bool(worse(before, NLL)[1])


@pytest.mark.slow
@pytest.mark.parametrize("trained", [POOL, SEEDS], ids=str)
@pytest.mark.parametrize("size", [2, ROWS])
def test_equal_rows_are_seldom_told_apart_which_examples_alone_often_do(trained, size):
    parts = [rows[start : start + size] for rows in tables() for start in range(0, ROWS, size)]
    now, before = np.mean([told(rows, trained) for rows in parts], axis=0)
    assert now <= 0.08 and before >= 0.3


@pytest.mark.slow
def test_a_large_gain_is_told():
    recipe = recipe_of_spread(0.015)
    better, rng = improved(recipe, 0.05, 1), np.random.default_rng(1)
    found = [drawn(rng, [better, recipe]) for _ in range(8)]
    verdict = [family([row.now[POOL, NLL] for row in rows], NLL).difference(0, 1).verdict for rows in found]
    assert verdict.count("lower") >= 6 and "higher" not in verdict


@pytest.mark.slow
def test_two_calibrated_recipes_are_not_told_apart_which_ece_15_does():
    rng, column, found = np.random.default_rng(2), "debiased_ce15", []
    for _ in range(15):
        labels_N, resampling = rng.integers(0, 2, 256), Resampling.drawn(rng, 256)
        members = [calibrated(rng, labels_N, one, 9) for one in verdicts.CONFIDENCES]
        rows = [Row.of(one, resampling, [SEEDS], [column]) for one in members]
        now = tells_any(family([row.now[SEEDS, column] for row in rows], column))
        before = [one for row in rows if (one := row.before[SEEDS, column])]
        found.append((now, bool(worse(before, column)[1])))
    now, before = np.mean(found, axis=0)
    assert now <= 0.07 and before >= 0.4


# The simulation --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_trainings_have_the_spread_and_the_gain_that_is_asked_for():
    examples = Examples.drawn(np.random.default_rng(3), 20_000)
    recipe = recipe_of_spread(0.03)

    def nll(recipe: Recipe) -> np.ndarray:
        """Of 60 trainings, the same ones of any recipe."""
        pool = recipe.members(np.random.default_rng(4), examples, 60)
        return np.array(
            [metrics.ensemble_nll(metrics.combine(one[None]), pool.labels_N) for one in pool.logits_PNC]
        )

    assert nll(recipe).std(ddof=1) == pytest.approx(0.03, rel=0.3)
    assert nll(Recipe()).std(ddof=1) < 0.004  # what examples leave
    assert np.mean(nll(recipe) - nll(improved(recipe, 0.02, 1))) == pytest.approx(0.02, abs=0.002)


def test_calibrated_recipes_have_no_calibration_error_but_an_ece_that_differs():
    rng, mean_ece = np.random.default_rng(5), []
    for confidence in verdicts.CONFIDENCES:
        drawn = [calibrated(rng, rng.integers(0, 2, 240), confidence, 1) for _ in range(300)]
        predictions = [(metrics.combine(one.logits_PNC), one.labels_N) for one in drawn]
        squares = [of_squared_error(*one).value for one in predictions]
        assert abs(np.mean(squares)) < 3 * np.std(squares) / 300**0.5
        mean_ece.append(np.mean([metrics.ece15(*one) for one in predictions]))
    assert mean_ece[0] > 4 * mean_ece[1]


def test_calibrated_trainings_err_together():
    pool = calibrated(np.random.default_rng(6), np.zeros(4000, int), (0.7, 0.7001), 2)
    wrong_PN = pool.logits_PNC.argmax(axis=2) == 1
    assert np.mean(wrong_PN) == pytest.approx(0.3, abs=0.03)
    assert np.corrcoef(wrong_PN)[0, 1] > 0.2


# Verdicts before -------------------------------------------------------------------------------------------


def test_resamples_are_the_metrics_of_the_examples_drawn():
    rng, num = np.random.default_rng(7), 300
    members = Recipe().members(rng, Examples.drawn(rng, num), 2)
    resampling, subset = Resampling.drawn(rng, num), (0, 1)
    found, (logp_NC, scaled_NC) = resampling.columns(members, subset), members.pooled(subset)
    ood_NC = metrics.combine(members.ood_PNC)
    assert scaled_NC is not None and len(found) == 7
    for resample in range(3):
        times_N, times_ood_N = (
            counts[resample].astype(int) for counts in (resampling.test_RN, resampling.ood_RN)
        )
        assert times_N.sum() == num and times_N.max() > 1
        labels_N, p, ts = (np.repeat(x, times_N, axis=0) for x in (members.labels_N, logp_NC, scaled_NC))
        outside = np.repeat(ood_NC, times_ood_N, axis=0)
        expected = {
            "acc": metrics.acc(p, labels_N),
            "ensemble_nll": metrics.ensemble_nll(p, labels_N),
            "brier": metrics.brier(p, labels_N),
            "debiased_ce15": metrics.ece15(p, labels_N),
            "ts_ensemble_nll": metrics.ensemble_nll(ts, labels_N),
            "ts_debiased_ce15": metrics.ece15(ts, labels_N),
        }
        assert {n: found[n].resampled_R[resample] for n in expected} == pytest.approx(expected, abs=1e-9)
        auroc = metrics.auroc(metrics.score_msp(p), metrics.score_msp(outside))
        assert found["auroc_msp"].resampled_R[resample] == pytest.approx(auroc, abs=2 / num)
    assert found["debiased_ce15"].value == pytest.approx(metrics.ece15(logp_NC, members.labels_N))


def test_rows_before_are_compared_with_the_best_by_holm():
    noise_R = np.random.default_rng(8).standard_normal(999)
    rows = [
        Resampled(value, value + noise_R * width) for value, width in ((0, 0), (2.2, 1), (3, 1), (0.1, 1))
    ]
    best, are_worse = worse(rows, NLL)
    assert best == 0 and are_worse == {2}  # 2.2 standard errors have p = 0.03, of which Holm asks 0.025
    assert worse(rows, "acc") == (2, {0, 1, 3})  # resamples of 1, 2 and 3 differ by constants
    assert worse(rows[:2], NLL) == (0, {1})


# The command -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_counted_and_shown(monkeypatch):
    single, four = Trained(1, 8, 1), Trained(1, 8, 4)
    small = {
        "NUM_EXAMPLES": (64,),
        "SPREADS": (0.03,),
        "COLUMNS": (NLL,),
        "SINGLES": (single,),
        "ENSEMBLES": (four,),
    }
    for name, value in small.items():
        monkeypatch.setattr(verdicts, name, value)
    monkeypatch.setattr(verdicts, "true_means", lambda recipe, members: {NLL: -9.0 * (members == 4)})
    found = verdicts.measure(2)
    counts = {
        (record["what"], record["rows"], record["trained"]["members"]): (
            len(record["shares"]),
            record["each"],
        )
        for record in found["records"]
        if record["procedure"] == verdicts.NOW
    }
    assert counts == {
        ("false", 2, 1): (2, 10), ("false", 10, 1): (2, 2), ("false", 20, 1): (2, 1),
        ("false", 2, 4): (2, 10), ("false", 10, 4): (2, 2), ("false", 20, 4): (2, 1),
        ("power", 2, 1): (2, 5), ("power", 10, 1): (2, 9), ("power", 2, 4): (2, 5), ("power", 10, 4): (2, 9),
        ("covered", 2, 4): (2, 20), ("calibrated", 2, 1): (2, 10),
    }  # fmt: skip
    assert [r["shares"] for r in found["records"] if r["what"] == "covered"] == [[0, 0]]
    shown = verdicts.text(found)
    assert "| 1 seed x 8, M = 4 |" in shown and "| NLL | 0.0 |" in shown


def test_shares_are_means_over_test_sets_with_their_standard_error():
    def record(shares: list[float], procedure: str = "now", **fields) -> verdicts.Record:
        one = verdicts.Record("false", 64, 0.0, POOL, 2, NLL, procedure, shares, 10)
        return replace(one, **fields)

    records = [record([0.0, 0.1, 0.5]), record([0.2, 0.3, 0.7], trained=SEEDS), record([1.0] * 3, "before")]
    rate = verdicts._rate(records, {"column": NLL, "procedure": "now"})
    means = np.array([0.1, 0.2, 0.6])
    assert rate == pytest.approx((0.3, means.std(ddof=1) / 3**0.5))
    assert verdicts._rate(records, {"column": "acc"}) is None


def test_no_test_sets_are_refused(capsys):
    assert cli.main(["bench", "verdicts", "--test-sets", "0"]) == 2
    assert "--test-sets 0: must be at least 1" in capsys.readouterr().err
