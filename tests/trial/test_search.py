"""Searches: stacks that are ended early are marked and never mixed up with trained ones; sampled points are
found again, and cost nothing the second time."""

from __future__ import annotations

import json
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import toys
from mlflow import MlflowClient
from victims import lorae

from analysis.audit import audit
from analysis.data import load_trials
from analysis.table import comparison
from jobs.devices import local_devices
from jobs.driver import run_sweep
from jobs.request import Request, with_override
from jobs.search import _on_one_device, _replay, _scheduler, objective
from jobs.stack_trial import StackTrial
from jobs.zero import Zero
from lorae.backbone.loading import load_backbone
from lorae.engine.run import run_stack
from lorae.engine.training import TrainingData, train_stack
from lorae.methods import Lora
from lorae.metrics import combine, ensemble_nll
from lorae.planning.estimate import Devices, memory
from lorae.planning.placement import USABLE_FRAC
from lorae.planning.plan import make_plan, placed
from lorae.planning.stack import Stack
from lorae.regularizers import KL, DecayB, EarlyStopping
from lorae.search import ASHA, LogUniform, MedianStopping, Optuna, Uniform
from lorae.store.names import WEIGHTS, member_folder
from lorae.store.predictions import prediction_file
from lorae.store.store import Store
from lorae.tasks.encoding import encode
from lorae.trial import AdamW, Budget, Sweep
from lorae.trial.axes import with_value

pytestmark = pytest.mark.ray

SHORT = Budget(batch_size=4, steps=12, max_tokens=64)


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def run(tmp_path, tracking_uri, capsys):
    """Run a sweep in this process, always on one storage; returns its outcome."""

    def run(sweep: Sweep, name: str) -> dict:
        request = Request(name, sweep, str(tmp_path / "store"), f"lorae sweep {name}", toys)
        assert run_sweep(request, as_json=True, local=True, tracking_uri=tracking_uri) == 0
        return json.loads(capsys.readouterr().out)

    return run


def rows_of(storage, name: str) -> list[dict]:
    return pq.read_table(storage / f"sweeps/{name}/trials.parquet").to_pylist()


def entry(storage, trial, member: int) -> list[bytes]:
    """Weights and predictions of a stored member."""
    folder = member_folder(trial.member_id(member))
    names = [WEIGHTS, *(prediction_file(trial.task.eval_set(s)) for s in ("validation", "test"))]
    return [Store(str(storage)).read(folder, name) for name in names]


SWEEP_FILE = """
from lorae.search import ASHA
from lorae.sources import Files
from lorae.trial import AdamW, Budget, Sweep, Trial
from toys import Colours
SWEEP = Sweep(
    base=Trial(backbone=Files({backbone!r}), task=Colours(), precision="fp32", optimizer=AdamW(lr=1e-2),
               budget=Budget(batch_size=4, steps=12, max_tokens=64), members=2),
    axes={{"optimizer.lr": [0.1, 0.05, 1e-7, 1e-4]}},
    search=ASHA(every=3, reduction=2),
    zero_shot=False,
)
"""


@pytest.mark.process
def test_asha_ends_bad_stacks_marks_them_and_a_grid_trains_them_on(tiny_trial, data_root, run, tmp_path):
    base, bad, storage, file = (
        tiny_trial(budget=SHORT, members=2),
        {1e-7, 1e-4},
        tmp_path / "store",
        "asha.py",
    )
    (tmp_path / file).write_text(SWEEP_FILE.format(backbone=base.backbone.path))
    words = ("sweep", tmp_path / file, "--storage", storage, "--json")
    first, _ = lorae(*words, data_root=data_root).finished(0)
    rows = {row["lr"]: row for row in rows_of(storage, "asha")}
    done = [lr for lr, row in rows.items() if row["status"] == "done"]
    pruned = [lr for lr, row in rows.items() if row["status"] == "pruned"]
    assert bad <= set(pruned) and done and len(done) + len(pruned) == 4
    assert (first["trained"], first["pruned"]) == (2 * len(done), len(pruned))
    for lr in pruned:
        assert rows[lr]["pruned_step"] in (3, 6, 9) and rows[lr]["ensemble_nll"] is None
        assert rows[lr]["validation_nll"] > 0 and "of 12 steps" in rows[lr]["error"]
    members = {lr: with_value(base, "optimizer.lr", lr).member_ids() for lr in rows}
    assert set(Store(str(storage)).storage.names("members")) == {m for lr in done for m in members[lr]}

    # No table has them, and nothing takes their absence for a fault
    trials = load_trials(str(storage), "asha")
    table = comparison(trials)
    assert {row["lr"] for row in trials.rows} == set(done) and not trials.missing
    assert sum(map(len, table.blocks)) == len(done)
    assert len(trials.pruned) == sum(note.startswith("left out: ") for note in table.notes) == len(pruned)
    assert not [finding for finding in audit(str(storage)) if finding.status == "failed"]
    assert mlflow_states(storage) == {"FINISHED": len(done), "KILLED": len(pruned)}

    # Repeated, nothing is trained; without the search, the ended stacks go on to the bytes of any other grid
    again, _ = lorae(*words, data_root=data_root).finished(0)
    assert (again["trained"], again["pruned"]) == (0, len(pruned))
    assert [r["status"] for r in rows_of(storage, "asha")] == [row["status"] for row in rows.values()]
    kept = Store(str(storage)).storage.names("checkpoints")
    assert sum(name.endswith(".safetensors") for name in kept) == len(pruned)
    grid = Sweep(base=base, axes={"optimizer.lr": [*rows]}, zero_shot=False)
    assert run(grid, "grid")["trained"] == 2 * len(pruned)
    for lr in (done[0], min(bad)):
        trial, alone = with_value(base, "optimizer.lr", lr), tmp_path / f"alone-{lr}"
        run_stack(Stack(trial, (0, 1)), str(alone), num_threads=local_devices().cpus_per_stack)
        for member in (0, 1):
            assert entry(storage, trial, member) == entry(alone, trial, member)


def mlflow_states(storage: Path) -> dict[str, int]:
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return dict(Counter(r.info.status for r in runs if "trial_id" in r.data.tags))


@pytest.mark.process
def test_optuna_tunes_each_regulariser_and_finds_its_points_again(tiny_trial, run, tmp_path):
    base = tiny_trial(budget=replace(SHORT, steps=4), optimizer=AdamW(lr=1e-3), members=2)
    sweep = Sweep(
        base=base,
        axes={
            "regularizers": [(), (DecayB(strength=10.0),)],
            "members": [1, 2],
            "optimizer.lr": LogUniform(1e-6, 1e-2),
            "regularizers.DecayB.strength": Uniform(1, 90),
        },
        search=Optuna(num_samples=3, batch=2),
        zero_shot=False,
    )
    storage = tmp_path / "store"
    first = run(sweep, "optuna")
    rows = rows_of(storage, "optuna")
    assert (first["trials"], first["trained"]) == (12, 12), "3 points of 2 regularisers, 1 and 2 members"
    plain = [row for row in rows if row["regularizers"] == "none" and row["members"] == 2]
    decay = [row for row in rows if row["regularizers"] != "none" and row["members"] == 2]
    assert plain[0]["lr"] == decay[0]["lr"] == 1e-3 and decay[0]["regularizers"] == "decay_b-10"
    assert len({row["lr"] for row in plain}) == len({row["regularizers"] for row in decay}) == 3
    assert all(float(f"{row['lr']:.3g}") == row["lr"] and 1e-6 <= row["lr"] <= 1e-2 for row in rows)
    best = min(plain, key=lambda row: row["validation_nll"])
    assert f"optimizer.lr={best['lr']:g}, validation NLL {best['validation_nll']:.4f}" in first["best"][0]

    # A sampled value makes the member that a grid would have
    strength = json.loads(decay[1]["recipe"])["regularizers"][0]["strength"]
    gridded = replace(base, regularizers=(DecayB(strength),), optimizer=AdamW(lr=decay[1]["lr"]))
    assert gridded.member_ids() == decay[1]["member_ids"]

    more = run(replace(sweep, search=Optuna(num_samples=4, batch=2)), "optuna")
    extended = rows_of(storage, "optuna")
    assert {row["trial_id"] for row in rows} < {row["trial_id"] for row in extended}
    assert (more["trials"], more["trained"]) == (16, 4)
    assert run(replace(sweep, search=Optuna(num_samples=4, batch=2)), "optuna")["trained"] == 0
    assert rows_of(storage, "optuna") == extended


def test_a_point_that_cannot_be_trained_has_no_objective(tiny_trial, tmp_path):
    assert objective(Store(str(tmp_path)), [tiny_trial(members=2)]) is None


@pytest.mark.parametrize("search", [ASHA(every=3, reduction=2), MedianStopping(every=3, min_stacks=1)])
def test_stacks_of_an_interrupted_search_are_judged_against_what_was_reported(tiny_trial, search):
    stack = Stack(tiny_trial(budget=SHORT), (0,))
    decisions = {}
    for nll in (0.4, 0.6):
        scheduler = _scheduler(search, [stack])
        _replay(scheduler, "earlier", [{"evaluation": n, "validation_nll": 0.5} for n in (1, 2, 3)])
        trial = type("Trial", (SimpleNamespace,), {"__hash__": object.__hash__})(trial_id="now")
        scheduler.on_trial_add(None, trial)
        report = {"evaluation": 1, "validation_nll": nll}
        decisions[nll] = scheduler.on_trial_result(None, trial, report)
    assert decisions == {0.4: "CONTINUE", 0.6: "STOP"}


def test_evaluating_the_ensemble_changes_nothing_and_gives_its_nll(tiny_trial):
    trial = tiny_trial(budget=SHORT, members=2)
    backbone = load_backbone(trial.backbone, "fp32", "cpu")
    train, validation = (
        encode(backbone.tokenizer, trial.task, trial.task.examples(split), 64)
        for split in ("train", "validation")
    )
    data, seen = TrainingData(train, validation), []
    plain = train_stack(backbone, trial, (0, 1), data)
    evaluated = train_stack(
        backbone, trial, (0, 1), data, evaluate_every=4, on_evaluation=lambda *seen_: seen.append(seen_)
    )
    assert [(step, num_steps) for step, num_steps, _ in seen] == [(4, 12), (8, 12)]
    for one, other in zip(plain, evaluated, strict=True):
        assert all(np.array_equal(one.state[name], other.state[name]) for name in one.state)
        assert [r["nll"] for r in one.curve] == [r["nll"] for r in other.curve]


def test_the_reported_nll_is_that_of_the_mean_probability(tiny_trial, tmp_path):
    """Stopped where the last step would be, the stack reports what a stack of that length then stores."""
    constant = AdamW(lr=1e-2, warmup_frac=0.0, schedule="constant")
    longer = tiny_trial(budget=SHORT, members=2, optimizer=constant)
    shorter = replace(longer, budget=replace(SHORT, steps=8))
    reports = []
    run_stack(
        Stack(longer, (0, 1)),
        str(tmp_path),
        early_end=ASHA(every=8),
        on_progress=lambda p: reports.append(p) if p.phase == "evaluate" else None,
    )
    run_stack(Stack(shorter, (0, 1)), str(tmp_path))
    stored = Store(str(tmp_path)).predictions(
        [member_folder(m) for m in shorter.member_ids()], shorter.task.eval_set("validation")
    )
    expected = ensemble_nll(combine(stored.logits_MNC, "probs"), stored.labels_N)
    assert [(p.step, p.evaluation) for p in reports] == [(8, 1)]
    assert reports[0].validation_nll == pytest.approx(expected, abs=1e-5)
    assert objective(Store(str(tmp_path)), [shorter]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"axes": {"optimizer.lr": LogUniform(1e-5, 1e-1)}}, "only a search samples it; write search=Optuna"),
        ({"axes": {"optimizer.lr": LogUniform(1e-5, 1e-1)}, "search": ASHA()}, "only a search samples it"),
        ({"axes": {"optimizer.lr": [1e-3]}, "search": Optuna(3)}, "has no continuous axis"),
        ({"axes": {"seed": [0, 1]}, "search": ASHA()}, "a search has one seed"),
        ({"companions": True, "search": ASHA()}, "companions=True with a search"),
        (
            {"axes": {"regularizers": [(), (EarlyStopping(),)]}, "search": MedianStopping()},
            "with EarlyStopping: .* leave EarlyStopping out, or write a sweep without search",
        ),
        ({"axes": {"optimizer.lr": Uniform(0.1, 0.2)}, "search": Optuna(3)}, "begins at the base's 0.01"),
        ({"axes": {"optimizer.lrr": Uniform(0.1, 0.2)}, "search": Optuna(3)}, "'lrr' is no field of AdamW"),
        ({"axes": {"members": Uniform(0.5, 3)}, "search": Optuna(3)}, "members=0.5: must be int"),
        ({"axes": {"regularizers.KL.beta": Uniform(0.1, 1)}, "search": Optuna(3)}, "there is DecayB; write"),
        (
            {"axes": {"regularizers.DecayB.strength": Uniform(1, 1e3)}, "search": Optuna(3)},
            r"DecayB\(strength=1000\) with lr=0.01",
        ),
        ({"axes": {"regularizers.DecayB.strengh": [1.0]}}, "'strengh' is no field of DecayB"),
        ({"axes": {"regularizers.DecayB": [1.0]}}, "there is DecayB; write the name of one that is there"),
    ],
)
def test_a_search_that_does_not_fit_its_axes_is_refused(tiny_trial, change, message):
    with pytest.raises(ValueError, match=message):
        Sweep(base=tiny_trial(regularizers=(DecayB(1.0),)), **change)


@pytest.mark.parametrize(
    "search,host,message",
    [
        (ASHA(every=3, grace=4), "tune", "training is over after 12 steps, no stack could be stopped"),
        (MedianStopping(grace=2), "tune", "with an evaluation every 10 steps: training is over after 12"),
        (ASHA(every=3), "local", "ASHA needs Ray Tune, which --local does without"),
        (ASHA(every=3), "zero", "ends stacks that run in one process; leave --zero out"),
    ],
)
def test_a_rule_that_could_end_no_stack_is_refused_before_training(
    tiny_trial, tmp_path, search, host, message
):
    sweep = Sweep(base=tiny_trial(budget=SHORT), search=search)
    zero = Zero(2) if host == "zero" else None
    request = Request("refused", sweep, str(tmp_path / "store"), "", toys, zero=zero)
    with pytest.raises(ValueError, match=message):
        run_sweep(request, local=host == "local")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("values", [(1e-3, 1e-5), (0.0, 1.0)])
def test_ranges_and_rules_are_checked(values):
    with pytest.raises(ValueError, match="write LogUniform"):
        LogUniform(*values)
    with pytest.raises(ValueError, match="write Uniform"):
        Uniform(1.0, 1.0)
    with pytest.raises(ValueError, match="reduction=1"):
        ASHA(reduction=1)
    with pytest.raises(ValueError, match="num_samples=0"):
        Optuna(0)


def test_the_other_axes_of_a_search_are_a_grid_as_ever(tiny_trial, tmp_path):
    lr = LogUniform(1e-5, 1e-1)
    decay = (KL(0.1), DecayB(1.0))
    sweep = Sweep(
        base=tiny_trial(),
        axes={"regularizers": [(), decay], "optimizer.lr": lr},
        search=Optuna(num_samples=3),
    )
    sweep = with_override(sweep, "method.rank=4,8")
    assert [t.method for t in sweep.trials() if t.members] == 2 * [Lora(rank=4), Lora(rank=8)]
    fixed = replace(sweep, axes=sweep.axes | {"optimizer.lr": [1e-3]}, search=None)
    assert len(fixed.trials()) == 5
    with pytest.raises(ValueError, match="has no continuous axis"):
        with_override(sweep, "optimizer.lr=1e-3")
    strong = with_override(Sweep(base=tiny_trial(regularizers=decay)), "regularizers.DecayB.strength=2,4.5")
    found = [t.regularizers for t in strong.trials() if t.members]
    assert found == [(DecayB(2), KL(0.1)), (DecayB(4.5), KL(0.1))]


def test_stacks_that_compete_are_whole_ensembles(tiny_trial, tmp_path, no_floor):
    sweep = Sweep(base=tiny_trial(budget=SHORT, members=4), axes={"method.rank": [2, 4]})
    many = replace(local_devices(), num=8)
    for search, expected in [(None, 1), (ASHA(every=3), 4)]:
        plan = make_plan(replace(sweep, search=search), Store(str(tmp_path)), many)
        assert {len(stack.members) for stack in plan.stacks} == {expected}
    small = Devices("cuda", 8, 1, int(memory(plan.stacks[0], 1, 1).total / USABLE_FRAC) - 1)
    assert {len(stack.members) for stack in placed(replace(plan, whole=False), small).stacks} <= {0, 1, 2}
    with pytest.raises(ValueError, match="with 4 members and one example each needs"):
        placed(plan, small)
    with pytest.raises(ValueError, match=r"that run on one GPU: .* members=0,1,2,3: asked for"):
        _on_one_device(plan, replace(many, stack_devices=2))


@pytest.mark.slow
def test_a_stack_waits_at_each_evaluation_and_its_worker_takes_the_next_one(
    tiny_trial, tmp_path, monkeypatch
):
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    base, storage = tiny_trial(budget=SHORT), str(tmp_path)
    ended, done = (Stack(with_value(base, "optimizer.lr", lr), (0,)) for lr in (0.1, 0.05))

    class Worker(StackTrial):
        def setup(self, config):
            settings = {"storage_uri": storage, "early_end": ASHA(every=4)}
            agreed = SimpleNamespace(broken=lambda retry_seconds: None)
            super().setup(config, (ended, done), settings, (None, None), agreed)

    load_backbone.cache_clear()
    worker = Worker({"stack": {"number": 0}})
    while worker.step().get("evaluation") != 1:
        pass
    worker.reset_config({"stack": {"number": 1}})
    reports = [worker.step()]
    while reports[-1]["phase"] != "done":
        reports.append(worker.step())
    assert [r["step"] for r in reports if "validation_nll" in r] == [4, 8]
    assert Store(storage).storage.names("members") == [done.trial.member_id(0)]
    assert Store(storage).begun() == [[ended.trial.member_id(0)]]
    assert load_backbone.cache_info().misses == 1, "the weights were read for the first stack"
