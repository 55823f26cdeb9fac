"""What scores are worth: by hand, against scikit-learn, and lm-polygraph's numbers where it is installed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from text_data import drawn

from lorae.metrics import Undefined
from lorae.texts import judging


def test_auroc_and_aupr_of_wrong_answers_are_scikit_learns():
    score_N, right_N = drawn()
    assert judging.auroc(score_N, right_N) == pytest.approx(roc_auc_score(1 - right_N, score_N))
    assert judging.aupr(score_N, right_N) == pytest.approx(average_precision_score(1 - right_N, score_N))


def test_by_hand():
    score, right = np.array([0.1, 0.2, 0.3, 0.4]), np.array([1.0, 0, 1, 0])
    risks = [0, 1 / 2, 1 / 3, 2 / 4]
    assert judging.risks(score, right) == pytest.approx(risks)
    assert judging.aurc(score, right) == pytest.approx(np.mean(risks))
    oracle = np.mean([0, 0, 1 / 3, 2 / 4])
    assert judging.prr(score, right) == pytest.approx((0.5 - np.mean(risks)) / (0.5 - oracle))
    assert judging.accuracy_at_80_coverage(score, right) == pytest.approx(1 / 2)
    assert judging.accuracy_at_80_coverage(np.arange(10), np.arange(10) < 8) == 1


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.booleans()), min_size=2, max_size=6))
def test_ties_count_as_the_mean_over_their_orders(rows):
    score, right = np.array([row[0] for row in rows]), np.array([float(row[1]) for row in rows])
    orders = [o for o in itertools.permutations(range(len(rows))) if (np.diff(score[list(o)]) >= 0).all()]
    each = [np.mean(np.cumsum(1 - right[list(o)]) / np.arange(1, len(o) + 1)) for o in orders]
    assert judging.aurc(score, right) == pytest.approx(np.mean(each))


def test_the_rejection_ratio_is_1_for_an_oracle_0_for_chance_and_takes_any_quality():
    rng = np.random.default_rng(0)
    for quality in (rng.uniform(0, 1, 50), np.round(rng.uniform(0, 1, 50))):
        assert judging.prr(-quality, quality) == pytest.approx(1)
        assert judging.prr(np.zeros(50), quality) == pytest.approx(0)
        assert judging.prr(quality, quality) < -0.5
    assert judging.prr(7 * quality - 3, quality) == judging.prr(np.exp(quality), quality)


def test_what_cannot_be_told_is_undefined():
    score = np.arange(3.0)
    for judge in (judging.auroc, judging.aupr, judging.prr):
        with pytest.raises(Undefined, match="all 3 answers"):
            judge(score, np.ones(3))
        with pytest.raises(Undefined, match="all 3 answers"):
            judge(score, np.zeros(3))
    with pytest.raises(Undefined, match="a quality between"):
        judging.auroc(score, np.array([0, 0.5, 1]))
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        judging.prr(score, np.array([0, 50, 100]))
    with pytest.raises(ValueError, match="one of each"):
        judging.aurc(score, np.ones(2))


def test_an_answer_of_a_broken_member_is_the_least_certain():
    score, right = np.array([np.nan, 3.0, 1.0, 2.0]), np.array([0, 0, 1.0, 1])
    assert judging.auroc(score, right) == 1 and judging.prr(score, right) == 1
    assert np.isfinite(judging.ece15(np.tile(score, 5), np.tile(right, 5)))


# Calibration ----------------------------------------------------------------------------------------------


def test_calibration_is_scikit_learns_isotonic_regression():
    (known, right), (score, _) = drawn(80), drawn(50, 1)
    oracle = IsotonicRegression(increasing=False, out_of_bounds="clip", y_min=0, y_max=1).fit(known, right)
    assert judging.calibrated(known, right, score) == pytest.approx(oracle.predict(score))


def test_ece_of_a_score_calibrated_on_validation():
    validation, (score, right) = drawn(400), drawn(300, 1)
    p = IsotonicRegression(increasing=False, out_of_bounds="clip").fit(*validation).predict(score)
    edges = [0, *np.arange(1, 16) / 15]
    bins = [(p > lo) & (p <= hi) if lo else (p <= hi) for lo, hi in itertools.pairwise(edges)]
    by_hand = sum(abs((right[b] - p[b]).sum()) for b in bins) / len(p)
    assert judging.ece15(score, right, validation) == pytest.approx(by_hand)
    rate, mean = calibration_curve(right, p, n_bins=15)
    assert by_hand <= np.abs(rate - mean).max() and 0 < by_hand < 0.15


def test_without_validation_no_example_calibrates_itself():
    rng = np.random.default_rng(0)
    score, right = rng.normal(size=300), np.round(rng.uniform(size=300))  # nothing to learn
    seen = judging.ece15(score, right, (score, right))
    assert seen < 1e-9 < 0.005 < judging.ece15(score, right)


def test_prr_is_lm_polygraphs():
    area = pytest.importorskip("lm_polygraph.ue_metrics.pred_rej_area").PredictionRejectionArea()
    metric = pytest.importorskip("lm_polygraph.ue_metrics.ue_metric")
    score, right = drawn(300, digits=6)
    quality = np.random.default_rng(1).uniform(0, 1, 300) * right
    for target in (right, quality / quality.max()):
        ours = judging.prr(score, target)
        chance, oracle = metric.get_random_scores(area, target), area(-target, target)
        assert ours == pytest.approx(metric.normalize_metric(area(score, target), oracle, chance), abs=0.01)
    exact = (area(score, right) - right.mean()) / (area(-right, right) - right.mean())
    assert judging.prr(score, right) == pytest.approx(exact)
