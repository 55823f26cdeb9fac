"""MLflow shows what Parquet holds, once, and is made again from it; it never stands in the way of a sweep."""

from __future__ import annotations

import json
import math
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from jobs import tracking
from jobs.tracking import Recorded, TrackingError, default_uri, prepare, rebuild, record_sweep
from lorae.regularizers import KL
from lorae.results import FACTORS, trials_table
from lorae.sources import Files
from lorae.storage import Storage
from lorae.store import (
    CURVE,
    Store,
    member_folder,
    parquet_bytes,
    prediction_bytes,
    prediction_file,
    reference_folder,
)
from lorae.tasks.base import Split, Task
from lorae.trial import Trial

PROVENANCE = {"commit": "0123abc", "command": "lorae sweep demo.py", "versions": {"torch": "2.9.0"}}


def predictions(entry_id: str, task: Task, seed: int) -> dict[str, bytes]:
    """Random logits of one draw on validation and test."""
    files, rng = {}, np.random.default_rng(seed)
    splits: tuple[Split, ...] = ("validation", "test")
    for split in splits:
        examples = task.examples(split)
        labels = [-1 if e.label is None else e.label for e in examples]
        ids, classes = [e.id for e in examples], [len(e.options) for e in examples]
        logits = rng.normal(size=(1, len(ids), max(classes))).astype(np.float32)
        name = task.eval_set(split)
        files[prediction_file(name)] = prediction_bytes(entry_id, name, ids, labels, classes, logits)
    return files


def curve(member: int, num_steps: int) -> list[dict]:
    """Loss is 10 * member + step, NLL half of it; validation every second step."""
    rows = []
    for step in range(1, num_steps + 1):
        loss = 10.0 * member + step
        row = {"step": step, "split": "train", "loss": loss, "nll": loss / 2, "acc": 0.5, "lr": 0.1}
        rows.append(row | {"grad_norm": 1.0, "seconds": 0.1})
        if step % 2 == 0:
            rows.append(row | {"split": "validation", "nll": loss / 4, "grad_norm": math.nan})
    return rows


def write_member(store: Store, trial: Trial, member: int, num_steps: int) -> None:
    member_id = trial.member_id(member)
    cost = {"train_tokens": 100, "train_seconds": 2.5, "predict_seconds": 0.5, "trainable_parameters": 64}
    files = predictions(member_id, trial.task, member)
    files["curve.parquet"] = parquet_bytes(pa.Table.from_pylist(curve(member, num_steps), schema=CURVE))
    files["member.json"] = json.dumps({"cost": cost}).encode()
    store.write_entry(member_folder(member_id), files)


def write_sweep(store: Store, sweep: str, trials: Sequence[Trial], provenance: dict = PROVENANCE) -> None:
    table = trials_table(store, sweep, [(t, ()) for t in trials], provenance)
    store.write_table(f"sweeps/{sweep}/trials.parquet", table)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """In place of the real one: only its identity is needed here, and no torch."""
    folder = tmp_path_factory.mktemp("backbone")
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return Files(str(folder))


@pytest.fixture
def trials(tiny_trial: Callable[..., Trial]) -> list[Trial]:
    """Zero-shot, one and two members without and with KL."""
    grid = [(r, m) for r in ((), (KL(0.1),)) for m in (1, 2)]
    return [tiny_trial(members=0), *(tiny_trial(regularizers=r, members=m) for r, m in grid)]


@pytest.fixture
def store(tmp_path: Path, trials: list[Trial], monkeypatch: pytest.MonkeyPatch) -> Store:
    """A storage, its path one that URIs and filters quote, with the sweep "demo" of `trials`."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = Store(Storage(str(tmp_path / "it's my résultats")))
    zero = trials[0]
    store.write_entry(reference_folder(zero.reference_id()), predictions(zero.reference_id(), zero.task, 99))
    for trial in trials[1:]:
        for member in range(trial.members):
            write_member(store, trial, member, num_steps=6 if member == 0 else 4)
    write_sweep(store, "demo", trials)
    return store


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database outside the storages: making one takes a second, and storages are told apart in it."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/new/mlflow.db"


def runs_of(store: Store, uri: str) -> list[Run]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    return [run for run in runs if run.data.tags["storage"] in (".", store.storage.uri)]


def by_trial(store: Store, uri: str) -> dict[str, Run]:
    """Child runs by trial id; a duplicate fails."""
    children = [run for run in runs_of(store, uri) if "trial_id" in run.data.tags]
    found = {run.data.tags["trial_id"]: run for run in children}
    assert len(found) == len(children)
    return found


def the_parent(store: Store, uri: str) -> Run:
    (parent,) = [run for run in runs_of(store, uri) if "trial_id" not in run.data.tags]
    return parent


def rows_of(store: Store, sweep: str = "demo") -> dict[str, dict]:
    return {row["trial_id"]: row for row in store.read_table(f"sweeps/{sweep}/trials.parquet").to_pylist()}


def test_runs_show_the_rows(store: Store) -> None:
    """Params, metrics, curves, tags and table of every run; twice changes nothing; no secret gets in."""
    uri = default_uri(store)
    secret = "hf_NeverShowThisToAnyone"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", secret)
        patch.setenv("MLFLOW_TRACKING_PASSWORD", secret)
        prepare(uri)
        assert record_sweep(store, "demo", uri) == Recorded(written=5, unchanged=0, deleted=0)

    rows, runs, parent = rows_of(store), by_trial(store, uri), the_parent(store, uri)
    assert runs.keys() == rows.keys()
    for trial_id, run in runs.items():
        row = rows[trial_id]
        assert run.data.params == {factor: str(row[factor]) for factor in FACTORS}
        final = {k: v for k, v in run.data.metrics.items() if not k.startswith("curve/")}
        numeric = {k: v for k, v in row.items() if isinstance(v, (int, float)) and k not in FACTORS}
        assert final == numeric and {"ensemble_nll", "ece15", "train_tokens", "stored_bytes"} <= final.keys()
        undefined = set(run.data.tags.get("undefined_metrics", "").split())
        assert undefined == {k for k, v in row.items() if v is None} - {"error"}
        assert run.data.tags["member_ids" if row["members"] else "reference_id"]
        assert run.data.tags.get("member_ids", "").split() == row["member_ids"]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["provenance.commit"] == run.data.tags["mlflow.source.git.commit"] == "0123abc"
        assert json.loads(run.data.tags["provenance.versions"]) == {"torch": "2.9.0"}
        assert run.info.status == "FINISHED"
    names = {run.info.run_name for run in runs.values()}
    assert names == {"zero-shot", *(f"{r} x{m} seed 0" for r in ("none", rows_label(rows)) for m in (1, 2))}
    assert parent.data.params.keys() == FACTORS.keys()
    assert parent.data.params["members"] == "0, 1, 2" and parent.info.run_name == "demo"
    (logged,) = json.loads(parent.data.tags["mlflow.loggedArtifacts"])
    table = json.loads(
        Path(MlflowClient(uri).download_artifacts(parent.info.run_id, logged["path"])).read_text()
    )
    column = table["columns"].index("ensemble_nll")
    assert [r[column] for r in table["data"]] == pytest.approx([r["ensemble_nll"] for r in rows.values()])

    ids = {run.info.run_id for run in runs_of(store, uri)}
    assert record_sweep(store, "demo", uri) == Recorded(written=0, unchanged=5, deleted=0)
    assert {run.info.run_id for run in runs_of(store, uri)} == ids
    for file in Path(store.storage.root).rglob("*"):
        assert not file.is_file() or secret.encode() not in file.read_bytes()


def rows_label(rows: dict[str, dict]) -> str:
    (label,) = {row["regularizers"] for row in rows.values()} - {"none"}
    return label


def test_curves_are_means_over_members_still_training(store: Store, shared: str) -> None:
    """Member 0 trains 6 steps, member 1 only 4: loss 10 m + step, NLL half, validation NLL a quarter."""
    record_sweep(store, "demo", shared)
    client = MlflowClient(shared)
    for trial_id, row in rows_of(store).items():
        run_id = by_trial(store, shared)[trial_id].info.run_id

        def history(name: str, run_id: str = run_id) -> dict[int, float]:
            return {m.step: m.value for m in client.get_metric_history(run_id, f"curve/{name}")}

        mean = {0: {}, 1: {s: s for s in range(1, 7)}}.get(
            row["members"], {1: 6, 2: 7, 3: 8, 4: 9, 5: 5, 6: 6}
        )
        assert history("train_loss") == mean
        assert history("train_nll") == {s: v / 2 for s, v in mean.items()}
        assert history("train_acc") == dict.fromkeys(mean, 0.5)
        assert history("validation_nll") == {s: v / 4 for s, v in mean.items() if s % 2 == 0}


def test_long_curve_is_thinned_to_steps_it_has(store: Store, trials: list[Trial]) -> None:
    write_member(store, trials[1], 0, num_steps=5000)
    points = tracking._curve_metrics(store, trials[1].member_ids())
    losses = {step: value for name, step, value in points if name == "curve/train_loss"}
    assert len(losses) == tracking.CURVE_POINTS and {1, 5000} <= losses.keys()
    assert all(value == step for step, value in losses.items())
    assert len(points) < tracking._MAX_METRICS


def test_changed_grown_and_shrunk_sweep(store: Store, trials: list[Trial], shared: str) -> None:
    """Only what changed is replaced; provenance is updated in place; a row that went takes its run along."""
    record_sweep(store, "demo", shared)
    before = by_trial(store, shared)

    retrained = replace(trials[1], members=1)
    write_member(store, retrained, 0, num_steps=8)  # its files grow: trials 1 and 2 share it
    write_sweep(store, "demo", trials, PROVENANCE | {"commit": "feed123"})
    assert record_sweep(store, "demo", shared) == Recorded(written=2, unchanged=3, deleted=2)
    after, parent = by_trial(store, shared), the_parent(store, shared)
    assert after.keys() == before.keys()
    assert sum(after[k].info.run_id == before[k].info.run_id for k in after) == 3
    for trial_id, row in rows_of(store).items():
        assert after[trial_id].data.metrics["stored_bytes"] == row["stored_bytes"]
        assert after[trial_id].data.tags["provenance.commit"] == "feed123"
        assert after[trial_id].data.tags["mlflow.parentRunId"] == parent.info.run_id

    write_sweep(store, "demo", trials[:3])
    assert record_sweep(store, "demo", shared) == Recorded(written=0, unchanged=3, deleted=2)
    assert by_trial(store, shared).keys() == rows_of(store).keys()


def test_failed_trial_and_interrupted_writing(store: Store, trials: list[Trial], shared: str) -> None:
    """A failed trial is FAILED with its reason; a run that was cut off while written is written again."""
    lost = replace(trials[1], members=3)
    store.write_failure(lost.member_id(2), "loss nan at step 7, examples train-3, train-9")
    write_sweep(store, "demo", [trials[1], lost])
    record_sweep(store, "demo", shared)
    (failed,) = [run for run in by_trial(store, shared).values() if run.info.status == "FAILED"]
    assert "loss nan at step 7, examples train-3, train-9" in failed.data.tags["error"]
    assert failed.data.tags["status"] == "failed" and not failed.data.metrics
    assert failed.data.params.keys() == FACTORS.keys()
    assert the_parent(store, shared).info.status == "FAILED"
    assert the_parent(store, shared).data.tags["error"] == "1 of 2 trials failed"

    with sqlite3.connect(shared.removeprefix("sqlite:///")) as database:
        database.execute("UPDATE runs SET status = 'RUNNING' WHERE run_uuid = ?", (failed.info.run_id,))
    assert record_sweep(store, "demo", shared) == Recorded(written=1, unchanged=1, deleted=1)
    assert [run.info.status for run in by_trial(store, shared).values()].count("FAILED") == 1


def shown(store: Store, uri: str) -> list[tuple]:
    return sorted(
        (r.info.run_name, r.info.status, sorted(r.data.params.items()), sorted(r.data.metrics.items()))
        for r in runs_of(store, uri)
    )


def test_rebuild_recreates_every_sweep(store: Store, trials: list[Trial]) -> None:
    """The database, which `mlflow ui` may have open, and the artifacts hold nothing but the sweeps."""
    write_sweep(store, "other", trials[:2])
    uri, folder = default_uri(store), Path(store.storage.root)
    for sweep in ("demo", "other"):
        record_sweep(store, sweep, uri)
    expected, reader = shown(store, uri), sqlite3.connect(folder / "mlflow.db")
    old = {run.info.run_id for run in runs_of(store, uri)}

    name = f"{member_folder(trials[1].member_id(0))}/curve.parquet"
    sound = store.storage.read(name)
    store.storage.write(name, sound[:-1])
    with pytest.raises(TrackingError, match=r"curve\.parquet"):
        rebuild(store, uri)
    assert {run.info.run_id for run in runs_of(store, uri)} == old, "a failure loses nothing"
    store.storage.write(name, sound)

    assert rebuild(store, uri) == {"demo": Recorded(5, 0, 0), "other": Recorded(2, 0, 0)}
    assert shown(store, uri) == expected
    assert not old & {run.info.run_id for run in runs_of(store, uri)}
    assert reader.execute("SELECT count(*) FROM runs").fetchone() == (9,)
    reader.close()
    with_table = {r.info.run_id for r in runs_of(store, uri) if "trial_id" not in r.data.tags}
    assert {p.name for p in (folder / tracking.ARTIFACTS).iterdir()} == with_table
    assert not list(folder.glob(".mlflow-*"))


def test_moved_storage_with_a_damaged_database(store: Store, tmp_path: Path) -> None:
    prepare(default_uri(store))
    moved = Store(Storage(str(Path(store.storage.root).rename(tmp_path / "moved"))))
    uri = default_uri(moved)
    with pytest.raises(TrackingError, match=r"moved; run `lorae mlflow-rebuild"):
        record_sweep(moved, "demo", uri)
    (tmp_path / "moved" / "mlflow.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(TrackingError, match="not a database"):
        record_sweep(moved, "demo", uri)
    rebuild(moved, uri)
    assert by_trial(moved, uri).keys() == rows_of(moved).keys()


def test_storages_share_a_database(store: Store, trials: list[Trial], tmp_path: Path, shared: str) -> None:
    """Outside a storage, recording and rebuilding touch the storage's own runs only."""
    other = Store(Storage(str(tmp_path / "other")))
    write_member(other, trials[1], 0, num_steps=3)
    write_sweep(other, "demo", [trials[1]])
    record_sweep(store, "demo", shared)
    record_sweep(other, "demo", shared)
    mine, theirs = runs_of(store, shared), runs_of(other, shared)
    assert (len(mine), len(theirs)) == (6, 2)
    assert rebuild(other, shared) == {"demo": Recorded(1, 0, 0)}
    assert [r.info.run_id for r in runs_of(store, shared)] == [r.info.run_id for r in mine]
    assert not {r.info.run_id for r in runs_of(other, shared)} & {r.info.run_id for r in theirs}
    assert by_trial(other, shared).keys() == rows_of(other).keys()


def test_peek_sees_what_mlflow_sees(store: Store, shared: str) -> None:
    """Guards the tables that are read without MLflow; deleted runs are not seen."""
    record_sweep(store, "demo", shared)
    MlflowClient(shared).delete_run(runs_of(store, shared)[0].info.run_id)
    expected = {r.info.run_id: (r.info.status, r.data.tags) for r in runs_of(store, shared)}
    found = tracking._peek(Path(shared.removeprefix("sqlite:///"))) or []
    mine = [f for f in found if f.tags["storage"] == store.storage.uri]
    assert {f.run_id: (f.status, f.tags) for f in mine} == expected and len(mine) == 5


def test_runs_deleted_in_the_ui_come_back(store: Store, shared: str) -> None:
    record_sweep(store, "demo", shared)
    runs, client = runs_of(store, shared), MlflowClient(shared)
    client.delete_run(runs[0].info.run_id)
    assert record_sweep(store, "demo", shared) == Recorded(written=1, unchanged=4, deleted=0)
    client.delete_experiment(runs[0].info.experiment_id)
    record_sweep(store, "demo", shared)
    assert by_trial(store, shared).keys() == rows_of(store).keys()
    assert the_parent(store, shared).info.status == "FINISHED"


def test_repeating_does_not_import_mlflow(store: Store, shared: str) -> None:
    record_sweep(store, "demo", shared)
    code = (
        "import sys; from jobs.tracking import *; from lorae.store import Store;"
        "prepare(sys.argv[2]); assert record_sweep(Store(sys.argv[1]), 'demo', sys.argv[2]).unchanged == 5;"
        "assert not {'mlflow', 'torch', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, store.storage.root, shared], check=True)


def test_two_at_once_write_once(store: Store, shared: str) -> None:
    threads = [threading.Thread(target=record_sweep, args=(store, "demo", shared)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs_of(store, shared)) == 6


@pytest.mark.parametrize("kind", ["refused", "silent"])
def test_unreachable_server_is_a_tracking_error_within_seconds(
    store: Store, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A port that refuses, and one that never answers; the password in the URI is not repeated."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if kind == "silent":
            server.listen()
            monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        uri = f"http://me:hunter2@127.0.0.1:{server.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(TrackingError, match=r"127\.0\.0\.1.*kept in Parquet") as caught:
            record_sweep(store, "demo", uri)
        assert time.monotonic() - started < 8
        assert "hunter2" not in str(caught.value)


def test_bad_places_say_what_to_do(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="demo"):
        record_sweep(store, "dmeo", default_uri(store))
    with pytest.raises(ValueError, match="has no sweeps"):
        rebuild(Store(Storage(str(tmp_path / "typo"))), f"sqlite:///{tmp_path}/typo/mlflow.db")
    assert not (tmp_path / "typo").exists()
    remote = Store(Storage("mock:///bucket"))
    for place in (remote, Store(Storage(str(tmp_path / "100%20")))):
        with pytest.raises(ValueError, match="MLFLOW_TRACKING_URI"):
            default_uri(place)
    (tmp_path / "file").touch()
    with pytest.raises(TrackingError):
        prepare(f"sqlite:///{tmp_path}/file/mlflow.db")
