"""`lorae size`: the law of ensemble sizes, its intervals in closed form, its tables, and what has no law."""

from __future__ import annotations

import csv
import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sweeps import make_sweep

from analysis import extrapolation
from analysis.cells import Cell
from analysis.curves import Curve, curve_of, curves
from analysis.data import load_trials
from analysis.estimates import Design, Pool, estimate
from analysis.influence import of_mean
from analysis.power_law import PowerLaw, fit_power_law
from analysis.significance import Estimate
from analysis.size import recipes, sizes, write_sizes
from jobs.cli import main
from lorae import metrics
from lorae.ensemble import cross_fitted
from lorae.regularizers import KL
from lorae.store.names import member_folder
from lorae.store.store import Store
from lorae.trial import Diversity

SIZES = [1, 2, 3, 4, 5]
NO_CELL = Cell({"members": 5}, ())


# The law ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", [PowerLaw(0.5, 0.03, 0.7), PowerLaw(0.2, 0.4, 1.6), PowerLaw(0.0, 0.5, 0.2)])
def test_the_fit_finds_the_law_that_made_the_values(law):
    found = fit_power_law(SIZES, [law.at(size) for size in SIZES])
    assert vars(found) == pytest.approx(vars(law), rel=2e-3, abs=1e-4)
    assert found.at(20) == pytest.approx(law.at(20), abs=1e-4)


def test_the_fit_is_the_best_law_of_all():
    rng = np.random.default_rng(0)
    value_K = np.array([0.5 + 0.05 / size for size in SIZES]) + rng.normal(0, 0.003, 5)

    def error(law: PowerLaw) -> float:
        return sum((law.at(size) - value) ** 2 for size, value in zip(SIZES, value_K))

    found = fit_power_law(SIZES, value_K)
    around = itertools.product((-1e-3, 0, 1e-3), (-1e-3, 0, 1e-3), (-0.02, 0, 0.02))
    others = [PowerLaw(found.c + dc, found.b + db, found.a + da) for dc, db, da in around]
    assert error(found) == pytest.approx(min(map(error, others)), rel=1e-6)


@pytest.mark.parametrize("rise", [0.0, 0.01])
def test_a_curve_that_does_not_fall_has_no_gain(rise):
    found = fit_power_law(SIZES, [0.4 + rise * size for size in SIZES])
    assert found.b == 0 and found.at(1) == found.at(20) == pytest.approx(0.4 + 3 * rise)
    assert str(found).endswith("flat")


def test_no_law_falls_below_zero():
    found = fit_power_law(SIZES, [1 - 0.2 * math.log(size) for size in SIZES])  # would be at -0.05 for 200
    assert found.c >= 0 and found.at(10_000) > 0


def test_leverage_is_how_far_the_fit_moves_with_each_value():
    value_K, step = np.array([0.5 + 0.1 * size**-0.8 for size in SIZES]), 1e-5
    leverage_K = fit_power_law(SIZES, value_K).leverage(SIZES, 20)
    for place in range(5):
        ends = [fit_power_law(SIZES, value_K + sign * step * np.eye(5)[place]).at(20) for sign in (1, -1)]
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(leverage_K[place], rel=0.01)
    assert leverage_K.sum() == pytest.approx(1)  # what moves all sizes alike moves the law as much


# Its intervals ---------------------------------------------------------------------------------------------


def curve_of_pool(
    law: PowerLaw, quality_P: np.ndarray, quality_N: np.ndarray, seeds: int = 1, margin: float = 0.001
) -> Curve:
    """Of members whose ensembles have the law's NLL plus the mean of what each has on its own."""

    def point(size: int) -> Estimate:
        pools = [
            Pool(
                seed,
                Design.of(len(quality_P), size),
                lambda subset: of_mean(law.at(len(subset)) + quality_P[list(subset)].mean() + quality_N),
            )
            for seed in range(seeds)
        ]
        return estimate(pools, exchangeable=True)

    points = {size: point(size) for size in range(1, len(quality_P))}
    return Curve(NO_CELL, margin, dict.fromkeys([*points, len(quality_P)], NO_CELL), points)


def test_what_a_member_adds_to_every_size_is_in_the_interval_and_not_in_the_gain():
    """The interval at any size is that of a mean of six, by Student's t; the gain is of the law alone."""
    law, quality_P = PowerLaw(0.5, 0.1, 0.8), np.random.default_rng(0).normal(0, 0.02, 6)
    curve = curve_of_pool(law, quality_P, np.zeros(50))
    half = stats.t.isf(0.025, 5) * np.std(quality_P, ddof=1) / math.sqrt(6)
    for size in (1, 6, 20):
        middle = law.at(size) + quality_P.mean()
        assert curve.interval(size) == pytest.approx((middle - half, middle + half), abs=1e-5)
    gain = curve.gain(6, 20)
    assert gain.value == pytest.approx(law.at(6) - law.at(20), abs=1e-6)
    assert gain.lo == pytest.approx(gain.value, abs=1e-5) and gain.hi == pytest.approx(gain.value, abs=1e-5)


@pytest.mark.slow
def test_intervals_cover_what_new_trainings_give():
    """Pools of six of members that move single and large ensembles differently."""
    rng, covered = np.random.default_rng(1), []
    for _ in range(150):
        level_P, gain_P = rng.normal(0, 0.01, 6), rng.normal(0, 0.02, 6)

        def value(subset: tuple[int, ...]) -> float:
            chosen = list(subset)
            return 0.5 + level_P[chosen].mean() + (0.1 + gain_P[chosen].mean()) / len(subset)  # noqa: B023

        points = {
            size: estimate(
                [Pool(0, Design.of(6, size), lambda subset: of_mean(np.full(9, value(subset))))],
                exchangeable=True,
            )
            for size in SIZES
        }
        lo, hi = Curve(NO_CELL, 0.001, dict.fromkeys(SIZES, NO_CELL), points).interval(20) or (0, 0)
        covered.append(lo <= 0.5 + 0.1 / 20 <= hi)
    assert 0.9 <= np.mean(covered) <= 0.99


def test_test_examples_are_in_the_interval_of_the_gain():
    """Examples that gain differently from ensembling: the gain is as sure as the mean over them."""
    effect_N = np.random.default_rng(2).normal(0, 0.5, 80)
    effect_N -= effect_N.mean()

    def point(size: int) -> Estimate:
        pool = Pool(0, Design.of(6, size), lambda subset: of_mean(0.5 + (0.1 + effect_N) / len(subset)))
        return estimate([pool], exchangeable=True)

    curve = Curve(NO_CELL, 0.001, dict.fromkeys(SIZES, NO_CELL), {size: point(size) for size in SIZES})
    gain, share = curve.gain(5, 20), 1 / 5 - 1 / 20
    half = stats.t.isf(0.025, 79) * share * np.std(effect_N, ddof=1) / math.sqrt(80)
    assert gain.value == pytest.approx(0.1 * share, rel=0.01)
    assert (gain.lo, gain.hi) == pytest.approx((gain.value - half, gain.value + half), rel=0.02)


def test_worth_training_is_the_first_size_whose_next_member_gains_less():
    law = PowerLaw(0.5, 0.1, 1.0)  # the member after M gains 0.1 / (M (M + 1))
    curve = curve_of_pool(law, np.zeros(6), np.zeros(30), margin=0.1 / (4 * 5) * 1.01)
    assert curve.enough() == curve.enough("lo") == curve.enough("hi") == 4
    assert curve_of_pool(law, np.zeros(6), np.zeros(30), margin=1e-4).enough() is None  # 32, of 24 in reach


# Recipes of a sweep ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def storage(tmp_path_factory) -> str:
    axes = {"regularizers": [(), (KL(),)], "members": [0, 1, 4], "seed": [0, 1]}
    return make_sweep(tmp_path_factory.mktemp("sweep"), axes)


@pytest.fixture(scope="module")
def trials(storage):
    return load_trials(storage, "toy")


@pytest.mark.slow
def test_a_point_is_the_mean_over_all_ensembles_of_its_size(trials):
    """Also of a size that the sweep has no row of, by cross-fitted temperatures."""
    (curve, _) = curves(trials)
    pools = [trials.predictions(row) for row in curve.cell.rows]
    for size in (1, 3):
        nlls = [
            metrics.ensemble_nll(
                cross_fitted(metrics.combine(pool.logits_MNC[list(s)]), pool.labels_N).logp_NC, pool.labels_N
            )
            for pool in pools
            for s in itertools.combinations(range(4), size)
        ]
        assert curve.points[size].value == pytest.approx(np.mean(nlls), abs=1e-12)


def test_points_are_the_numbers_of_the_tables(trials):
    for curve in curves(trials):
        same = [cell for cell in trials.cells if cell.recipe == curve.cell.recipe]
        assert {cell.members for cell in same} == {1, 4}
        for cell in same:
            found, expected = curve.points[cell.members], trials.estimates.of(cell, "ts_ensemble_nll")
            assert (found.value, found.stderr) == pytest.approx((expected.value, expected.stderr))


def test_all_members_of_the_only_pool_are_moved_as_those_without_one(tmp_path):
    trials = load_trials(make_sweep(tmp_path, {"members": [4]}), "toy")
    (curve,) = curves(trials)
    assert trials.estimates.of(curve.cell, "ts_ensemble_nll").members is None
    assert curve.points[4].stderr == pytest.approx(curve.points[3].stderr)
    lo, hi = curve.interval(8) or (math.nan, math.nan)
    assert lo < curve.law.at(8) < hi


def test_members_that_share_a_stream_have_a_law_without_an_interval(tmp_path):
    axes = {"members": [4], "diversity": [Diversity(order="shared")]}
    trials = load_trials(make_sweep(tmp_path, axes), "toy")
    (curve,) = curves(trials)
    assert curve.interval(8) is None and curve.gain(4, 5).lo is None
    table = recipes(trials, [curve], 0.001)
    assert "(" not in table.blocks[0][0]["worth"].value and table.blocks[0][0]["law"].value


@pytest.mark.parametrize(("axes", "found"), [({"members": [2]}, 2), ({"members": [1], "seed": [0, 1, 2]}, 1)])
def test_a_pool_of_fewer_than_three_has_no_law_and_says_why(axes, found, tmp_path, capsys):
    storage = make_sweep(tmp_path, axes)
    assert main(["size", storage, "--sweep", "toy", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert f"- no law of LoRA: {found} member" in said and "`--set members=5`" in said
    line = next(csv.DictReader((tmp_path / "out" / "size.csv").open()))
    assert (line["pool"], line["law"], line["worth"], line["next_gain"]) == (str(found), "", "", "")
    assert not list((tmp_path / "out").glob("*.svg"))


def test_a_temperature_that_says_nothing_leaves_no_law_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("lorae.ensemble.WIDEST", 1.0)
    trials = load_trials(make_sweep(tmp_path, {"members": [3]}), "toy")
    (curve,) = curves(trials)
    assert "no NLL T-scaled of 1 members: 95 % interval" in curve.missing
    line = sizes(trials, [curve]).blocks[0][2]
    assert line["ensemble_nll"].value > 0 and line["law_nll"].value is None


def test_without_logits_there_are_no_numbers_of_other_sizes(tmp_path):
    storage = make_sweep(tmp_path, {"members": [4]})
    trials = load_trials(storage, "toy")
    member = trials.rows[-1]["member_ids"][0]
    for file in (Path(storage) / member_folder(member) / "predictions").iterdir():
        file.unlink()
    (curve,) = curves(trials)
    assert "verdicts" in curve.missing
    assert all(line["ensemble_nll"].value is None for line in sizes(trials, [curve]).blocks[0])


# The command -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_prints_its_tables_and_writes_them_with_the_figure(storage, tmp_path, capsys):
    assert main(["size", storage, "--sweep", "toy", "--margin", "0.02", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "less than 0.02 nats" in said and "| LoRA  | kl-0.1 " in said
    endings = {(file.stem, file.suffix) for file in tmp_path.iterdir()}
    assert endings >= {(name, end) for name in ("size", "size-curve") for end in (".md", ".csv", ".tex")}
    assert endings >= {("size", ".pdf"), ("size", ".svg")}
    with (tmp_path / "size-curve.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert [int(line["members"]) for line in lines] == [1, 2, 3, 4, 8, 16] * 2
    assert [float(line["train_tokens"]) for line in lines[:6]] == [1000 * m for m in (1, 2, 3, 4, 8, 16)]
    for line in lines:
        assert float(line["law_nll_lo"]) < float(line["law_nll"]) < float(line["law_nll_hi"])
        assert (line["ensemble_nll"] == "") == (line["auroc_msp__greys"] == "") == (int(line["members"]) > 4)
    with (tmp_path / "size.csv").open() as stream:
        recipe = next(csv.DictReader(stream))
    law = PowerLaw(*(float(recipe[name]) for name in ("c", "b", "a")))
    assert law.at(16) == pytest.approx(float(lines[5]["law_nll"]))
    assert float(recipe["next_gain"]) == pytest.approx(law.at(4) - law.at(5))
    assert float(recipe["member_flops"]) == 1e9


@pytest.mark.parametrize("margin", ["0", "-0.1", "nan", "inf"])
def test_a_margin_that_means_nothing_is_one_error_before_anything_is_read(margin, tmp_path, capsys):
    assert main(["size", str(tmp_path / "none"), "--margin", margin]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lorae: margin {float(margin):g}: must be > 0")


def test_without_out_nothing_is_written(storage, tmp_path, monkeypatch):
    before = sorted(Path(storage).rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert "worth training" in write_sizes(storage, "toy")
    assert sorted(Path(storage).rglob("*")) == before and not list(tmp_path.iterdir())


# Out of sample ---------------------------------------------------------------------------------------------


def test_pools_are_dealt_without_a_member_twice_and_compared_with_all_others():
    rows = [{"seed": seed, "member_ids": [f"{seed}-{m}" for m in range(11)]} for seed in (0, 1)]
    deals = list(extrapolation._deals(rows))
    assert len(deals) == 2 * 2 * extrapolation.ROUNDS
    for (first, _), (second, _) in zip(deals[::2], deals[1::2]):
        assert not set(first["member_ids"]) & set(second["member_ids"])
    everyone = {member for row in rows for member in row["member_ids"]}
    for pool, others in deals:
        assert len(pool["member_ids"]) == pool["members"] == 5 and others["members"] == 17
        assert set(pool["member_ids"]) | set(others["member_ids"]) == everyone
        assert {member[0] for member in pool["member_ids"]} == {str(pool["seed"])}


@pytest.mark.slow
def test_a_check_is_the_law_minus_what_the_others_give(tmp_path, monkeypatch):
    monkeypatch.setattr(extrapolation, "ROUNDS", 1)
    monkeypatch.setattr(extrapolation, "TESTED", (6,))
    trials = load_trials(make_sweep(tmp_path, {"members": [11]}), "toy")
    cell = trials.cells[-1]
    pool, others = next(iter(extrapolation._deals(cell.rows)))
    checks = dict(extrapolation._checks(trials.store, cell, pool, others))
    whole = trials.store.predictions([member_folder(m) for m in others["member_ids"]], cell.test_set)

    def nll(first: int, size: int) -> float:
        labels_N = whole.labels_N[first::2]
        subsets = itertools.combinations(range(6), size)
        pooled = (metrics.combine(whole.logits_MNC[list(s), first::2]) for s in subsets)
        return float(np.mean([metrics.ensemble_nll(logp_NC, labels_N) for logp_NC in pooled]))

    half = extrapolation.HalfOfTest(trials.store, 0)
    alone = replace(trials, store=half, rows=(pool,))
    law = curve_of(alone.estimates, Cell(cell.factors, (pool,)), metric="ensemble_nll").law
    check = checks["ensemble_nll", 6]
    assert check.error == pytest.approx(law.at(6) - nll(0, 6))
    assert check.gain == pytest.approx(nll(1, 5) - nll(1, 6))
    assert check.gain_error == pytest.approx(law.at(5) - law.at(6) - check.gain)
    lines = extrapolation.out_of_sample(trials, curves(trials)).blocks[0]
    assert [(line["metric"].value, line["members"].value) for line in lines][-1] == ("NLL", 6)
    assert lines[-1]["pools"].value == 2


def test_half_of_a_test_set_is_every_second_example(trials):
    row = trials.rows[-1]
    folders = [member_folder(member) for member in row["member_ids"]]
    whole = trials.predictions(row)
    halves = [extrapolation.HalfOfTest(Store(trials.store.storage), first) for first in (0, 1)]
    names = [half.predictions(folders, trials.cells[-1].test_set).example_ids for half in halves]
    assert [name for pair in itertools.zip_longest(*names) for name in pair if name] == list(
        whole.example_ids
    )
