"""MLflow shows what Parquet holds, once, and is made again from it; it never stands in the way of a sweep."""

from __future__ import annotations

import contextlib
import http.server
import json
import math
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException
from mlflow_server import Server

from jobs.attempt import Attempt
from jobs.mlflow_runs import EXPERIMENT, Experiment, key
from jobs.tracking import (
    CURVE_POINTS,
    STORAGE_ID,
    Recorded,
    TrackingError,
    default_uri,
    prepare,
    rebuild,
    record_sweep,
)
from lorae.regularizers import KL
from lorae.results import FACTORS, trials_table
from lorae.sources import Files
from lorae.store.names import member_folder, reference_folder, trials_file
from lorae.store.predictions import parquet_bytes, prediction_bytes, prediction_file
from lorae.store.records import CURVE
from lorae.store.storage import Storage
from lorae.store.store import Store
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
    store.write_table(sweep, table)


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


def file_of(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///"))


def runs_of(store: Store, uri: str) -> list[Run]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    return [run for run in runs if run.data.tags["storage"] == store.storage.uri]


def ids_of(store: Store, uri: str) -> set[str]:
    return {run.info.run_id for run in runs_of(store, uri)}


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
    return {row["trial_id"]: row for row in store.read_table(sweep).to_pylist()}


@pytest.mark.slow
def test_runs_show_the_rows(store: Store, uri: str) -> None:
    """Params, metrics, tags, names and table of every run; recording them twice changes nothing."""
    prepare(uri)
    assert record_sweep(store, "demo", uri) == Recorded(written=5, unchanged=0, deleted=0)

    rows, runs, parent = rows_of(store), by_trial(store, uri), the_parent(store, uri)
    assert runs.keys() == rows.keys()
    for trial_id, run in runs.items():
        row, tags = rows[trial_id], run.data.tags
        assert run.data.params == {factor: str(row[factor]) for factor in FACTORS}
        final = {k: v for k, v in run.data.metrics.items() if not k.startswith("curve/")}
        numeric = {k: v for k, v in row.items() if isinstance(v, (int, float)) and k not in FACTORS}
        assert final == numeric and {"ensemble_nll", "ece15", "train_tokens", "stored_bytes"} <= final.keys()
        assert ("disagreement" in final) == (row["members"] > 1)
        assert tags["member_ids"].split() == row["member_ids"]
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        assert (tags["provenance.commit"], tags["provenance.command"]) == ("0123abc", "lorae sweep demo.py")
        assert (tags["status"], run.info.status) == ("done", "FINISHED")
    (label,) = {row["regularizers"] for row in rows.values()} - {"none"}
    names = {run.info.run_name for run in runs.values()}
    assert names == {"zero-shot", *(f"{r} members {m}" for r in ("none", label) for m in (1, 2))}

    assert parent.data.params.keys() == FACTORS.keys()
    assert parent.data.params["members"] == "0, 1, 2" and parent.info.run_name == "demo"
    table = json.loads(
        Path(MlflowClient(uri).download_artifacts(parent.info.run_id, "trials.json")).read_text()
    )
    column = table["columns"].index("ensemble_nll")
    assert [r[column] for r in table["data"]] == pytest.approx([r["ensemble_nll"] for r in rows.values()])

    ids = ids_of(store, uri)
    assert record_sweep(store, "demo", uri) == Recorded(written=0, unchanged=5, deleted=0)
    assert ids_of(store, uri) == ids


@pytest.mark.slow
def test_curves_are_means_over_members_still_training(store: Store, uri: str) -> None:
    """Member 0 trains 6 steps, member 1 only 4: loss 10 m + step, NLL half, validation NLL a quarter."""
    record_sweep(store, "demo", uri)
    client, runs = MlflowClient(uri), by_trial(store, uri)
    losses = {
        0: {},
        1: {step: step for step in range(1, 7)},
        2: {1: 6, 2: 7, 3: 8, 4: 9, 5: 5, 6: 6},
    }
    for trial_id, row in rows_of(store).items():
        run_id, loss = runs[trial_id].info.run_id, losses[row["members"]]
        found = {
            name: {m.step: m.value for m in client.get_metric_history(run_id, f"curve/{name}")}
            for name in ("train_loss", "train_nll", "train_acc", "validation_nll")
        }
        assert found == {
            "train_loss": loss,
            "train_nll": {s: v / 2 for s, v in loss.items()},
            "train_acc": dict.fromkeys(loss, 0.5),
            "validation_nll": {s: v / 4 for s, v in loss.items() if s % 2 == 0},
        }


@pytest.mark.slow
def test_long_curve_is_thinned_to_steps_it_has(store: Store, trials: list[Trial], uri: str) -> None:
    write_member(store, trials[1], 0, num_steps=5000)
    write_sweep(store, "demo", trials[1:2])
    record_sweep(store, "demo", uri)
    (run,) = by_trial(store, uri).values()
    history = MlflowClient(uri).get_metric_history(run.info.run_id, "curve/train_loss")
    losses = {m.step: m.value for m in history}
    assert len(losses) == CURVE_POINTS and max(losses) == 5000
    assert all(value == step for step, value in losses.items())


@pytest.mark.slow
def test_changed_grown_and_shrunk_sweep(store: Store, trials: list[Trial], uri: str) -> None:
    """Only what changed is replaced, and all runs are below the one parent."""
    record_sweep(store, "demo", uri)
    before = by_trial(store, uri)

    write_member(store, trials[1], 0, num_steps=8)  # its files grow: trials 1 and 2 share it
    write_sweep(store, "demo", trials, PROVENANCE | {"commit": "feed123"})
    assert record_sweep(store, "demo", uri) == Recorded(written=2, unchanged=3, deleted=2)
    after, parent = by_trial(store, uri), the_parent(store, uri)
    assert after.keys() == before.keys()
    for trial_id, row in rows_of(store).items():
        kept = after[trial_id].info.run_id == before[trial_id].info.run_id
        assert after[trial_id].data.metrics["stored_bytes"] == row["stored_bytes"]
        assert after[trial_id].data.tags["provenance.commit"] == ("0123abc" if kept else "feed123")
        assert after[trial_id].data.tags["mlflow.parentRunId"] == parent.info.run_id

    write_sweep(store, "demo", trials[:3])
    assert record_sweep(store, "demo", uri) == Recorded(written=0, unchanged=3, deleted=2)
    write_sweep(store, "demo", trials[:4])
    assert record_sweep(store, "demo", uri) == Recorded(written=1, unchanged=3, deleted=0)
    assert by_trial(store, uri).keys() == rows_of(store).keys()


@pytest.mark.slow
def test_failed_trial_and_interrupted_writing(store: Store, trials: list[Trial], uri: str) -> None:
    """A failed trial is FAILED with its reason; a run that was cut off while written is written again."""
    lost = replace(trials[1], members=3)
    store.write_failure(lost.member_id(2), "loss nan at step 7, examples train-3, train-9")
    write_sweep(store, "demo", [trials[1], lost])
    record_sweep(store, "demo", uri)
    (failed,) = [run for run in by_trial(store, uri).values() if run.info.status == "FAILED"]
    assert "loss nan at step 7, examples train-3, train-9" in failed.data.tags["error"]
    assert failed.data.tags["status"] == "failed" and not failed.data.metrics
    assert failed.data.params.keys() == FACTORS.keys()
    assert the_parent(store, uri).info.status == "FAILED"

    for cut_off in (failed, the_parent(store, uri)):
        with sqlite3.connect(file_of(uri)) as database:
            database.execute("UPDATE runs SET status = 'RUNNING' WHERE run_uuid = ?", (cut_off.info.run_id,))
        again = int(cut_off is failed)
        assert record_sweep(store, "demo", uri) == Recorded(again, 2 - again, again)
        assert {run.info.status for run in runs_of(store, uri)} == {"FINISHED", "FAILED"}
        assert cut_off.info.run_id not in ids_of(store, uri)
        if cut_off is failed:
            assert len(by_trial(store, uri)) == 2


@pytest.mark.slow
def test_deleted_in_the_ui_comes_back(store: Store, uri: str) -> None:
    record_sweep(store, "demo", uri)
    run, client = next(iter(by_trial(store, uri).values())), MlflowClient(uri)
    client.delete_run(run.info.run_id)
    assert record_sweep(store, "demo", uri) == Recorded(written=1, unchanged=4, deleted=0)
    client.delete_experiment(run.info.experiment_id)
    record_sweep(store, "demo", uri)
    assert by_trial(store, uri).keys() == rows_of(store).keys()


def shown(store: Store, uri: str) -> list[tuple]:
    return sorted(
        (r.info.run_name, r.info.status, sorted(r.data.params.items()), sorted(r.data.metrics.items()))
        for r in runs_of(store, uri)
    )


@pytest.mark.slow
def test_rebuild_makes_every_run_of_the_storage_anew(
    store: Store, trials: list[Trial], tmp_path: Path, uri: str
) -> None:
    """The runs of another storage, with a sweep of the same name, stay."""
    other = Store(Storage(str(tmp_path / "other")))
    write_member(other, trials[1], 0, num_steps=3)
    write_sweep(other, "demo", [trials[1]])
    record_sweep(other, "demo", uri)
    write_sweep(store, "second", trials[:2])
    for sweep in ("demo", "second"):
        record_sweep(store, sweep, uri)
    old, theirs, expected = ids_of(store, uri), ids_of(other, uri), shown(store, uri)
    assert (len(old), len(theirs)) == (9, 2)

    assert rebuild(store, uri) == {"demo": Recorded(5, 0, 0), "second": Recorded(2, 0, 0)}
    assert shown(store, uri) == expected and not old & ids_of(store, uri)
    assert ids_of(other, uri) == theirs


@pytest.mark.slow
def test_rebuild_deletes_nothing_where_a_table_cannot_be_read(
    store: Store, trials: list[Trial], uri: str
) -> None:
    write_sweep(store, "second", trials[:2])
    for sweep in ("demo", "second"):
        record_sweep(store, sweep, uri)
    before = ids_of(store, uri)
    store.storage.write(trials_file("second"), b"no table")
    with pytest.raises(ValueError, match="second"):
        rebuild(store, uri)
    assert ids_of(store, uri) == before


@pytest.mark.slow
def test_two_at_once_write_once(store: Store, uri: str) -> None:
    prepare(uri)
    threads = [threading.Thread(target=record_sweep, args=(store, "demo", uri)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs_of(store, uri)) == 6


@pytest.mark.slow
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


@pytest.mark.process
@pytest.mark.slow
def test_a_server_shows_what_the_database_shows(store: Store, uri: str, server: str) -> None:
    """Written by a sweep, found unchanged, and made again; the table travels over http as well."""
    record_sweep(store, "demo", uri)
    prepare(server)
    assert record_sweep(store, "demo", server) == Recorded(written=5, unchanged=0, deleted=0)
    assert shown(store, server) == shown(store, uri)
    assert record_sweep(store, "demo", server) == Recorded(written=0, unchanged=5, deleted=0)
    old = ids_of(store, server)
    assert rebuild(store, server) == {"demo": Recorded(5, 0, 0)}
    assert shown(store, server) == shown(store, uri) and not old & ids_of(store, server)
    parent = the_parent(store, server).info.run_id
    table = json.loads(Path(MlflowClient(server).download_artifacts(parent, "trials.json")).read_text())
    assert len(table["data"]) == 5
    assert not (Path(store.storage.root) / "mlflow.db").exists(), "nothing is kept beside the server"


def test_passwords_and_long_errors_in_tags(store: Store, trials: list[Trial], uri: str) -> None:
    lost = replace(trials[1], members=3)
    store.write_failure(lost.member_id(2), "out of memory " * 1000)
    command = "lorae sweep demo.py --storage s3://key:hunter2@bucket/results"
    write_sweep(store, "demo", [lost], PROVENANCE | {"command": command})
    record_sweep(store, "demo", uri)
    (run,) = by_trial(store, uri).values()
    assert run.data.tags["provenance.command"] == "lorae sweep demo.py --storage s3://***@bucket/results"
    assert len(run.data.tags["error"]) == 5000
    assert record_sweep(store, "demo", uri).unchanged == 1


def test_damaged_database_is_to_be_deleted(store: Store, tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    database.write_bytes(b"not a database" * 1000)
    with pytest.raises(TrackingError, match=r"not a database.* delete a damaged sqlite.*mlflow-rebuild"):
        record_sweep(store, "demo", f"sqlite:///{database}")
    assert database.read_bytes() == b"not a database" * 1000


def test_bad_places_say_what_to_do(store: Store, tmp_path: Path, uri: str) -> None:
    with pytest.raises(ValueError, match="demo"):
        record_sweep(store, "dmeo", uri)
    with pytest.raises(ValueError, match="has no sweeps"):
        rebuild(Store(Storage(str(tmp_path / "typo"))), f"sqlite:///{tmp_path}/typo/mlflow.db")
    assert not (tmp_path / "typo").exists()
    assert default_uri(store) == f"sqlite:///{store.storage.root}/mlflow.db"
    for place in ("mock:///bucket", str(tmp_path / "100%20")):
        with pytest.raises(ValueError, match="MLFLOW_TRACKING_URI"):
            default_uri(Store(Storage(place)))
    (tmp_path / "file").touch()
    with pytest.raises(TrackingError):
        prepare(f"sqlite:///{tmp_path}/file/mlflow.db")


# Nothing waits for MLflow ----------------------------------------------------------------------------------


def test_an_attempt_returns_raises_or_is_given_up() -> None:
    assert Attempt(lambda beat: 7).result(5, 5) == 7
    with pytest.raises(KeyError):
        Attempt(lambda beat: {}["x"]).result(5, 5)
    with pytest.raises(TimeoutError, match=r"within 0\.1 s"):
        Attempt(lambda beat: time.sleep(9)).result(0.1, 5)


def test_an_attempt_that_was_given_up_ends_at_its_next_step() -> None:
    """Steps of 0.05 s are no stall, all of them take too long, and none begins after that."""
    steps, ended = [], threading.Event()

    def action(beat: Callable[[], None]) -> None:
        try:
            for number in range(100):
                beat()
                steps.append(number)
                time.sleep(0.05)
        finally:
            ended.set()

    with pytest.raises(TimeoutError, match=r"within 0\.4 s"):
        Attempt(action).result(0.3, 0.4)
    assert ended.wait(5) and 2 <= len(steps) < 20


@pytest.mark.slow
def test_a_lock_that_another_holds_is_named(store: Store, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.mlflow_runs.LOCK_SECONDS", 0.3)
    with store.storage.lock("mlflow") as held:
        assert held
        with pytest.raises(TrackingError, match=r"another process holds .*locks/mlflow.*kept in Parquet"):
            record_sweep(store, "demo", uri)
    assert record_sweep(store, "demo", uri).written == 5


@contextlib.contextmanager
def dripping() -> Iterator[str]:
    """The URI of a server that answers each request by a byte every tenth of a second, without end."""

    class Drip(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b" ")
                    time.sleep(0.1)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Drip) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.slow
def test_a_server_that_drips_bytes_costs_seconds(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.tracking.STEP_SECONDS", 1.5)
    with dripping() as server:
        for write in (lambda: prepare(server), lambda: record_sweep(store, "demo", server)):
            started = time.monotonic()
            with pytest.raises(TrackingError, match=r"was not done within 1\.5 s.*kept in Parquet"):
                write()
            assert time.monotonic() - started < 8


@pytest.mark.process
@pytest.mark.slow
def test_a_server_that_goes_in_the_middle(
    store: Store, running: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs seconds and a message."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    prepare(running.uri)
    end = Experiment.end

    def end_of_the_server(self: Experiment, run_id: str, status: str) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        end(self, run_id, status)

    monkeypatch.setattr(Experiment, "end", end_of_the_server)
    started = time.monotonic()
    with pytest.raises(TrackingError, match="mlflow-rebuild"):
        record_sweep(store, "demo", running.uri)
    assert time.monotonic() - started < 30


# Databases that were left or moved -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("left", ["no version", "no runs", "an old version"])
def test_a_half_made_database_is_made_again(
    store: Store, tmp_path: Path, uri: str, caplog: pytest.LogCaptureFixture, left: str
) -> None:
    """What MLflow leaves when it is killed in its migrations."""
    prepare(uri)
    database = tmp_path / "mlflow.db"
    shutil.copy(file_of(uri), database)
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
            connection.execute(f"DROP TABLE {table}" if left == "no runs" else f"DELETE FROM {table}")
        connection.execute("DELETE FROM experiments WHERE name = 'lorae'")
        if left == "no version":
            connection.execute("DELETE FROM alembic_version")
        if left == "an old version":
            connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    assert record_sweep(store, "demo", f"sqlite:///{database}").written == 5
    assert (tmp_path / "mlflow.db.half-made-1").is_file() and "half made" in caplog.text
    assert len(runs_of(store, f"sqlite:///{database}")) == 6


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("num_bytes", [1, 100_000, 300_000])
def test_a_database_that_mlflow_left_half_made_is_usable(store: Store, num_bytes: int) -> None:
    """MLflow itself is killed when its file has this size, as older lorae was."""
    database = file_of(default_uri(store))
    code = f"from mlflow import MlflowClient; MlflowClient({default_uri(store)!r}).search_experiments()"
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not database.exists() or database.stat().st_size < num_bytes:
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    child.kill()
    child.wait()
    assert record_sweep(store, "demo", default_uri(store)).written == 5
    assert len(runs_of(store, default_uri(store))) == 6


@pytest.mark.slow
def test_a_sound_database_stays_where_it_is(store: Store, tmp_path: Path, uri: str) -> None:
    """One that a server made and nothing was written to, and one with another program's tables."""
    prepare(uri)
    for name in ("fresh", "foreign"):
        database = tmp_path / f"{name}.db"
        with contextlib.closing(sqlite3.connect(database)) as connection, connection:
            if name == "foreign":
                connection.execute("CREATE TABLE songs (title)")
                connection.execute("INSERT INTO songs VALUES ('Lola')")
        if name == "fresh":
            MlflowClient(f"sqlite:///{database}").search_experiments()
        assert record_sweep(store, "demo", f"sqlite:///{database}").written == 5
        with contextlib.closing(sqlite3.connect(database)) as connection:
            tables = {table for (table,) in connection.execute("SELECT name FROM sqlite_master")}
        assert ("songs" in tables) == (name == "foreign")
    assert not [*tmp_path.glob("*half-made*")]


@pytest.mark.process
@pytest.mark.slow
def test_a_process_killed_while_it_makes_the_database_leaves_none(store: Store) -> None:
    root = Path(store.storage.root)
    code = f"from jobs.tracking import prepare; prepare({default_uri(store)!r})"
    child = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 120
    while not any(made.stat().st_size for made in root.glob(".lorae-mlflow-*/mlflow.db")):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    child.kill()
    child.wait()
    assert not (root / "mlflow.db").exists() or (root / "mlflow.db").stat().st_size == 0
    (left,) = root.glob(".lorae-mlflow-*")
    os.utime(left, (0, 0))
    assert record_sweep(store, "demo", default_uri(store)).written == 5
    assert not [*root.glob(".lorae-mlflow-*")] and not [*root.glob("*half-made*")]


@pytest.mark.slow
def test_a_moved_storage_is_shown_as_it_is(store: Store, tmp_path: Path, uri: str) -> None:
    """Its own database moves along; on a server its runs stay its own."""
    record_sweep(store, "demo", uri)
    record_sweep(store, "demo", default_uri(store))
    before = ids_of(store, default_uri(store))
    shutil.move(store.storage.root, tmp_path / "moved")
    moved = Store(str(tmp_path / "moved"))
    for where in (uri, default_uri(moved)):
        assert record_sweep(moved, "demo", where) == Recorded(written=0, unchanged=5, deleted=0)
        assert len(runs_of(moved, where)) == 6
    assert ids_of(moved, default_uri(moved)) == before and not runs_of(store, uri)
    parent = the_parent(moved, default_uri(moved)).info.run_id
    found = MlflowClient(default_uri(moved)).download_artifacts(parent, "trials.json", str(tmp_path))
    assert len(json.loads(Path(found).read_text())["data"]) == 5


# Whose runs they are ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_storages_of_one_path_on_a_server(store: Store, tmp_path: Path, uri: str) -> None:
    """As on two machines: neither deletes the other's runs, whatever it records or makes again."""
    path = store.storage.root
    twin = tmp_path / "twin"
    shutil.copytree(path, twin)
    record_sweep(store, "demo", uri)
    first = ids_of(store, uri)
    shutil.move(path, tmp_path / "elsewhere")
    shutil.move(twin, path)
    assert record_sweep(store, "demo", uri) == Recorded(written=5, unchanged=0, deleted=0)
    assert first < ids_of(store, uri) and len(ids_of(store, uri)) == 12
    rebuild(store, uri)
    assert first < ids_of(store, uri) and len(ids_of(store, uri)) == 12


def without_ids(store: Store, uri: str) -> None:
    """As an older lorae left it: runs are tagged by path, and the storage has no id."""
    client = MlflowClient(uri)
    for run in runs_of(store, uri):
        client.delete_tag(run.info.run_id, "storage_id")
    (Path(store.storage.root) / STORAGE_ID).unlink()


@pytest.mark.slow
@pytest.mark.parametrize("again", [record_sweep, rebuild])
def test_runs_of_an_older_lorae_are_found_by_path(
    store: Store, uri: str, again: Callable[..., object]
) -> None:
    record_sweep(store, "demo", uri)
    without_ids(store, uri)
    before = ids_of(store, uri)
    again(*((store, uri) if again is rebuild else (store, "demo", uri)))
    assert len(runs_of(store, uri)) == 6 and (ids_of(store, uri) == before) == (again is record_sweep)
    assert len({run.data.tags["storage_id"] for run in runs_of(store, uri)}) == 1


@pytest.mark.slow
def test_runs_of_an_older_lorae_with_other_trials_are_another_machines(
    store: Store, trials: list[Trial], uri: str
) -> None:
    record_sweep(store, "demo", uri)
    without_ids(store, uri)
    theirs = ids_of(store, uri)
    other = [replace(trial, seed=1) for trial in trials[1:2]]
    write_member(store, other[0], 0, num_steps=2)
    write_sweep(store, "demo", other)
    assert record_sweep(store, "demo", uri) == Recorded(written=1, unchanged=0, deleted=0)
    assert theirs < ids_of(store, uri)


def test_a_damaged_id_is_named(store: Store, uri: str) -> None:
    for content in (b"", b"3", b'{"storage_id": "x"}', b'{"storage_id": ["0"]}'):
        store.storage.write(STORAGE_ID, content)
        with pytest.raises(TrackingError, match=rf"{STORAGE_ID} cannot be read"):
            record_sweep(store, "demo", uri)


# What MLflow cannot show -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_names_and_values_that_mlflow_refuses(store: Store, uri: str, tmp_path: Path) -> None:
    """A + in a task's name, quotes in a path, a metric that is infinite."""
    place = tmp_path / "a \"quoted\" 'path' with \\ and +"
    shutil.copytree(store.storage.root, place)
    store = Store(str(place))
    rows = [*rows_of(store).values()]
    rows = [row | {"auroc_msp__a+b": 0.75, "ensemble_nll": math.inf} for row in rows]
    schema = store.read_table("demo").schema
    place_of = schema.get_field_index("ensemble_nll")
    schema = schema.insert(place_of, pa.field("auroc_msp__a+b", pa.float64()))
    store.write_table("demo", pa.Table.from_pylist(rows, schema=schema))
    for expected in (Recorded(5, 0, 0), Recorded(0, 5, 0)):
        assert record_sweep(store, "demo", uri) == expected
    for run in by_trial(store, uri).values():
        assert run.data.metrics["auroc_msp__a:2b:b"] == 0.75 and "ensemble_nll" not in run.data.metrics
        assert run.data.tags["left_out"] == "ensemble_nll=inf"


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=300), st.text(max_size=300))
def test_any_name_becomes_one_that_mlflow_takes(name: str, other: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    if name:
        with contextlib.suppress(MlflowException):  # "a//b" and ".." are no relative paths
            _validate_metric_name(key(name).replace("/", "_"))
        assert re.fullmatch(r"[/\w.\- :]{1,250}", key(name))
    if name != other and ":" not in name + other and max(map(len, (key(name), key(other)))) < 250:
        assert key(name) != key(other)


@pytest.mark.slow
def test_a_run_that_a_server_refuses_is_shown_without_its_numbers(
    store: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server with narrower limits: the others are whole."""
    logged = MlflowClient.log_batch

    def refusing(self: MlflowClient, run_id: str, metrics: Sequence = (), params: Sequence = ()) -> None:
        if any(p.key == "members" and p.value == "2" for p in params):
            raise MlflowException("too many metrics", INVALID_PARAMETER_VALUE)
        logged(self, run_id, metrics, params)

    monkeypatch.setattr(MlflowClient, "log_batch", refusing)
    assert record_sweep(store, "demo", uri).written == 5
    left = [run for run in by_trial(store, uri).values() if "left_out" in run.data.tags]
    assert len(left) == 2 and all("too many metrics" in run.data.tags["left_out"] for run in left)


@pytest.mark.parametrize("place", ["/home/me/.ssh", "file:///etc", "relative"])
def test_a_server_names_no_folder_of_this_machine(place: str) -> None:
    """Where runs keep their files is the server's word."""
    client = mock.MagicMock()
    client.get_run.return_value.info.artifact_uri = place
    Experiment(client, "1", "http://127.0.0.1:1", lambda: None).log_table("run", {"a": [1]})
    client.log_table.assert_not_called()
    client.set_tag.assert_called_once()
    Experiment(client, "1", "sqlite:////tmp/mlflow.db", lambda: None).log_table("run", {"a": [1]})
    client.log_table.assert_called_once()
