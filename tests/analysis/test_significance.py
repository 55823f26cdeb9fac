"""Simultaneous comparisons: closed forms of the variance, the family's agreement, and error rates."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from analysis.estimates import Design, Pool, estimate
from analysis.gain import holm
from analysis.influence import Measured, of_mean
from analysis.significance import Difference, Estimate, Family, root_of
from analysis.t_scores import largest_scores


def untrained(value_N: np.ndarray) -> Estimate:
    """A mean over examples of a model that no training moves."""
    found = of_mean(value_N)
    return Estimate(found.value, found.examples)


def trained(value_PN: np.ndarray, seed: int = 0, members: int = 1) -> Estimate:
    """A metric that is linear in members and examples, of ensembles of so many of them."""
    pool = Pool(seed, Design.of(len(value_PN), members), lambda s: of_mean(value_PN[list(s)].mean(axis=0)))
    return estimate([pool], exchangeable=True)


def test_two_untrained_models_are_compared_by_the_paired_t_test():
    rng = np.random.default_rng(0)
    a_N, b_N = rng.normal(size=40), rng.normal(0.3, 1, size=40)
    family = Family({"a": untrained(a_N), "b": untrained(b_N)}, margin=0.01)
    found, expected = family.difference("a", "b"), stats.ttest_rel(a_N, b_N)
    interval = expected.confidence_interval(0.95)
    assert found.value == pytest.approx(np.mean(a_N - b_N))
    assert (found.lo, found.hi) == pytest.approx((interval.low, interval.high), rel=0.02)  # drawn quantiles
    assert found.p_value == pytest.approx(expected.pvalue, abs=0.01)


def test_single_members_of_two_recipes_are_compared_by_the_t_test_where_examples_add_nothing():
    """Each member's value is the same on every example, so trainings are the only source of chance."""
    rng = np.random.default_rng(1)
    a_P, b_P = rng.normal(size=6), rng.normal(2, 1, size=6)
    rows = {
        name: trained(np.repeat(values[:, None], 30, axis=1)) for name, values in (("a", a_P), ("b", b_P))
    }
    found, expected = Family(rows, 0.01).difference("b", "a"), stats.ttest_rel(b_P, a_P)
    interval = expected.confidence_interval(0.95)
    assert (found.lo, found.hi) == pytest.approx((interval.low, interval.high), rel=0.02)


def test_a_family_of_the_asked_differences_is_as_large_as_they_are():
    rng = np.random.default_rng(3)
    rows = {name: untrained(rng.normal(size=60)) for name in "abcdef"}
    alone = Family({name: rows[name] for name in "ab"}, 0.01).difference("a", "b")
    asked = {num: Family(rows, 0.01, pairs=[("a", b) for b in "bcdef"[:num]]) for num in (1, 5)}
    assert asked[1].difference("a", "b") == alone
    every = Family(rows, 0.01).difference("a", "b")
    widths = [x.hi - x.lo for x in (alone, asked[5].difference("a", "b"), every)]  # type: ignore[operator]
    assert widths == sorted(widths) and widths[0] < 0.9 * widths[1] < 0.9 * widths[2]
    assert Family(rows, 0.01, pairs=[("a", "x")]).difference("a", "b").value == alone.value


def test_members_that_only_one_row_has_are_not_paired():
    rng = np.random.default_rng(2)
    a_P, b_P = rng.normal(size=5), rng.normal(size=7)
    rows = {
        "a": trained(np.repeat(a_P[:, None], 30, axis=1), seed=0),
        "b": trained(np.repeat(b_P[:, None], 30, axis=1), seed=1),
    }
    found = Family(rows, 0.01).difference("a", "b")
    assert found.lo is not None and found.hi is not None
    shares = [stats.t.isf(0.025, len(x) - 1) ** 2 * np.var(x, ddof=1) / len(x) for x in (a_P, b_P)]
    assert (found.hi - found.lo) / 2 == pytest.approx(np.sqrt(sum(shares)), rel=0.02)  # Banerjee's


def test_what_examples_and_trainings_move_together_is_counted_once():
    """Noise of each member on each example alone: its variance over P N, not twice that."""
    value_PN = np.random.default_rng(3).normal(size=(8, 500))
    zero = untrained(np.zeros(500))
    found = Family({"a": trained(value_PN), "zero": zero}, 0.001).difference("a", "zero")
    assert found.hi is not None and found.lo is not None
    half, expected = (found.hi - found.lo) / 2, 1.96 / np.sqrt(8 * 500)
    assert half == pytest.approx(expected, rel=0.25) and half < 1.3 * expected


def test_every_verdict_comes_from_one_interval_and_swapping_rows_turns_it_round():
    rng = np.random.default_rng(4)
    common = rng.normal(size=400)
    rows = {
        "low": untrained(common),
        "same": untrained(common + rng.normal(0, 0.01, 400)),
        "high": untrained(common + 1 + rng.normal(0, 0.1, 400)),
        "vague": untrained(common + rng.normal(0, 1, 400)),
    }
    family = Family(rows, margin=0.02)
    for a, b in itertools.permutations(rows, 2):
        one, other = family.difference(a, b), family.difference(b, a)
        assert (one.lo, one.hi) == pytest.approx((-(other.hi or 0), -(other.lo or 0)))
        assert one.p_value == other.p_value
        assert {"lower": "higher", "higher": "lower"}.get(str(one.verdict), one.verdict) == other.verdict
    assert family.difference("high", "low").verdict == "higher"
    assert family.difference("same", "low").verdict == "equivalent"
    assert family.difference("vague", "low").verdict == "undecided"


@pytest.mark.parametrize("direction", ["lower", "higher"])
def test_marks_agree_with_the_differences_to_the_best(direction):
    rng = np.random.default_rng(5)
    rows = {n: untrained(rng.normal(n / 10, 0.3, 200)) for n in range(6)}
    family = Family(rows, margin=0.05)
    marks = family.marks(direction)
    best = next(row for row, mark in marks.items() if mark == "best")
    assert rows[best].value == (min if direction == "lower" else max)(e.value for e in rows.values())
    worse = "higher" if direction == "lower" else "lower"
    for row in set(rows) - {best}:
        verdict = family.difference(row, best).verdict
        assert marks[row] == {worse: "worse"}.get(str(verdict), verdict)


def test_a_row_of_one_ensemble_has_no_verdict_and_no_mark():
    values_PN = np.random.default_rng(6).normal(size=(4, 50))
    rows = {"these": trained(values_PN, members=4), "any": trained(values_PN, members=1)}
    family = Family(rows, 0.01)
    assert rows["these"].is_of_these and not rows["any"].is_of_these
    assert family.difference("these", "any") == Difference(rows["these"].value - rows["any"].value)
    assert set(family.marks("lower")) == {"any"}


def test_rows_of_equal_predictions_are_equivalent():
    value_N = np.random.default_rng(7).normal(size=30)
    found = Family({"a": untrained(value_N), "b": untrained(value_N.copy())}, 0.01).difference("a", "b")
    assert (found.value, found.p_value, found.verdict) == (0, 1, "equivalent")


def test_squares_are_tested_as_squares_and_shown_as_roots():
    def row(value: float) -> Estimate:
        noise = np.random.default_rng(8).normal(0, 1e-5, 100)
        return Estimate(value, noise * value, root=True)

    family = Family({"a": row(0.09), "b": row(0.04)}, 0.01)
    found = family.difference("a", "b")
    assert found.value == pytest.approx(0.1) and found.lo is not None and found.hi is not None
    assert found.lo < found.value < found.hi and found.hi - found.lo < 0.01
    assert [root_of(x) for x in (0.04, -0.04, 0)] == [0.2, 0, 0]


@pytest.mark.parametrize("margin", [0, -0.1, float("nan")])
def test_a_margin_must_be_above_zero(margin):
    with pytest.raises(ValueError, match="margin"):
        Family({}, margin)


@pytest.mark.slow
def test_equal_rows_are_told_apart_in_at_most_five_per_cent_of_tables():
    """Five equal recipes, whose trainings and examples both vary: any false verdict in any pair."""
    rng, false = np.random.default_rng(9), 0
    for _ in range(300):
        common_N = rng.normal(size=100)
        rows = {
            k: trained(common_N + rng.normal(0, 0.1, (6, 1)) + rng.normal(0, 0.3, (6, 100))) for k in range(5)
        }
        family = Family(rows, 0.01)
        pairs = itertools.combinations(rows, 2)
        false += any(family.difference(a, b).verdict in ("lower", "higher") for a, b in pairs)
    assert 2 <= false <= 25  # of 300, expected 15


def test_a_true_difference_is_found():
    rng, found = np.random.default_rng(10), 0
    for _ in range(50):
        common_N = rng.normal(size=400)
        rows = {
            k: trained(common_N + 0.2 * k + rng.normal(0, 0.05, (6, 1)) + rng.normal(0, 0.3, (6, 400)))
            for k in range(2)
        }
        found += Family(rows, 0.01).difference(1, 0).verdict == "higher"
    assert found >= 48


def test_holm_against_the_definition():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def by_seed(values_S: list[float], num: int = 100) -> Estimate:
    """A metric that varies over seeds alone, of rows whose members share a stream."""
    pools = [
        Pool(seed, Design.of(1, 1), lambda _, value=value: Measured(value, np.zeros(num)))
        for seed, value in enumerate(values_S)
    ]
    return estimate(pools, exchangeable=False)


@pytest.mark.slow
def test_ten_equal_rows_of_two_seeds_are_told_apart_in_at_most_five_per_cent():
    """One degree of freedom: the largest statistic's distribution must have the tail of t, not about it."""
    rng, false = np.random.default_rng(0), 0
    for _ in range(200):
        family = Family({k: by_seed(list(rng.normal(size=2))) for k in range(10)}, 1e-9)
        pairs = itertools.combinations(range(10), 2)
        false += any(family.difference(a, b).verdict in ("lower", "higher") for a, b in pairs)
    assert false <= 18  # of 200, expected at most 10


def test_a_row_known_by_members_keeps_its_variance_beside_one_known_by_seeds():
    rng = np.random.default_rng(1)
    members = trained(np.repeat(rng.normal(size=(4, 1)), 50, axis=1))
    seeds = by_seed([0.0, 1e-6, -1e-6], num=50)
    found = Family({"members": members, "seeds": seeds}, 0.01).difference("members", "seeds")
    assert found.lo is not None and found.hi is not None and members.stderr is not None
    assert (found.hi - found.lo) / 2 >= 3.18 * members.stderr * 0.99  # t of three degrees of freedom


def test_rows_that_differ_by_rounding_are_equal():
    value_N = np.random.default_rng(2).normal(size=1000)
    family = Family({"a": untrained(value_N), "b": untrained(value_N + 1e-9)}, 0.01)
    found = family.difference("b", "a")
    assert (found.value, found.verdict) == (0, "equivalent") and set(family.marks("lower").values()) == {
        "best"
    }


def test_a_sure_difference_has_a_small_p_value():
    family = Family({"right": untrained(np.ones(50)), "wrong": untrained(np.zeros(50))}, 0.01, is_share=True)
    found = family.difference("right", "wrong")
    assert found.verdict == "higher" and found.p_value is not None and found.p_value < 0.001


@pytest.mark.parametrize("num, verdict", [(64, "undecided"), (4000, "equivalent")])
def test_two_rows_of_the_same_answers_are_equivalent_only_on_many(num, verdict):
    """No answer differs among 64 in half of the samples even if the true difference is 0.01."""
    rows = {name: untrained((np.arange(num) % 8 > 0).astype(float)) for name in "ab"}
    assert Family(rows, 0.01, is_share=True).difference("a", "b").verdict == verdict


def test_p_values_agree_with_intervals():
    rng = np.random.default_rng(3)
    for num_rows in (2, 6):
        for _ in range(40):
            rows = {k: by_seed(list(rng.normal(k / 3, 0.1, size=3)), 20) for k in range(num_rows)}
            family = Family(rows, 1e-9)
            for a, b in itertools.combinations(rows, 2):
                found = family.difference(a, b)
                assert found.p_value is not None and found.lo is not None and found.hi is not None
                assert (found.p_value <= 0.05) == (found.lo > 0 or found.hi < 0)


def test_a_difference_of_roots_lies_in_its_interval():
    noise = np.random.default_rng(4).normal(0, 1e-6, 1000)
    rows = {"a": Estimate(-1e-4, noise, root=True), "b": Estimate(1e-4, -noise, root=True)}
    family = Family(rows, 0.001)
    found = family.difference("a", "b")
    assert found.lo is not None and found.hi is not None and found.lo <= found.value <= found.hi
    assert rows["a"].mean == 0 and family.marks("lower")["a"] == "best"


def test_the_largest_score_is_exact_for_any_degrees_of_freedom():
    rng, df_P = np.random.default_rng(11), np.array([1, 1.3, 2, 3, 7, 40, 1e6] * 4)
    t_RP = stats.t.rvs(df_P, size=(3000, len(df_P)), random_state=rng)
    expected = stats.norm.isf(stats.t.sf(np.abs(t_RP), df_P)).max(axis=1)
    assert largest_scores(t_RP, df_P) == pytest.approx(expected)
