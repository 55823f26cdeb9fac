"""Shares of a difference: closed forms, coverage, and no share where there is no difference."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis.ratio import share
from analysis.significance import Estimate


def estimate(value: float, examples: np.ndarray, num_seeds: int = 3) -> Estimate:
    """A row that no seed moves, so that its examples alone make it uncertain."""
    still = {(seed, 0): np.zeros(1 + len(examples)) for seed in range(num_seeds)}
    return Estimate(value, examples, seeds=still, num_trainings=num_seeds)


def test_the_share_and_fiellers_bounds_in_closed_form():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.002, (3, 400))
    none, some, all_ = (estimate(v, e) for v, e in zip((1.0, 0.75, 0.6), noise, strict=True))
    found = share(none, some, all_)
    kept, whole = noise[0] - noise[1], noise[0] - noise[2]
    t2 = 1.965927**2  # the 97.5 % quantile of t with 399 degrees of freedom
    a = 0.4**2 - t2 * whole @ whole
    b = 0.25 * 0.4 - t2 * kept @ whole
    c = 0.25**2 - t2 * kept @ kept
    root = math.sqrt(b**2 - a * c)
    assert not isinstance(found, str) and found.value == pytest.approx(0.625)
    assert (found.lo, found.hi) == pytest.approx(((b - root) / a, (b + root) / a), abs=1e-5)


def test_the_ensemble_itself_keeps_all_and_the_single_member_nothing():
    rng = np.random.default_rng(1)
    none, all_ = (estimate(v, e) for v, e in zip((1.0, 0.6), rng.normal(0, 0.002, (2, 100)), strict=True))
    for some, expected in ((all_, 1.0), (none, 0.0)):
        found = share(none, some, all_)
        assert not isinstance(found, str)
        assert (found.value, found.lo, found.hi) == pytest.approx((expected,) * 3, abs=1e-9), "it is certain"


def test_without_a_gain_or_with_one_seed_there_is_no_share():
    rng = np.random.default_rng(2)
    none, some, all_ = (estimate(v, e) for v, e in zip((1.0, 0.9, 0.99), rng.normal(0, 0.01, (3, 100))))
    assert "contains 0" in share(none, some, all_)
    alone = Estimate(1.0, none.examples, num_trainings=1)
    assert "one seed" in share(alone, some, estimate(0.1, all_.examples))


def test_the_interval_covers_the_true_share_over_new_examples_and_seeds():
    rng, covered, true = np.random.default_rng(3), 0, 0.5
    values, spread = np.array([1.0, 0.75, 0.5]), 0.3
    for _ in range(300):
        num, seeds = 200, 4
        of_examples = spread * rng.normal(0, 1, (3, num))
        of_seeds = 0.02 * rng.normal(0, 1, (3, seeds))
        rows = []
        for row in range(3):
            example_N, seed_S = of_examples[row], of_seeds[row]
            value = values[row] + example_N.mean() + seed_S.mean()
            moved = {
                (s, 0): np.concatenate(
                    [[(x - seed_S.mean()) / math.sqrt(seeds * (seeds - 1))], np.zeros(num)]
                )
                for s, x in enumerate(seed_S)
            }
            examples = (example_N - example_N.mean()) / math.sqrt(num * (num - 1))
            rows.append(Estimate(value, examples, seeds=moved, num_trainings=seeds))
        found = share(*rows)
        assert not isinstance(found, str) and found.lo is not None and found.hi is not None
        covered += found.lo <= true <= found.hi
    assert covered >= 0.93 * 300
    assert covered < 300, "an interval that covers always says nothing"
