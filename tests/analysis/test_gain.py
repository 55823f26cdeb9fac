"""What averaging gains, and its correlation with diversity, against scipy and against repeated rows."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import scipy.stats
from sweeps import make_sweep

from analysis.data import load_trials
from analysis.gain import MIN_POOLS, correlation, correlations, with_gains
from analysis.render import csv_text
from analysis.significance import Difference
from lorae.metrics import debiased_ce15
from lorae.regularizers import KL

AXES = {"regularizers": [(), (KL(),)], "members": [1, 2, 4]}
REFERENCE = {False: scipy.stats.pearsonr, True: scipy.stats.spearmanr}


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep")
    return with_gains(load_trials(make_sweep(root, AXES | {"seed": list(range(5))}), "toy"))


@pytest.mark.parametrize("ranks", [False, True])
def test_a_correlation_is_that_of_the_rows_as_often_as_their_pools_were_drawn(ranks):
    rng = np.random.default_rng(0)
    pool_N = rng.integers(0, 4, 30)
    x_N = rng.integers(0, 8, 30).astype(float)  # with ties
    y_N = x_N + rng.normal(size=30) * 3
    counts_RK = np.array([[1, 1, 1, 1], [2, 0, 1, 1], [0, 3, 1, 0], [0, 0, 0, 4]], float)
    for found, counts_K in zip(correlation(x_N, y_N, pool_N, ranks)(counts_RK), counts_RK, strict=True):
        rows = np.repeat(np.arange(30), counts_K[pool_N].astype(int))
        assert found == pytest.approx(REFERENCE[ranks](x_N[rows], y_N[rows]).statistic)
    x_N[pool_N == 3] = 0.1
    assert correlation(x_N, y_N, pool_N, ranks)(counts_RK)[3] == 0  # constant on this resample


@pytest.mark.slow
def test_gains_are_over_the_members_own_mean(trials):
    assert [row["acc_gain"] is None for row in trials.rows] == [row["members"] < 2 for row in trials.rows]
    for row in [row for row in trials.rows if row["members"] > 1]:
        test = trials.predictions(row)
        acc_M = (test.logits_MNC.argmax(2) == test.labels_N).mean(1)
        assert row["acc_gain"] == pytest.approx(row["acc"] - acc_M.mean())
        assert row["nll_gain"] == pytest.approx(row["mean_member_nll"] - row["ensemble_nll"])
        p_MNC = scipy.special.softmax(test.logits_MNC.astype(np.float64), axis=2)
        truth_NC = np.eye(3)[test.labels_N]
        brier_M = ((p_MNC - truth_NC) ** 2).sum(axis=2).mean(axis=1)
        ensemble = ((p_MNC.mean(axis=0) - truth_NC) ** 2).sum(axis=1).mean()
        assert row["brier_gain"] == pytest.approx(brier_M.mean() - ensemble) and row["brier_gain"] > 0, (
            "convex"
        )
        squares = [s * abs(s) for s in (debiased_ce15(np.log(p_NC), test.labels_N) for p_NC in p_MNC)]
        own = debiased_ce15(np.log(p_MNC.mean(axis=0)), test.labels_N)
        assert row["calibration_gain"] == pytest.approx(np.mean(squares) - own * abs(own), abs=1e-9)


@pytest.mark.slow
def test_the_table_has_every_measure_with_its_interval_over_pools(trials):
    table = correlations(trials)
    ((first, *others),) = table.blocks
    assert first["diversity"].value == "disagreement" and len(others) == 4
    assert (first["ensembles"].value, first["pools"].value) == (20, 10) and MIN_POOLS == 10
    rows = [row for row in trials.rows if row["members"] > 1]
    found, reference = first["rho_acc_gain"], scipy.stats.spearmanr
    expected = reference([r["disagreement"] for r in rows], [r["acc_gain"] for r in rows]).statistic
    assert isinstance(found, Difference) and found.lo < found.value < found.hi
    assert found.value == pytest.approx(expected)
    assert "rho_acc_gain,rho_acc_gain_lo,rho_acc_gain_hi,rho_acc_gain_p_value" in csv_text(table)


def test_too_few_pools_have_a_correlation_without_an_interval(tmp_path):
    table = correlations(with_gains(load_trials(make_sweep(tmp_path, AXES), "toy")))
    for line in table.blocks[0]:
        assert not isinstance(line["r_nll_gain"], Difference) and abs(line["r_nll_gain"].value) <= 1
    few = with_gains(load_trials(make_sweep(tmp_path / "few", {"members": [1, 2]}), "toy"))
    assert correlations(few).blocks[0][0]["r_nll_gain"].value is None
