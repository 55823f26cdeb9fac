"""MLflow as a view of the Parquet files: experiment "lorae" -> one run per sweep -> one child run per trial.

Nothing is read back from MLflow but which runs are there, and `rebuild` makes all of it again. A run is
written once: its tag `digest` is the hash of what it shows, and a row that changed gets a new run in place of
the old one. Every run has the same params, the factors; a sweep's run lists the values of its trials. Metrics
have the names of the row's columns; one that is undefined for a trial (disagreement of a single member) is
absent, since MLflow would plot a NaN as 0.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lorae.identity import digest
from lorae.results import FACTORS, read_trials
from lorae.storage import Storage, shown
from lorae.store import CURVE, Store, member_folder, trials_file

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "lorae"
_PARENT = "mlflow.parentRunId"
_ENDED = {"done": "FINISHED", "failed": "FAILED", "pruned": "KILLED"}
CURVE_POINTS = 200  # of each curve at most; Parquet keeps every step

_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "3",  # an unreachable server costs seconds; by MLflow's defaults, minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class TrackingError(ValueError):
    """MLflow could not be written; the results are in Parquet all the same."""


@dataclass(frozen=True)
class Recorded:
    """Runs of trials that were written, found unchanged, and deleted since their row changed or went."""

    written: int
    unchanged: int
    deleted: int


def default_uri(store: Store) -> str:
    """Where a storage's runs go: MLFLOW_TRACKING_URI if it is set, else a sqlite database in the storage.

    Raises:
        ValueError: MLFLOW_TRACKING_URI is not set and the storage is no local folder that a URI can name.
    """
    if given := os.environ.get("MLFLOW_TRACKING_URI"):
        return given
    if not store.storage.is_local or {"%", "?"} & set(store.storage.root):
        raise ValueError(
            f"storage {store.storage.uri} cannot hold MLflow's database, which needs a local folder "
            "without % and ? in its path; set MLFLOW_TRACKING_URI to a server or to sqlite:///PATH"
        )
    return f"sqlite:///{store.storage.path('mlflow.db')}"


def prepare(tracking_uri: str) -> None:
    """Create database and experiment unless they exist; call it once, before any trial.

    Raises:
        TrackingError: they cannot be created or reached.
    """
    database = _database(tracking_uri)
    lock = contextlib.nullcontext()
    if database:  # MLflow fails where two processes create it
        folder = Storage(str(database.parent))
        folder.retry_seconds = 0.0  # a sweep does not wait for MLflow
        lock = folder.lock("mlflow", wait=True)
    with _tracking_errors(tracking_uri), lock:
        _open(tracking_uri)


def record_sweep(store: Store, sweep: str, tracking_uri: str) -> Recorded:
    """Make MLflow show a sweep's trials.parquet: write what is missing or changed, delete what is left over.

    Raises:
        TrackingError: MLflow cannot be reached or written, within seconds.
        ValueError: the storage has no such sweep.
    """
    table = read_trials(store, sweep)
    rows = table.to_pylist()
    parent, trials = _views(sweep, rows)
    place = {"storage": store.storage.uri, "sweep": sweep}
    with _tracking_errors(tracking_uri), store.storage.lock("mlflow", wait=True):
        mlflow = _open(tracking_uri)
        found = mlflow.runs(place)
        # The status comes last: a run that is still RUNNING was cut off, and is written again.
        known = {r.data.tags["digest"]: r.info.run_id for r in found if r.info.status != "RUNNING"}
        if len(known) == len(found) and known.keys() == {view.digest for view in [parent, *trials]}:
            return Recorded(0, len(trials), 0)

        provenance = {f"provenance.{k}": str(v) for k, v in json.loads(rows[0]["provenance"]).items()}
        parent_id = mlflow.start(parent, place | provenance)
        for row, trial in zip(rows, trials):
            if trial.digest in known:
                mlflow.client.set_tag(known[trial.digest], _PARENT, parent_id)
            else:
                curves = _curves(store, row["member_ids"]) if row["status"] == "done" else []
                run_id = mlflow.start(trial, place | provenance | {_PARENT: parent_id}, curves)
                mlflow.client.set_terminated(run_id, _ENDED[row["status"]])
        kept = {known[trial.digest] for trial in trials if trial.digest in known}
        stale = [run for run in found if run.info.run_id not in kept]
        for run in stale:
            mlflow.client.delete_run(run.info.run_id)
        shown = table.drop_columns(["eval_sets", "recipe", "tuning", "provenance"])
        mlflow.client.log_table(parent_id, shown.to_pydict(), "trials.json")
        mlflow.client.set_terminated(parent_id, _ENDED[parent.tags["status"]])
    return Recorded(len(trials) - len(kept), len(kept), sum("trial_id" in run.data.tags for run in stale))


def rebuild(store: Store, tracking_uri: str) -> dict[str, Recorded]:
    """Delete the storage's runs and record every sweep again; returns what was recorded, by sweep.

    Raises:
        TrackingError: MLflow cannot be reached or written.
        ValueError: the storage has no sweeps, or one that this version cannot read.
    """
    sweeps = [s for s in store.storage.names("sweeps") if store.storage.exists(trials_file(s))]
    if not sweeps:
        raise ValueError(f"{store.storage.uri} has no sweeps; give the --storage of an earlier `lorae sweep`")
    for sweep in sweeps:  # before anything is deleted
        read_trials(store, sweep)
    with _tracking_errors(tracking_uri), store.storage.lock("mlflow", wait=True):
        mlflow = _open(tracking_uri)
        for run in mlflow.runs({"storage": store.storage.uri}):
            mlflow.client.delete_run(run.info.run_id)
    return {sweep: record_sweep(store, sweep, tracking_uri) for sweep in sweeps}


@dataclass(frozen=True)
class _View:
    """What the run of a trial or a sweep shows."""

    name: str
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]

    @property
    def digest(self) -> str:
        return digest([self.name, self.params, self.metrics, self.tags])


def _views(sweep: str, rows: Sequence[dict[str, Any]]) -> tuple[_View, list[_View]]:
    """Of the sweep, and of its trials."""
    trials = []
    for row, name in zip(rows, _names(rows)):
        params = {factor: str(row[factor]) for factor in FACTORS}
        metrics = {k: float(v) for k, v in row.items() if isinstance(v, (int, float)) and k not in FACTORS}
        tags = {k: row[k] for k in ("trial_id", "status", "error") if row[k]}
        if row["tuning"]:
            tuning = json.loads(row["tuning"])
            metrics |= {f"tuning_{cost}": float(tuning[cost]) for cost in ("train_tokens", "train_seconds")}
            tags["tuned"] = ", ".join(f"{axis}={found['chosen']}" for axis, found in tuning["axes"].items())
        trials.append(_View(name, params, metrics, tags | {"member_ids": " ".join(row["member_ids"])}))
    listed = {factor: ", ".join(dict.fromkeys(t.params[factor] for t in trials)) for factor in FACTORS}
    status = "failed" if any(row["status"] == "failed" for row in rows) else "done"
    return _View(sweep, listed, {}, {"status": status}), trials


def _names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Readable, such as "kl-0.1 rank 8 members 4" or "zero-shot"; nothing is ever parsed from them."""
    trained = [row for row in rows if row["members"]] or rows
    differing = {f for f in FACTORS if len({row[f] for row in trained}) > 1} | {"regularizers", "members"}
    names = []
    for row in rows:
        own = [f for f in FACTORS if f in differing and (row["members"] or row[f] not in ("none", 0))]
        words = [row[f] if isinstance(row[f], str) else f"{f} {row[f]:g}" for f in own]
        names.append(" ".join(words if row["members"] else ["zero-shot", *words]))
    return names


def _curves(store: Store, member_ids: Sequence[str]) -> list[tuple[str, float, int]]:
    """(metric, value, step) of the curves: the mean over the members that were still training at the step."""
    curves = [store.curve(member_folder(m)) for m in dict.fromkeys(member_ids)]
    curve = pa.concat_tables([CURVE.empty_table(), *curves])
    columns = ("loss", "nll", "acc")
    means = curve.group_by(["split", "step"]).aggregate([(c, "mean") for c in columns]).sort_by("step")
    points = []
    for split in ("train", "validation"):
        rows = [row for row in means.to_pylist() if row["split"] == split]
        thinned = rows[:: -(math.ceil(len(rows) / CURVE_POINTS) or 1)]  # from the last step, which is kept
        points += [(f"curve/{split}_{c}", row[f"{c}_mean"], row["step"]) for row in thinned for c in columns]
    return [point for point in points if math.isfinite(point[1])]


@dataclass(frozen=True)
class _Experiment:
    client: MlflowClient
    id: str

    def runs(self, tags: dict[str, str]) -> list[Run]:
        wanted = " and ".join(f'tags.{k} = "{v}"' for k, v in tags.items())
        return self.client.search_runs([self.id], wanted, max_results=50_000)

    def start(self, view: _View, tags: dict[str, str], curves: Sequence[tuple[str, float, int]] = ()) -> str:
        """Create a run with all but its final status; returns its id."""
        from mlflow.entities import Metric, Param

        tags = {k: shown(v)[:5000] for k, v in (tags | view.tags).items()}  # old servers refuse longer ones
        run = self.client.create_run(self.id, tags=tags | {"digest": view.digest}, run_name=view.name)
        now = int(time.time() * 1000)
        points = [*((name, value, 0) for name, value in view.metrics.items()), *curves]
        metrics = [Metric(name, value, now, step) for name, value, step in points]
        self.client.log_batch(run.info.run_id, metrics, [Param(k, v) for k, v in view.params.items()])
        return run.info.run_id


def _open(tracking_uri: str) -> _Experiment:
    """The experiment, made where missing; a sqlite database's artifacts lie beside it."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient  # only now: it takes seconds, and telemetry starts with the import

    artifacts = None
    if database := _database(tracking_uri):
        artifacts = str(database.parent / "mlflow-artifacts")
        database.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA schema_version")  # fails at once where MLflow tries for 100 s
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return _Experiment(client, client.create_experiment(EXPERIMENT, artifact_location=artifacts))
    if artifacts and experiment.artifact_location != artifacts:
        raise ValueError(f"it was moved here, its artifacts are in {experiment.artifact_location}")
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return _Experiment(client, experiment.experiment_id)


def _database(tracking_uri: str) -> Path | None:
    """The file of a sqlite URI, else None."""
    scheme, _, path = tracking_uri.partition(":///")
    return Path(path).resolve() if scheme == "sqlite" else None


@contextlib.contextmanager
def _tracking_errors(tracking_uri: str) -> Iterator[None]:
    """Whatever goes wrong in MLflow becomes one clear error: a view must not end a sweep."""
    try:
        yield
    except Exception as error:
        cause = shown(f"MLflow at {tracking_uri} was not written ({type(error).__name__}: {error})")
        raise TrackingError(
            f"{cause}; results are kept in Parquet; make it reachable, or delete a damaged or moved sqlite "
            "file, then run `lorae mlflow-rebuild STORAGE`"
        ) from error
