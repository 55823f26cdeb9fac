"""Significance: weighted metrics are the metrics, the bootstrap is paired and calibrated, verdicts follow."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import scipy.stats

from analysis.significance import (
    Bootstrap,
    WeightedMetric,
    averaged,
    bootstrap,
    difference,
    estimate,
    holm,
    over_seeds,
    verdicts,
    weighted_ood_summary,
    weighted_summary,
)
from lorae.metrics import DIRECTION, SCORES, Undefined, ood_summary, summary


def predictions(seed: int, members: int = 3, examples: int = 60, step: float = 0.0):
    """Random logits, the last class masked in a third of the examples; rounding to `step` makes ties."""
    rng = np.random.default_rng(seed)
    logits_MNC = 2 * rng.normal(size=(members, examples, 4))
    if step:
        logits_MNC = np.round(logits_MNC[:1] / step) * step * np.ones((members, 1, 1))
    logits_MNC[:, ::3, 3] = -np.inf
    return logits_MNC, rng.integers(0, 3, examples)


def mean_of(values_N: np.ndarray) -> WeightedMetric:
    return lambda weights_RN: weights_RN @ values_N / len(values_N)


def drawn(seed: int, resamples: int, *sizes: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.hstack([rng.multinomial(size, np.full(size, 1 / size), resamples) for size in sizes]).astype(
        float
    )


# Weighted metrics -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["probs", "logits"])
@pytest.mark.parametrize("step, examples", [(0.0, 60), (1.5, 60), (0.0, 7), (0.0, 1)])
def test_a_weighted_metric_is_the_metric_of_the_repeated_examples(rule, step, examples):
    logits_MNC, labels_N = predictions(0, examples=examples, step=step)
    weights_RN = drawn(1, 6, examples)
    for name, metric in weighted_summary(logits_MNC, labels_N, rule).items():
        assert metric is not None
        values_R = metric(weights_RN)
        for weights_N, value in zip(weights_RN.astype(int), values_R, strict=True):
            repeated = np.repeat(np.arange(examples), weights_N)
            assert value == pytest.approx(summary(logits_MNC[:, repeated], labels_N[repeated], rule)[name]), (
                name
            )


@pytest.mark.parametrize("step", [0.0, 1.5])
def test_a_weighted_ood_metric_is_the_metric_of_the_repeated_examples(step):
    in_MNC, ood_MNC = predictions(2, examples=50, step=step)[0], predictions(3, examples=30, step=step)[0] / 2
    weights_RN = drawn(4, 5, 50, 30)
    for name, metric in weighted_ood_summary(in_MNC, ood_MNC).items():
        assert metric is not None
        for weights_N, value in zip(weights_RN.astype(int), metric(weights_RN), strict=True):
            in_again = np.repeat(np.arange(50), weights_N[:50])
            ood_again = np.repeat(np.arange(30), weights_N[50:])
            assert value == pytest.approx(ood_summary(in_MNC[:, in_again], ood_MNC[:, ood_again])[name]), name


def test_what_has_no_finite_value_is_none_by_name():
    logits_MNC, labels_N = predictions(5)
    labels_N = labels_N.copy()
    labels_N[0] = 3  # masked there: probability 0
    soup = weighted_summary(logits_MNC[:1], predictions(5)[1], "weights")
    assert {name for name, metric in soup.items() if metric is None} == {"mean_member_nll"}
    undefined = {name for name, metric in weighted_summary(logits_MNC, labels_N).items() if metric is None}
    assert undefined == {"ensemble_nll", "mean_member_nll"}
    of_one = weighted_ood_summary(logits_MNC[:1], logits_MNC[:1])
    assert {name for name, metric in of_one.items() if metric is None} == {
        f"{metric}_{score}" for metric in ("auroc", "aupr", "fpr95") for score in SCORES if len(score) > 7
    }


# Bootstrap ------------------------------------------------------------------------------------------------


def test_resamples_draw_as_many_examples_of_each_stratum_uniformly():
    seen: list[np.ndarray] = []

    def record(weights_RN: np.ndarray) -> np.ndarray:
        seen.append(weights_RN)
        return weights_RN[:, 0]

    bootstrap({"row": record}, [40, 10], resamples=4000)
    whole, *blocks = seen
    weights_RN = np.concatenate(blocks)
    assert (whole == 1).all() and whole.shape == (1, 50)
    assert weights_RN.shape == (4000, 50)
    assert (weights_RN[:, :40].sum(axis=1) == 40).all() and (weights_RN[:, 40:].sum(axis=1) == 10).all()
    np.testing.assert_allclose(weights_RN.mean(axis=0), 1, atol=0.08)
    np.testing.assert_allclose(weights_RN[:, :40].var(axis=0), 1 - 1 / 40, atol=0.15)
    np.testing.assert_allclose(weights_RN[:, 40:].var(axis=0), 1 - 1 / 10, atol=0.15)


def test_the_interval_of_a_mean_difference_is_the_paired_normal_one():
    rng = np.random.default_rng(6)
    shared = 5 * rng.normal(size=500)
    a, b = shared + rng.normal(size=500) + 0.1, shared + rng.normal(size=500)
    found = difference(bootstrap({"a": mean_of(a), "b": mean_of(b)}, [500]), "a", "b")
    stderr = np.std(a - b) / np.sqrt(500)  # unpaired it would be five times as large
    assert found.value == pytest.approx(np.mean(a - b))
    assert found.lo == pytest.approx(found.value - 1.96 * stderr, abs=0.1 * stderr)
    assert found.hi == pytest.approx(found.value + 1.96 * stderr, abs=0.1 * stderr)
    assert found.p_value == pytest.approx(scipy.stats.ttest_rel(a, b).pvalue, abs=0.02)


def test_the_difference_of_a_row_to_itself_is_nothing():
    logits_MNC, labels_N = predictions(7)
    ece = weighted_summary(logits_MNC, labels_N)["ece15"]
    assert ece is not None
    found = difference(bootstrap({"a": ece, "b": ece}, [60], resamples=200), "a", "b")
    assert (found.value, found.lo, found.hi, found.p_value) == (0, 0, 0, 1)


def test_the_difference_turns_its_sign_with_its_direction():
    rng = np.random.default_rng(8)
    boot = bootstrap({"a": mean_of(rng.normal(size=50) + 3), "b": mean_of(rng.normal(size=50))}, [50], 999)
    there, back = difference(boot, "a", "b"), difference(boot, "b", "a")
    assert (there.value, there.lo, there.hi) == pytest.approx((-back.value, -back.hi, -back.lo))
    assert there.p_value == back.p_value
    assert there.p_value == pytest.approx(2 / 1000)  # the smallest: no resample on the other side


def test_false_alarms_come_at_their_rate():
    rng = np.random.default_rng(9)
    alarms = 0
    for trial in range(300):
        a, b = rng.normal(size=(2, 80))
        boot = bootstrap({"a": mean_of(a), "b": mean_of(b)}, [80], resamples=400, seed=trial)
        alarms += difference(boot, "a", "b").p_value <= 0.05
    assert 5 <= alarms <= 28  # binomial(300, 0.05): 15 +- 4


def test_the_interval_of_a_difference_holds_the_resamples_and_their_reflection():
    """Resamples lie above the value by what the examples bias it: the interval goes as far below it."""
    boot = Bootstrap({"a": 0.5, "b": 0.0}, {"a": 1.0 + np.arange(101) / 100, "b": np.zeros(101)})
    found = difference(boot, "a", "b")
    assert (found.value, found.lo, found.hi) == pytest.approx((0.5, -0.975, 1.975))
    assert found.p_value == pytest.approx(2 * (1 + 1) / 102)  # one resample is reflected on 0
    percentiles = estimate(boot, "a")
    assert (percentiles.lo, percentiles.hi) == pytest.approx((1.025, 1.975))


def test_calibrated_models_seldom_differ_in_their_calibration_error():
    """Some do, for what is left of the bias; by percentile intervals alone nearly all would."""
    rng = np.random.default_rng(15)
    alarms = 0
    for trial in range(60):
        rows = {}
        for name, lo, hi in (("spread", 0.5, 1.0), ("sure", 0.96, 0.98)):
            confidence_N = rng.uniform(lo, hi, 240)
            logits_NC = np.log(np.stack([confidence_N, 1 - confidence_N], axis=1))
            labels_N = (rng.random(240) > confidence_N).astype(int)
            ece = weighted_summary(logits_NC[None], labels_N)["ece15"]
            assert ece is not None
            rows[name] = ece
        alarms += difference(bootstrap(rows, [240], 400, seed=trial), "spread", "sure").p_value <= 0.05
    assert alarms <= 30


def test_equal_seeds_give_equal_results_and_rows_do_not_disturb_each_other():
    logits_MNC, labels_N = predictions(10)
    aurc = weighted_summary(logits_MNC, labels_N)["aurc"]
    assert aurc is not None
    alone = bootstrap({"a": aurc}, [60], resamples=300, seed=5)
    beside = bootstrap({"b": mean_of(np.arange(60.0)), "a": aurc}, [60], resamples=300, seed=5)
    np.testing.assert_array_equal(alone.resampled["a"], beside.resampled["a"])
    assert (alone.resampled["a"] != bootstrap({"a": aurc}, [60], 300, seed=6).resampled["a"]).any()
    assert alone.value["a"] == pytest.approx(summary(logits_MNC, labels_N)["aurc"])


def test_memory_is_bounded_in_resamples_times_examples():
    logits_MNC, labels_N = predictions(11, examples=20_000)
    aurc = weighted_summary(logits_MNC, labels_N)["aurc"]
    assert aurc is not None
    tracemalloc.start()
    bootstrap({"a": aurc}, [20_000], resamples=1000)  # 160 MB of counts if held at once
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 130e6


def test_metrics_of_other_examples_are_refused():
    long, short = predictions(12), predictions(13, examples=40)
    for name, metric in weighted_summary(*short).items():
        assert metric is not None
        with pytest.raises(ValueError):
            bootstrap({"long": weighted_summary(*long)[name], "short": metric}, [60], resamples=2)  # type: ignore


# Seeds, many comparisons, verdicts ------------------------------------------------------------------------


def test_over_seeds_states_n_and_has_no_error_for_one():
    values = [0.5, 0.7, 0.9, 0.4]
    found = over_seeds(values)
    assert (found.mean, found.stderr, found.n) == pytest.approx((0.625, scipy.stats.sem(values), 4))
    assert over_seeds([0.5]).stderr is None
    for bad in ([], [np.inf, 1.0], [np.nan]):
        with pytest.raises(Undefined):
            over_seeds(bad)


def test_the_mean_over_seeds_is_bootstrapped_on_shared_examples():
    metrics = {"up": mean_of(np.arange(10.0)), "down": mean_of(np.arange(10.0)[::-1])}
    boot = averaged(bootstrap(metrics, [10], resamples=50), {"row": ["up", "down"], "up": ["up"]})
    assert boot.value == {"row": 4.5, "up": 4.5} and np.ptp(boot.resampled["up"]) > 1
    assert boot.resampled["row"] == pytest.approx(4.5)  # the sum on each example is 9


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def columns(**values: float) -> Bootstrap:
    """Rows whose resamples are independent normal numbers of standard deviation 1 around the value."""
    rng = np.random.default_rng(14)
    return Bootstrap(values, {row: value + rng.normal(size=10_000) for row, value in values.items()})


def test_verdicts_follow_the_direction():
    boot = columns(low=0.0, near=1.0, far=30.0)
    assert verdicts(boot, "lower") == {"low": "best", "near": "tied", "far": "worse"}
    assert verdicts(boot, "higher") == {"low": "worse", "near": "worse", "far": "best"}
    assert verdicts(columns(a=1.0, b=1.0), "lower") == {"a": "best", "b": "best"}
    assert verdicts(columns(a=1.0), "higher") == {"a": "best"}
    with pytest.raises(ValueError, match="no best row"):
        verdicts(boot, DIRECTION["signed_gap"])


def test_verdicts_correct_for_the_number_of_rows():
    """3.1 / sqrt(2) standard deviations: p = 0.028 alone is worse, among twenty rows it is not."""
    assert verdicts(columns(best=0.0, other=3.1), "lower")["other"] == "worse"
    crowd = {f"row{i}": 3.1 for i in range(20)}
    assert set(verdicts(columns(best=0.0, **crowd), "lower").values()) == {"best", "tied"}
