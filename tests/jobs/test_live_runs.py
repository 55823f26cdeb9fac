"""MLflow shows a sweep while it runs, and can neither delay nor end it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from sweeps import make_sweep

from jobs import live_runs as module
from jobs.live_runs import live_runs
from jobs.mlflow_runs import EXPERIMENT, NOTE, Experiment
from jobs.tracking import prepare, rebuild, record_sweep
from jobs.tracking_files import record_files
from lorae.engine.members import latest
from lorae.engine.training import MemberRun
from lorae.planning.stack import Stack
from lorae.regularizers import KL
from lorae.store.store import Store

AXES = {"regularizers": [(), (KL(),)], "members": [1, 2]}
WAIT_SECONDS = 60.0  # for a thread on a busy machine


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.05)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr("jobs.tracking._curves", lambda store, members: [])  # the sweep was never trained
    return Store(make_sweep(tmp_path, AXES))


@pytest.fixture
def uri(store: Store) -> str:
    return f"sqlite:///{store.storage.path('mlflow.db')}"


@pytest.fixture
def stacks(tiny_trial: Callable) -> list[Stack]:
    trials = [tiny_trial(regularizers=r, members=2) for r in ((), (KL(),))]
    return [Stack(trial=t, members=(0, 1)) for t in trials]


def runs(uri: str) -> dict[str, Run]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    assert len({run.info.run_name for run in found}) == len(found)
    return {str(run.info.run_name): run for run in found}


def once(true: Callable[[], bool]) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def train(step: int, loss: float) -> dict:
    return {"phase": "train", "step": step, "num_steps": 9, "train_loss": loss, "member_nll": None}


@pytest.mark.slow
def test_a_stack_is_seen_while_it_trains_and_trials_take_its_place(store, uri, stacks):
    prepare(uri)
    client = MlflowClient(uri)
    with live_runs(store, "toy", None, lambda: True) as watch:
        assert watch is not None
        watch(stacks, 0, train(1, 0.75))
        once(lambda: len(runs(uri)) == 2)
        parent, stack = runs(uri)["toy, running"], runs(uri)["regularizers none x2"]
        assert stack.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert stack.info.status == parent.info.status == "RUNNING"
        once(lambda: "curve/train_loss" in runs(uri)["regularizers none x2"].data.metrics)
        watch(stacks, 0, train(4, 0.5) | {"member_nll": 0.625})
        once(lambda: "curve/validation_nll" in runs(uri)["regularizers none x2"].data.metrics)
        history = client.get_metric_history(stack.info.run_id, "curve/train_loss")
        assert [(m.step, m.value) for m in history] == [(1, 0.75), (4, 0.5)]
        watch(stacks, 1, train(2, float("nan")))  # a diverged loss cannot be drawn
        once(lambda: len(runs(uri)) == 3)
        watch(stacks, 0, {"phase": "done", "step": 0, "num_steps": 0})
        once(lambda: runs(uri)["regularizers none x2"].info.status == "FINISHED")
    record_sweep(store, "toy", uri)
    names = {"toy", "zero-shot", *(f"{r} members {m}" for r in ("none", "kl-0.1") for m in (1, 2))}
    assert runs(uri).keys() == names


@pytest.mark.slow
def test_runs_of_a_killed_sweep_do_not_stay(store, uri, stacks):
    prepare(uri)
    for _ in range(2):  # the first ends without recording its trials
        with live_runs(store, "toy", None, lambda: True) as watch:
            assert watch is not None
            watch(stacks, 0, train(1, 0.75))
            once(lambda: "regularizers none x2" in runs(uri))
    assert len(runs(uri)) == 2


def test_a_failing_or_hanging_mlflow_costs_a_sweep_nothing(store, uri, stacks, monkeypatch):
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.2)
    asked: list[float] = []

    def hang(*_: object) -> Experiment:
        asked.append(time.monotonic())
        if len(asked) < 3:
            raise ConnectionError("no server")
        time.sleep(300)
        raise AssertionError

    with mock.patch.object(module, "open_experiment", hang):
        with live_runs(store, "toy", uri, lambda: True) as watch:
            assert watch is not None
            for step in range(10_000):
                watch(stacks, 0, train(step, 0.5))
            once(lambda: len(asked) == 3)  # it was tried again
        assert time.monotonic() - asked[-1] < WAIT_SECONDS
    assert not Path(store.storage.path("mlflow.db")).exists()


def test_mlflow_that_cannot_be_prepared_is_not_asked_again(store, stacks):
    with mock.patch.object(module, "open_experiment", side_effect=AssertionError) as opened:
        with live_runs(store, "toy", None, lambda: False) as watch:
            assert watch is not None
            watch(stacks, 0, train(1, 0.5))
            time.sleep(0.3)
        assert not opened.called


@pytest.mark.slow
def test_a_run_names_its_source_user_and_data_and_a_sweep_has_its_figures(store, uri, tmp_path):
    record_sweep(store, "toy", uri)
    assert record_files(store, "toy", uri) and not record_files(store, "toy", uri)
    found, client = runs(uri), MlflowClient(uri)
    run = found["kl-0.1 members 2"]
    tags = run.data.tags
    assert tags["mlflow.source.name"] == "pipelines/toy.py" and tags["mlflow.source.git.commit"] == "abc123"
    assert tags["mlflow.user"]
    (row,) = [r for r in store.read_table("toy").to_pylist() if r["trial_id"] == tags["trial_id"]]
    read = {d.tags[0].value: d.dataset for d in run.inputs.dataset_inputs}
    assert read.keys() == {"training", "test", "validation", "ood"}
    assert read["test"].name == "colours test" and f"__{read['test'].digest}" in row["eval_sets"]
    assert [d.tags[0].value for d in found["zero-shot"].inputs.dataset_inputs].count("training") == 0
    files = {Path(f.path).name for f in client.list_artifacts(found["toy"].info.run_id, "report")}
    assert {"table.md", "table.csv", "reliability-none.svg", "ensemble_nll-members.pdf"} <= files
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None and "mlflow-rebuild" in experiment.tags[NOTE]
    rebuild(store, uri)  # the sweep's run is another, whose files are missing
    assert record_files(store, "toy", uri)


def test_a_stack_says_the_last_loss_of_its_members():
    rows = [{"split": "train", "loss": 3.0, "nll": 2.0}, {"split": "validation", "loss": 1.0, "nll": 1.0}]
    members = [MemberRun(0, curve=[*rows, *rows]), MemberRun(1, curve=[rows[0] | {"loss": 5.0}])]
    assert latest(members, "train", "loss") == 4.0 and latest(members, "validation", "nll") == 1.0
    assert latest([MemberRun(0, curve=[*rows, rows[0], rows[0]])], "validation", "nll") is None
    assert latest([MemberRun(0)], "train", "loss") is None
