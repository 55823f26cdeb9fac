"""Tuning: every recipe gets the value that validation prefers, by members that are reused; test sets are not
seen before, nothing is trained twice, and the audit makes the choice again."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
import toys
from toys import Colours, Greys
from victims import lorae as command

import jobs.driver
import lorae.engine.run
from analysis.audit import audit
from jobs.cli import main
from jobs.driver import run_sweep
from jobs.request import Request
from jobs.simulate import simulate, simulated_devices
from lorae.draws import TFB, MCDropout
from lorae.methods import BatchEnsemble, Full, InContext, Kaiming, Xavier
from lorae.planning.choice import Choice, choose
from lorae.planning.plan import make_plan
from lorae.regularizers import KL, AdapterDropout, DecayB, EarlyStopping
from lorae.results import read_trials
from lorae.search import ASHA
from lorae.store.names import LATER_RECORD, PATH_FILE, member_folder
from lorae.store.predictions import prediction_file, prediction_sets
from lorae.store.store import Store
from lorae.trial import AdamW, Budget, Diversity, Sweep, Trial
from lorae.trial.axes import value_at, with_value, with_values
from lorae.trial.tuning import Point, Study, Times, left_out, studies

SHORT = Budget(batch_size=4, steps=4, max_tokens=64)
RATES = (1e-3, 1e-2, 3e-2)
DIVERGING = 1e38


# What is tuned ---------------------------------------------------------------------------------------------


def test_each_recipe_has_its_own_study_and_shares_it_over_seeds_sizes_and_draws(tiny_trial):
    base = tiny_trial(optimizer=AdamW(lr=1e-4))
    sweep = Sweep(
        base=base,
        axes={"regularizers": [(), (KL(0.1),)], "members": [1, 3], "seed": [5, 6]},
        rivals=[
            replace(base, method=Full(), optimizer=AdamW(lr=5e-5)),
            replace(base, draws=TFB(3)),
            replace(base, members=3, combine="weights"),
            replace(base, method=InContext(shots=2), members=2),
        ],
        companions=True,
        tune={"optimizer.lr": Times(1 / 3, 1, 3)},
    )
    found = {
        (r.method.label, r.method.rank, r.regularizers, r.budget.length): s for r, s in studies(sweep).items()
    }
    grid = [("lora", rank, regularizers, epochs) for regularizers in ((), (KL(0.1),)) for rank, epochs in
            ((8, 3), (8, 9), (24, 3))]  # fmt: skip
    assert set(found) == {*grid, ("full", 0, (), 3)}
    assert found[grid[0]].axes == {"optimizer.lr": (3.33e-5, 1e-4, 3e-4)}
    assert found["full", 0, (), 3].axes == {"optimizer.lr": (1.67e-5, 5e-5, 1.5e-4)}
    trials = [point.trial for study in found.values() for point in study.points]
    assert {(t.seed, t.members, t.combine) for t in trials} == {(5, 2, "probs")}
    assert [p.trial.optimizer.lr for p in found[grid[0]].points] == [3.33e-5, 1e-4, 3e-4]


def test_members_at_a_point_predict_as_the_recipes_first_row_does(tiny_trial):
    dropout = tiny_trial(regularizers=(AdapterDropout(0.1),), draws=MCDropout(4))
    sweep = Sweep(base=tiny_trial(), rivals=[dropout], tune={"optimizer.lr": RATES}, zero_shot=False)
    assert [s.points[0].trial.draws for s in studies(sweep).values()] == [None, MCDropout(4)]


def test_several_axes_are_tuned_together_and_a_recipe_without_one_is_not_tuned_over_it(tiny_trial):
    sweep = Sweep(
        base=tiny_trial(),
        axes={"regularizers": [(), (DecayB(5.0),), (KL(0.1),)]},
        tune={"optimizer.lr": (1e-2, 0.2), "regularizers.DecayB.strength": (1.0, 4.0)},
    )
    plain, decay, kl = studies(sweep).values()
    assert [p.values for p in plain.points] == [{"optimizer.lr": 1e-2}, {"optimizer.lr": 0.2}]
    assert len(kl.points) == 2
    # lr=0.2 with the base's strength of 5 is refused, with either value that is tried it is not
    assert [(p.trial.optimizer.lr, p.trial.regularizers[0]) for p in decay.points] == [
        (1e-2, DecayB(1.0)), (1e-2, DecayB(4.0)), (0.2, DecayB(1.0)), (0.2, DecayB(4.0)),
    ]  # fmt: skip


def test_a_corner_of_the_grid_that_a_spec_refuses_is_left_out_and_named(tiny_trial):
    decays = {"regularizers.DecayB.strength": (1.0, 10.0)}
    sweep = Sweep(base=tiny_trial(regularizers=(DecayB(1.0),)), tune={"optimizer.lr": (1e-2, 0.2), **decays})
    (study,) = studies(sweep).values()
    points = [(p.trial.optimizer.lr, p.trial.regularizers[0].strength) for p in study.points]
    assert points == [(1e-2, 1.0), (1e-2, 10.0), (0.2, 1.0)]
    corner = {"optimizer.lr": 0.2, "regularizers.DecayB.strength": 10.0}
    assert left_out(study.axes, [p.values for p in study.points]) == [corner]
    assert "refused, so not tried: optimizer.lr=0.2, regularizers.DecayB.strength=10.0" in str(
        Choice(study, (0.3, 0.2, 0.4))
    )
    with pytest.raises(
        ValueError, match=r"optimizer.lr=2.0, regularizers.DecayB.strength=1.0 .* must be < 1"
    ):
        Sweep(base=tiny_trial(regularizers=(DecayB(1.0),)), tune={"optimizer.lr": (1e-2, 2.0), **decays})


def test_members_that_would_be_identical_are_one(tiny_trial):
    base = tiny_trial(method=Full(), diversity=Diversity(order="shared"))
    sweep = Sweep(base=base, tune={"optimizer.lr": (1e-5, 1e-4)}, zero_shot=False)
    assert [len(p.member_ids) for s in studies(sweep).values() for p in s.points] == [1, 1]


def test_an_axis_is_a_field_and_no_other_attribute(tiny_trial):
    trial = tiny_trial(method=BatchEnsemble(), regularizers=(KL(0.1),))
    assert (trial.method.rank, value_at(trial, "method.rank")) == (0, None)
    assert value_at(trial, "regularizers.KL.beta") == 0.1


def test_values_set_together_are_checked_together(tiny_trial):
    trial = tiny_trial(regularizers=(DecayB(90.0),))
    both = with_values(trial, {"optimizer.lr": 0.1, "regularizers.DecayB.strength": 5.0})
    assert (both.optimizer.lr, both.regularizers) == (0.1, (DecayB(5.0),))
    twice = with_values(trial, {"optimizer.lr": 1e-3, "optimizer.weight_decay": 0.1})
    assert twice.optimizer == AdamW(lr=1e-3, weight_decay=0.1)
    with pytest.raises(ValueError, match=r"members=1\.5: must be int"):
        with_values(trial, {"members": 1.5})
    with pytest.raises(ValueError, match="must be < 1"):
        with_values(trial, {"optimizer.lr": 0.1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axes": {"optimizer.lr": [1e-3, 1e-2]}}, "'optimizer.lr' is tuned over .* leave it out of axes"),
        ({"tune": {"optimizer.lr": (1e-3,)}}, "would have the values 0.001; give two or more"),
        ({"tune": {"optimizer.lr": ()}}, "give two or more"),
        ({"tune": {"optimizer.lr": (1e-3, 1e-3)}}, "0.001, 0.001; give two or more that differ"),
        ({"tune": {"optimizer.lr": Times(1, 1.00001)}}, "0.01, 0.01; give two or more that differ"),
        ({"tune": {"optimizer.lr": 1e-3}}, r"must be values, or multiples .* Times\(0.3, 1, 3\)"),
        ({"tune": {"optimizer.lr": ("a", "b")}}, "optimizer.lr=a for .* lr='a': must be float"),
        ({"tune": {"optimizer.rate": (1, 2)}}, "'rate' is no field of AdamW; it has lr"),
        ({"tune": {"regularizers.DecayB.strength": (1.0, 2.0)}}, "there is none"),
        ({"tune": {"optimizer.cycles": (2, 3)}}, "cycles=2: a cyclic schedule"),
        ({"tune": {"optimizer.schedule": Times(1, 2)}}, "'linear' has no multiples"),
        ({"tune": {"members": (1, 2)}}, "must be a field of a trial's method, regularizers"),
        ({"tune": {"task.num_train": (1, 2)}}, "must be a field of a trial's method, regularizers"),
        ({"tune": {"method.init": (Kaiming(), Xavier(1))}}, "must be numbers or words"),
        ({"tune_members": 0}, "tune_members=0: must be >= 1"),
        ({"search": ASHA()}, "a search tunes already"),
        (
            {"axes": {"regularizers": [(), (DecayB(60.0),)]}, "tune": {"optimizer.lr": (1e-3, 2e-2)}},
            r"optimizer.lr=0.02 for colours lora .* decay_b-60: .* lr \* strength must be < 1",
        ),
    ],
)  # fmt: skip
def test_tuning_that_cannot_work_is_refused(tiny_trial, change, message):
    with pytest.raises(ValueError, match=message):
        Sweep(**({"base": tiny_trial(), "tune": {"optimizer.lr": RATES}} | change))


@pytest.mark.parametrize("factors", [(0, 1), (-1, 1), ("a", "b")])
def test_multiples_are_of_positive_numbers(factors):
    with pytest.raises(ValueError, match=r"factors must be numbers > 0; write Times\(0.3, 1, 3\)"):
        Times(*factors)


# The choice ------------------------------------------------------------------------------------------------


def study_of(values: tuple[float, ...]) -> Study:
    points = tuple(Point({"optimizer.lr": v}, SimpleNamespace()) for v in values)  # type: ignore[arg-type]
    return Study({"optimizer.lr": values}, points, uneven=False)


@pytest.mark.parametrize(
    ("nlls", "chosen", "at_end"),
    [
        ((0.5, 0.4, 0.6), 2.0, False),
        ((0.4, 0.4, 0.6), 1.0, True),
        ((0.5, 0.4, 0.3), 3.0, True),
        ((math.inf, 0.4, math.inf), 2.0, False),
        ((math.inf, math.inf, math.inf), None, False),
        ((None, 0.4, 0.6), None, False),
    ],
)
def test_the_lowest_nll_of_points_that_were_all_tried_is_chosen(nlls, chosen, at_end):
    choice = Choice(study_of((1.0, 2.0, 3.0)), nlls)
    assert (choice.values or {}).get("optimizer.lr") == chosen
    assert choice.is_at_end("optimizer.lr") is at_end
    assert choice.is_known is (None not in nlls)


# End to end ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@dataclass(frozen=True)
class Runner:
    """Runs sweeps in this process on one storage."""

    storage: Path
    tracking_uri: str
    capsys: pytest.CaptureFixture[str]

    @property
    def store(self) -> Store:
        return Store(str(self.storage))

    def __call__(self, sweep: Sweep, *, code: int = 0, dry_run: bool = False) -> dict[str, Any]:
        self.capsys.readouterr()
        request = Request("tuned", sweep, str(self.storage), "lorae sweep tuned", toys)
        done = run_sweep(request, dry_run=dry_run, as_json=True, local=True, tracking_uri=self.tracking_uri)
        out, err = self.capsys.readouterr()
        assert done == code, err
        return json.loads(out) | {"messages": err}

    def rows(self) -> list[dict[str, Any]]:
        return read_trials(self.store, "tuned").to_pylist()

    def has(self, trial: Trial, split: str) -> list[bool]:
        """Of each member whether it has predictions on a split of its task."""
        name = prediction_file(trial.task.eval_set(split))  # type: ignore[arg-type]
        return [name in self.store.files(member_folder(m)) for m in trial.member_ids()]

    def faults(self) -> list[str]:
        return [f"{f.check}: {f.what}" for f in audit(str(self.storage)) if f.status == "failed"]


@pytest.fixture
def run(tmp_path, tracking_uri, capsys) -> Runner:
    return Runner(tmp_path / "store", tracking_uri, capsys)


@pytest.fixture
def sweep(tiny_trial) -> Sweep:
    """Two recipes with heads of the same backbone and a rival of a method of its own, three values each."""
    base = tiny_trial(budget=SHORT, optimizer=AdamW(lr=1e-2))
    return Sweep(
        base=base,
        axes={"regularizers": [(), (EarlyStopping(patience=1, every=2),)], "members": [1, 3], "seed": [0, 1]},
        rivals=[replace(base, method=BatchEnsemble(), optimizer=AdamW(lr=3e-2), members=2)],
        tune={"optimizer.lr": Times(0.1, 1, 3)},
    )


@pytest.mark.process
def test_the_chosen_value_has_the_lowest_mean_nll_of_single_members(run, sweep):
    done = run(sweep)
    # tuning: 3 recipes x 3 values x 2 members; then LoRA's third member and three of seed 1, the rival's two
    assert (done["trained"], done["incomplete"]) == (18 + 2 * (1 + 3) + 2, 0)
    rows = {(r["method"], r["regularizers"], r["members"], r["seed"]): r for r in run.rows()}
    assert len(rows) == done["trials"] == 1 + 8 + 2
    for recipe, study in studies(sweep).items():
        expected = {}
        for point in study.points:
            members = [mean_nll(run.store, m, point.trial) for m in point.trial.member_ids()]
            expected[point.trial.optimizer.lr] = sum(members) / 2
        best = min(expected, key=expected.__getitem__)
        label = "+".join(r.label for r in recipe.regularizers) or "none"
        own = [row for key, row in rows.items() if key[:2] == (recipe.method.label, label) and row["members"]]
        assert {row["lr"] for row in own} == {best} and len(own) == (2 if recipe.method.rank == 0 else 4)
        for row in own:
            tuning = json.loads(row["tuning"])
            assert tuning["axes"]["optimizer.lr"]["values"] == list(expected)
            assert tuning["axes"]["optimizer.lr"]["chosen"] == best
            assert [p["validation_nll"] for p in tuning["points"]] == pytest.approx(
                [*expected.values()], abs=1e-9
            )
            tuned = {m for p in tuning["points"] for m in p["member_ids"]}
            assert tuning["reused_members"] == len(tuned & {*row["member_ids"]})
            assert tuning["reused_members"] == (min(row["members"], 2) if row["seed"] == 0 else 0)
            costs = [run.store.record(member_folder(m), {})["cost"] for m in tuned]
            assert tuning["train_tokens"] == sum(c["train_tokens"] for c in costs) > 0
            assert tuning["train_seconds"] == pytest.approx(sum(c["train_seconds"] for c in costs))
            at_end = best in (min(expected), max(expected))
            assert tuning["axes"]["optimizer.lr"]["at_end"] is at_end
            assert at_end == any(f"lr={best}" in line and "lie beyond" in line for line in done["best"])
    assert rows["none", "none", 0, 0]["tuning"] is None
    assert not run.faults()


def mean_nll(store: Store, member: str, trial: Trial) -> float:
    """By plain numpy."""
    name = prediction_file(trial.task.eval_set("validation"))
    table = pq.read_table(Path(store.storage.path(member_folder(member))) / name)
    logits_NC = np.array(table["logits"].to_pylist(), np.float64)
    labels_N = table["label"].to_numpy()
    logp_NC = logits_NC - np.log(np.exp(logits_NC).sum(axis=1, keepdims=True))
    return float(-logp_NC[np.arange(len(labels_N)), labels_N].mean())


@pytest.mark.process
def test_no_test_set_is_predicted_before_the_choice_and_none_changes_it(run, sweep, data_root, monkeypatch):
    sweep = replace(sweep, ood=[Greys().located(data_root)])
    points = [p for study in studies(sweep).values() for p in study.points]
    after, seen = jobs.driver.after_tuning, []

    def looking(sweep: Sweep, store: Store) -> Any:
        seen.extend(name for p in points for m in p.member_ids for name in
                    prediction_sets(store.files(member_folder(m))))  # fmt: skip
        return after(sweep, store)

    monkeypatch.setattr(jobs.driver, "after_tuning", looking)
    run(sweep)
    assert set(seen) == {sweep.base.task.eval_set("validation")} and len(seen) == 18
    choices = [choose(run.store, study) for study in studies(sweep).values()]
    tested = [[run.has(p.trial, "test") for p in choice.study.points] for choice in choices]
    assert tested == [[[p.values == choice.values] * 2 for p in choice.study.points] for choice in choices], (
        "of the members that tuning trained only those of the chosen value are tested"
    )

    # Whatever the test predictions say, the choice is the same
    for path in run.storage.glob("members/*/predictions/*__test__*"):
        path.unlink()
    assert [choose(run.store, study) for study in studies(sweep).values()] == choices


@pytest.mark.process
def test_a_run_that_is_killed_goes_on_and_trains_nothing_twice(run, sweep, monkeypatch):
    """In the middle of tuning, between the rounds, and in the second round."""
    whole = Runner(run.storage.parent / "whole", run.tracking_uri, run.capsys)
    total = whole(sweep)["trained"]
    trained, real = [], lorae.engine.run.run_stack

    def killed_after(num: int) -> Callable[..., Any]:
        left = iter(range(num))

        def stack(stack, *arguments, **settings):
            if next(left, None) is None:
                raise KeyboardInterrupt
            result = real(stack, *arguments, **settings)
            trained.extend(result.trained)
            return result

        return stack

    for num in (4, 5, 3, 100):  # of 9 stacks that tune, then of the rest
        monkeypatch.setattr(lorae.engine.run, "run_stack", killed_after(num))
        try:
            run(sweep)
        except KeyboardInterrupt:
            assert num < 100
        if num == 5:
            assert len(trained) == 18, "all that tunes, and nothing else"
    assert len(trained) == len(set(trained)) == total
    ours, theirs = run.rows(), whole.rows()
    for column in ("trial_id", "member_ids", "status", "lr"):
        assert [row[column] for row in ours] == [row[column] for row in theirs]
    assert run(sweep)["trained"] == 0


@pytest.mark.process
def test_more_members_and_seeds_reuse_what_is_stored_and_a_grid_finds_the_tuned_members(run, sweep):
    run(sweep)
    more = run(replace(sweep, axes=sweep.axes | {"members": [5], "seed": [0, 1, 2]}))
    assert more["trained"] == 2 * (2 + 2 + 5) + 2, (
        "the third seed's, the rival's too, and two more of the others"
    )
    chosen = {row["lr"] for row in run.rows() if row["method"] == "lora" and row["regularizers"] == "none"}
    plain = Sweep(base=with_value(sweep.base, "optimizer.lr", *chosen), axes={"members": [5]})
    assert run(plain)["trained"] == 0
    assert run.rows()[1]["tuning"] is None


@pytest.mark.process
def test_a_dry_run_shows_the_tuning_and_bounds_the_rest(run, sweep):
    first = run(sweep, dry_run=True)
    assert first["tuning"]["members"] | {"damaged": 0} == {
        "needed": 18, "stored": 0, "to_train": 18, "damaged": 0
    }  # fmt: skip
    assert sorted({stack["lr"] for stack in first["tuning"]["stacks"]}) == [1e-3, 3e-3, 1e-2, 3e-2, 9e-2]
    assert first["at_most"] and len(first["trials"]) == 11
    done = run(sweep)
    assert first["members"]["to_train"] + 18 == done["trained"]
    then = run(sweep, dry_run=True)
    assert "tuning" not in then and "at_most" not in then and then["members"]["to_train"] == 0
    assert {t["lr"] for t in then["trials"]} == {row["lr"] for row in run.rows()}
    assert len(then["best"]) == 3


@pytest.mark.process
def test_the_bound_holds_where_members_of_one_value_are_stored(run, tiny_trial):
    base = tiny_trial(budget=SHORT, members=4)
    at_first = with_value(base, "optimizer.lr", RATES[0])
    run(Sweep(base=at_first, zero_shot=False))
    sweep = Sweep(base=base, tune={"optimizer.lr": RATES}, zero_shot=False)
    shown = run(sweep, dry_run=True)
    assert shown["tuning"]["members"]["to_train"] == 4, "at the other two values"
    assert shown["members"]["to_train"] == 2, "two more, unless the stored value is chosen"


def test_the_plan_in_words_and_simulated_has_both_rounds(run, sweep):
    gpus = simulated_devices(2, "a100-40")
    plan = make_plan(sweep, run.store, gpus)
    text = jobs.driver.plan_text(plan)
    assert "first, 3 recipes are tuned" in text and "18 to train" in text and "at most" in text
    assert text.index("18 to train") < text.index("at most") < text.rindex("10 to train")
    rounds = [simulate(part, gpus) for part in (plan.tuning, replace(plan, tuning=None)) if part]
    both = simulate(plan, gpus)
    assert both.makespan_seconds == pytest.approx(sum(r.makespan_seconds for r in rounds))
    assert both.stacks == sum(r.stacks for r in rounds) and both.gpu_hours > rounds[0].gpu_hours > 0


@pytest.mark.process
def test_a_value_that_diverges_is_not_chosen(run, tiny_trial):
    base = tiny_trial(budget=SHORT, members=2)
    sweep = Sweep(base=base, tune={"optimizer.lr": (DIVERGING, 1e-2)}, zero_shot=False)
    done = run(sweep)
    assert (done["trained"], done["failed"], done["incomplete"]) == (2, {}, 0)
    assert "1 failed" in done["best"][0]
    (row,) = run.rows()
    points = json.loads(row["tuning"])["points"]
    assert row["lr"] == 1e-2
    assert [(p["validation_nll"] is None, p["members"]) for p in points] == [(True, 0), (False, 2)]
    assert not run.faults(), "a failure that tuning has weighed is no fault of the storage"
    assert run(sweep)["trained"] == 0
    assert not list(run.storage.glob("checkpoints/*"))


@pytest.mark.process
def test_where_every_value_diverges_the_trials_fail_and_say_why(run, tiny_trial):
    base = tiny_trial(budget=SHORT)
    sweep = Sweep(
        base=replace(base, optimizer=AdamW(DIVERGING)),
        axes={"members": [1, 2]},
        rivals=[replace(base, regularizers=(KL(0.1),), optimizer=AdamW(1e-3))],
        tune={"optimizer.lr": Times(1, 3)},
        zero_shot=False,
    )
    done = run(sweep, code=1)
    assert (done["trained"], done["incomplete"], done["failed"]) == (4, 2, {})
    *lost, rival = run.rows()
    assert rival["status"] == "done" and rival["regularizers"] == "kl-0.1"
    for row in lost:
        assert (
            row["status"] == "failed" and "at every value of optimizer.lr a member failed: " in row["error"]
        )
        assert row["error"].count("at step ") == 4, "two members at each of two values"
        assert json.loads(row["tuning"])["axes"]["optimizer.lr"]["chosen"] is None


@pytest.mark.process
def test_a_stack_that_is_lost_leaves_its_recipe_untuned_until_the_command_is_repeated(
    run, tiny_trial, monkeypatch
):
    base = tiny_trial(budget=SHORT, members=3)
    sweep = Sweep(
        base=base, axes={"regularizers": [(), (KL(0.1),)]}, tune={"optimizer.lr": RATES}, zero_shot=False
    )
    real = lorae.engine.run.run_stack

    def lost(stack, *arguments, **settings):
        if stack.trial.optimizer.lr == RATES[1] and stack.trial.regularizers:
            raise RuntimeError("out of memory")
        return real(stack, *arguments, **settings)

    monkeypatch.setattr(lorae.engine.run, "run_stack", lost)
    done = run(sweep, code=1)
    assert (done["trained"], done["incomplete"], len(done["failed"])) == (6 + 1 + 4, 1, 1)
    assert "out of memory" in str(done["failed"]) and "resume with" in done["messages"]
    assert [row["status"] for row in run.rows()] == ["done", "failed"]
    assert "is not tuned yet" in run.rows()[1]["error"]
    monkeypatch.undo()
    assert run(sweep)["trained"] == 2 + 1
    assert [row["status"] for row in run.rows()] == ["done", "done"] and not run.faults()


@pytest.mark.process
def test_a_damaged_member_that_was_not_chosen_is_trained_again(run, tiny_trial):
    """One whose file is visibly newer at once, one that decayed unseen when the sweep has read it."""
    sweep = Sweep(base=tiny_trial(budget=SHORT), tune={"optimizer.lr": RATES}, zero_shot=False)
    run(sweep)
    before = run.rows()
    name = prediction_file(sweep.base.task.eval_set("validation"))
    point = next(
        p
        for p in json.loads(before[0]["tuning"])["points"]
        if p["values"] != {"optimizer.lr": before[0]["lr"]}
    )
    file = run.storage / member_folder(point["member_ids"][0]) / name
    for unseen in (False, True):
        content, then = bytearray(file.read_bytes()), file.stat().st_mtime_ns
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        if unseen:
            os.utime(file, ns=(then, then))
        assert run(sweep)["trained"] == 1
        kept = ("trial_id", "member_ids", "validation_nll", "status")
        assert [[row[k] for k in kept] for row in run.rows()] == [[row[k] for k in kept] for row in before]


@pytest.mark.process
def test_a_reused_member_has_what_the_others_have(run, sweep):
    """Its path along the training, and the cost of all its predictions."""
    sweep = replace(sweep, paths=True, tune_members=1, rivals=())
    run(sweep)
    row = next(r for r in run.rows() if r["members"] == 3 and r["seed"] == 0)
    assert all(PATH_FILE in run.store.files(member_folder(m)) for m in row["member_ids"])
    records = [run.store.record(member_folder(m), {})["cost"]["predict_seconds"] for m in row["member_ids"]]
    with_later = [m for m in row["member_ids"] if LATER_RECORD in run.store.files(member_folder(m))]
    assert with_later == row["member_ids"][:1]
    later = run.store.record(member_folder(with_later[0]), {}, LATER_RECORD)["cost"]["predict_seconds"]
    assert later > 0 and row["predict_seconds"] == pytest.approx(sum(records) + later)
    assert not run.faults()


@pytest.mark.process
def test_tuned_rows_are_in_mlflow_with_what_tuning_cost(run, sweep, tmp_path):
    run = replace(run, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    run(replace(sweep, rivals=()))
    client = mlflow.MlflowClient(run.tracking_uri)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    shown = {r.data.tags["trial_id"]: r.data for r in runs if "trial_id" in r.data.tags}
    for row in run.rows():
        data, tuning = shown[row["trial_id"]], json.loads(row["tuning"] or "null")
        assert data.metrics.get("tuning_train_tokens") == (tuning and tuning["train_tokens"])
        assert data.tags.get("tuned") == (tuning and f"optimizer.lr={row['lr']}")


@pytest.mark.process
def test_a_table_of_an_older_lorae_is_read(run, sweep):
    run(replace(sweep, tune={}))
    table = run.store.read_table("tuned")
    run.store.write_table("tuned", table.drop_columns(["tuning"]))
    assert read_trials(run.store, "tuned")["tuning"].to_pylist() == [None] * table.num_rows
    assert not run.faults()
    run.store.write_table("tuned", table.drop_columns(["ece15"]))
    with pytest.raises(ValueError, match="has no column ece15: an older lorae wrote it"):
        read_trials(run.store, "tuned")


# Command line ----------------------------------------------------------------------------------------------

FILE = """
from lorae.regularizers import DecayB
from lorae.sources import Files
from lorae.trial import AdamW, Budget, Sweep, Trial
from lorae.trial.tuning import Times
from toys import Colours
SWEEP = Sweep(
    base=Trial(backbone=Files({backbone!r}), task=Colours(), precision="fp32", optimizer=AdamW(lr=1e-2),
               budget=Budget(batch_size=4, steps=4, max_tokens=64)),
    axes={{"regularizers": [(), (DecayB(5.0),)], "members": [1, 3]}},
    tune={{"optimizer.lr": Times(0.1, 1)}},
    zero_shot=False,
)
"""


@pytest.fixture
def file(tiny_llama, tmp_path) -> Path:
    path = tmp_path / "tuned.py"
    path.write_text(FILE.format(backbone=tiny_llama.path))
    return path


def test_set_of_a_tuned_axis_is_refused_and_of_others_is_not(file, data_root, tmp_path, capsys):
    words = ["sweep", str(file), "--storage", str(tmp_path / "store"), "--data-root", str(data_root)]
    words += ["--dry-run", "--json", "--set"]
    assert main([*words, "optimizer.lr=0.1,0.2"]) == 2
    err = capsys.readouterr().err
    assert "'optimizer.lr' is tuned over" in err and "--set" in err and len(err.strip().splitlines()) == 1
    assert main([*words, "regularizers.DecayB.strength=5"]) == 2, "the base has none"
    capsys.readouterr()
    assert main([*words, "members=6"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["tuning"]["members"]["to_train"] == 8 and shown["members"]["to_train"] == 8
    assert main([*words, "optimizer.weight_decay=0,0.1"]) == 0
    assert json.loads(capsys.readouterr().out)["tuning"]["members"]["to_train"] == 16
    assert not (tmp_path / "store").exists()


@pytest.mark.process
@pytest.mark.ray
def test_tuning_under_ray_tune(file, data_root, tmp_path):
    storage = tmp_path / "store"
    words = ("sweep", file, "--storage", storage, "--json")
    done, _ = command(*words, data_root=data_root).finished(0)
    assert (done["trained"], done["incomplete"], len(done["best"])) == (8 + 2, 0, 2)
    rows = pq.read_table(storage / "sweeps/tuned/trials.parquet").to_pylist()
    assert {len(json.loads(row["tuning"])["points"]) for row in rows} == {2}
    again, _ = command(*words, data_root=data_root).finished(0)
    assert again["trained"] == 0
    more, _ = command(*words, "--set", "members=4", data_root=data_root).finished(0)
    assert more["trained"] == 2
    assert main(["audit", str(storage)]) == 0


# The audit -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def original(tiny_llama, data_root, tracking_uri, tmp_path_factory) -> Path:
    """A storage of two recipes over two learning rates, one of them also over two strengths."""
    storage = tmp_path_factory.mktemp("tuned") / "store"
    base = Trial(
        backbone=tiny_llama,
        task=Colours(),
        optimizer=AdamW(lr=1e-2),
        budget=SHORT,
        precision="fp32",
        members=2,
    )
    sweep = Sweep(
        base=base,
        axes={"regularizers": [(), (DecayB(5.0),)], "seed": [0, 1]},
        tune={"optimizer.lr": (1e-3, 1e-2), "regularizers.DecayB.strength": (1.0, 5.0)},
        uneven_tuning=True,
    ).located(data_root)
    request = Request("tuned", sweep, str(storage), "", toys)
    assert run_sweep(request, local=True, tracking_uri=tracking_uri) == 0
    return storage


@dataclass(frozen=True)
class Audited:
    """A copy of the tuned storage, to be broken."""

    store: Store

    def edit(self, change: Callable[[int, dict[str, Any], dict[str, Any]], Any]) -> None:
        """Change the tuning of the trained rows, or the rows themselves, by their place."""
        table = self.store.read_table("tuned")
        rows = table.to_pylist()
        for place, row in enumerate(rows[1:]):
            tuning = json.loads(row["tuning"])
            change(place, row, tuning)
            row["tuning"] = row["tuning"] and json.dumps(tuning)
        self.store.write_table("tuned", type(table).from_pylist(rows, schema=table.schema))

    def findings(self) -> dict[str, list[str]]:
        """What the two checks say."""
        found: dict[str, list[str]] = {}
        for finding in audit(self.store.storage.uri):
            found.setdefault(finding.check, []).append(f"{finding.status}: {finding.where}: {finding.what}")
        failed = {check for check, said in found.items() if said[0].startswith("failed")}
        assert failed <= {"recipes are tuned alike", "choices come from validation"}
        return found


@pytest.fixture
def audited(original, tmp_path) -> Audited:
    shutil.copytree(original, tmp_path / "store")
    return Audited(Store(str(tmp_path / "store")))


@pytest.mark.process
def test_the_audit_passes_what_was_tuned_as_the_sweep_says(audited):
    found = audited.findings()
    assert found["recipes are tuned alike"] == ["passed: : 4 trials of sweeps that tune"]
    assert found["choices come from validation"] == ["passed: : 4 tuned trials"]


@pytest.mark.slow
def test_the_audit_refuses_recipes_that_were_tuned_over_unequal_numbers_of_points(audited):
    audited.edit(lambda place, row, tuning: tuning.update(uneven_tuning=False))
    (fault,) = audited.findings()["recipes are tuned alike"]
    assert fault.startswith("failed: tuned on colours__test__") and "over 2 points, others over 4" in fault


def test_the_audit_refuses_an_untuned_row_beside_tuned_ones(audited):
    def untune(place, row, tuning):
        if place == 0:
            row["tuning"] = None

    audited.edit(untune)
    (fault,) = audited.findings()["recipes are tuned alike"]
    assert "members=2 seed=0) over 0 points, others over 4" in fault


def other(values: list[float], chosen: float) -> float:
    return next(value for value in values if value != chosen)


def test_the_audit_sees_a_choice_that_is_not_the_best(audited):
    def choose_other(place, row, tuning):
        if place == 1:
            axis = tuning["axes"]["optimizer.lr"]
            axis["chosen"] = other(axis["values"], axis["chosen"])

    audited.edit(choose_other)
    (fault,) = audited.findings()["choices come from validation"]
    assert "seed=1" in fault and "optimizer.lr: the table says" in fault


def test_the_audit_sees_an_nll_that_the_logits_do_not_give(audited):
    def lower(place, row, tuning):
        if place == 0:
            tuning["points"][0]["validation_nll"] -= 1e-6

    audited.edit(lower)
    (fault,) = audited.findings()["choices come from validation"]
    assert "at optimizer.lr=0.001 the table says" in fault


def test_the_audit_sees_members_of_another_recipe(audited):
    def take_others(place, row, tuning):
        if place == 3:
            tuning["points"][1]["member_ids"] = tuning["points"][2]["member_ids"]

    audited.edit(take_others)
    (fault,) = audited.findings()["choices come from validation"]
    assert "the recipe's members are not these" in fault


def test_the_audit_sees_fewer_members_than_were_trained(audited):
    def leave_one_out(place, row, tuning):
        if place == 0:
            tuning["points"][0]["member_ids"].pop()

    audited.edit(leave_one_out)
    assert "the recipe's members are not these" in audited.findings()["choices come from validation"][0]


@pytest.mark.slow
def test_the_audit_sees_a_row_that_has_not_the_chosen_value(audited):
    """The table says consistently that another value is best: by logits that were changed with it."""
    row = audited.store.read_table("tuned").to_pylist()[1]
    tuning = json.loads(row["tuning"])
    chosen = tuning["axes"]["optimizer.lr"]["chosen"]
    (best,) = [p for p in tuning["points"] if p["values"]["optimizer.lr"] != chosen]
    name = prediction_file(tuning["eval_set"])
    for member in best["member_ids"]:
        make_right(audited.store, member_folder(member), name)

    def follow(place, row, tuning):
        if place < 2:
            point = next(p for p in tuning["points"] if p["values"] == best["values"])
            stored = [
                audited.store.predictions([member_folder(m)], tuning["eval_set"]) for m in point["member_ids"]
            ]
            nlls = [
                -np.log(softmax(s.logits_MNC[0])[np.arange(len(s.labels_N)), s.labels_N]).mean()
                for s in stored
            ]
            point["validation_nll"] = float(np.mean(nlls))
            tuning["axes"]["optimizer.lr"]["chosen"] = best["values"]["optimizer.lr"]

    audited.edit(follow)
    faults = audited.findings()["choices come from validation"]
    assert len(faults) == 2 and all("optimizer.lr: the recipe says" in fault for fault in faults)


def softmax(logits_NC: np.ndarray) -> np.ndarray:
    p_NC = np.exp(logits_NC.astype(np.float64))
    return p_NC / p_NC.sum(axis=1, keepdims=True)


def make_right(store: Store, folder: str, name: str) -> None:
    """Let a member's predictions be right, with their checksum."""
    import pyarrow as pa

    from lorae.store.predictions import parquet_bytes

    table = pq.read_table(pa.BufferReader(store.read(folder, name)))
    logits = [[5.0 * (c == label) for c in range(3)] for label in table["label"].to_pylist()]
    place = table.schema.get_field_index("logits")
    field = table.schema.field(place)
    changed = table.set_column(place, field, pa.array(logits, field.type))
    store.write_entry(folder, {name: parquet_bytes(changed)})


@pytest.mark.parametrize(
    "damage",
    [
        {"points": 3},
        {"axes": {"optimizer.lr": {"values": 1}}},
        {"members": -1},
        {"seed": "0"},
        {"train_tokens": 2.5},
        {"points": [{"values": {}, "validation_nll": "low", "members": 1, "member_ids": []}]},
    ],
)
def test_a_damaged_column_is_an_error_that_names_the_row(audited, damage):
    audited.edit(lambda place, row, tuning: tuning.update(damage) if place == 0 else None)
    with pytest.raises(ValueError, match=r"trials\.parquet row 1 tuning cannot be read"):
        read_trials(audited.store, "tuned")
