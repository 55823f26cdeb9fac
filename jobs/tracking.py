"""MLflow as a view of the Parquet files: experiment "lorae" -> one run per sweep -> one child run per trial.

Nothing is read back from MLflow but which runs are there, and `rebuild` makes all of it again. A run is
written once: a tag holds the hash of what it shows, so a row that changed gets a new run and its old one is
deleted. Only the other tags (provenance, the parent) are brought up to date in place.

Every run has the same params, the factors. Metrics have the names of the row's columns; one that is undefined
for a trial (disagreement of a single member) is absent, since MLflow would plot a NaN as 0, and named in the
tag `undefined_metrics`. The run of a sweep shows for each factor the values that its trials have.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import shutil
import sqlite3
import time
import urllib.parse
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from lorae.identity import digest
from lorae.results import FACTORS
from lorae.storage import Storage
from lorae.store import CURVE, Store, member_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "lorae"
ARTIFACTS = "mlflow-artifacts"  # folder beside a sqlite database
TABLE = "trials.json"  # artifact of a sweep's run
CURVES = {"train": ("loss", "nll", "acc"), "validation": ("nll",)}
CURVE_POINTS = 200  # of each curve at most, so that a run fits one request; Parquet keeps every step
VIEW_VERSION = 1  # enters every hash: raise it when a run of the same row would look different

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",  # an unreachable server costs seconds; MLflow's own settings, minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_MAX_METRICS = 1000  # of one log_batch
_MAX_TAG_CHARS = 5000  # older servers refuse longer ones, newer ones cut them silently
_PARENT = "mlflow.parentRunId"
_UI_TAGS = {"command": "mlflow.source.name", "commit": "mlflow.source.git.commit"}


class TrackingError(Exception):
    """MLflow could not be written; the results are in Parquet all the same."""


@dataclass(frozen=True)
class Recorded:
    """Runs of trials that were written, found unchanged, and deleted since their row changed or went."""

    written: int
    unchanged: int
    deleted: int


def default_uri(store: Store) -> str:
    """Where a storage's runs go: MLFLOW_TRACKING_URI if it is set, else the sqlite database in the storage.

    Raises:
        ValueError: MLFLOW_TRACKING_URI is not set and the storage is no local folder that a URI can name.
    """
    if given := os.environ.get("MLFLOW_TRACKING_URI"):
        return given
    if not store.storage.is_local or {"%", "?"} & set(store.storage.root):
        raise ValueError(
            f"storage {_without_password(store.storage.uri)} cannot hold MLflow's database: it needs a "
            "local folder without % and ? in its path; set MLFLOW_TRACKING_URI to a server or to sqlite:///PATH"
        )
    return f"sqlite:///{_own_database(store)}"


def prepare(tracking_uri: str) -> None:
    """Create database and experiment unless they exist; call it once, before any trial.

    Raises:
        TrackingError: they cannot be created or reached.
    """
    database = _database(tracking_uri)
    with _tracking_errors(tracking_uri):
        if database is None:
            _open(tracking_uri)
        elif _peek(database) is None:
            with Storage(str(database.parent)).lock("mlflow", wait=True):
                _open(tracking_uri)


def record_sweep(store: Store, sweep: str, tracking_uri: str) -> Recorded:
    """Make a sweep's runs show its trials.parquet; if a sqlite database does already, MLflow is not imported.

    Storages on one server are told apart by their path or URI.

    Raises:
        TrackingError: MLflow cannot be reached or written, within seconds.
        ValueError: the storage has no such sweep.
    """
    view = _view(store, sweep, tracking_uri)
    database = _database(tracking_uri)
    with _tracking_errors(tracking_uri), store.storage.lock("mlflow", wait=True):
        found = _of_sweep(_peek(database) or [], view) if database else []
        if _is_current(view, found):
            return Recorded(0, len(view.trials), 0)
        experiment = _open(tracking_uri)
        return _write_view(experiment, store, view, _search(experiment, view.owner, sweep))


def rebuild(store: Store, tracking_uri: str) -> dict[str, Recorded]:
    """Write the runs of all sweeps of a storage anew; returns what was recorded, by sweep.

    The storage's own database is made anew from nothing and then replaced; elsewhere the storage's runs are
    written again and then the old ones deleted. A failure leaves what was there.

    Raises:
        TrackingError: MLflow cannot be reached or written.
        ValueError: the storage has no sweeps, or one that this version cannot read.
    """
    sweeps = [s for s in store.storage.names("sweeps") if store.storage.exists(_table_name(s))]
    if not sweeps:
        raise ValueError(f"{store.storage.uri} has no sweeps; give the --storage of an earlier `lorae sweep`")
    views = [_view(store, sweep, tracking_uri) for sweep in sweeps]
    with _tracking_errors(tracking_uri), store.storage.lock("mlflow", wait=True):
        if _is_own(store, tracking_uri):
            return _rebuild_own(store, views)
        experiment = _open(tracking_uri)
        old = _search(experiment, _owner(store, tracking_uri))
        recorded = {v.sweep: _write_view(experiment, store, v, []) for v in views}
        for run in old:
            experiment.client.delete_run(run.run_id)
        return recorded


# What MLflow should show: computed from Parquet alone -------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """A run as it should be. `tags["digest"]` identifies everything but the other tags."""

    name: str
    params: dict[str, str]
    tags: dict[str, str]
    failed: bool
    metrics: dict[str, float] = field(default_factory=dict)
    member_ids: tuple[str, ...] = ()  # whose curves it shows

    @property
    def status(self) -> str:
        return "FAILED" if self.failed else "FINISHED"


@dataclass(frozen=True)
class _View:
    """The runs of one sweep, and its table."""

    owner: str
    sweep: str
    parent: _Run
    trials: list[_Run]
    table: pa.Table


def _view(store: Store, sweep: str, tracking_uri: str) -> _View:
    table = store.read_table(_table_name(sweep))
    rows = table.to_pylist()
    metrics = [f.name for f in table.schema if f.name not in FACTORS and _is_number(f.type)]
    varying = _varying(rows)
    place = {"storage": _owner(store, tracking_uri), "sweep": sweep}
    trials = [_trial_run(row, metrics, varying, place) for row in rows]
    return _View(place["storage"], sweep, _sweep_run(rows, trials, place), trials, table)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _trial_run(
    row: dict[str, Any], metrics: Sequence[str], varying: Sequence[str], place: dict[str, str]
) -> _Run:
    name, failed = _name(row, varying), row["status"] == "failed"
    undefined = [m for m in metrics if row[m] is None] if not failed else []
    shown = {k: v for k, v in row.items() if k != "provenance"}
    tags = place | {
        "trial_id": row["trial_id"],
        "digest": _digest(place | {"name": name, "row": shown}),
        "status": row["status"],
        "error": row["error"],
        "member_ids": " ".join(row["member_ids"]),
        "reference_id": row["reference_id"],
        "undefined_metrics": " ".join(undefined),
    }
    return _Run(
        name,
        {factor: _param(row[factor]) for factor in FACTORS},
        _tags(tags | _provenance(row)),
        failed,
        {m: float(row[m]) for m in metrics if row[m] is not None},
        tuple(row["member_ids"]) if not failed else (),
    )


def _sweep_run(rows: list[dict[str, Any]], trials: list[_Run], place: dict[str, str]) -> _Run:
    params = {f: ", ".join(dict.fromkeys(_param(row[f]) for row in rows)) for f in FACTORS}
    num_failed = sum(t.failed for t in trials)
    tags = place | {
        "digest": _digest(place | {"trials": [t.tags["digest"] for t in trials]}),
        "status": "failed" if num_failed else "done",
        "error": f"{num_failed} of {len(trials)} trials failed" if num_failed else "",
    }
    return _Run(place["sweep"], params, _tags(tags | _provenance(rows[0])), num_failed > 0)


def _param(value: Any) -> str:
    return "none" if value is None else str(value)


def _tags(values: Mapping[str, str | None]) -> dict[str, str]:
    """Tags without the empty ones, cut to what every server keeps, without passwords of URIs."""
    return {k: _without_password(v)[:_MAX_TAG_CHARS] for k, v in values.items() if v}


def _provenance(row: dict[str, Any]) -> dict[str, str]:
    """Tags of the provenance that was recorded; the process that records adds nothing of its own."""
    known = {k: v if isinstance(v, str) else json.dumps(v) for k, v in json.loads(row["provenance"]).items()}
    return {f"provenance.{k}": v for k, v in known.items()} | {
        tag: known[k] for k, tag in _UI_TAGS.items() if k in known
    }


def _digest(shown: dict[str, Any]) -> str:
    return digest({"view": VIEW_VERSION, "shown": json.dumps(shown, sort_keys=True)})


def _varying(rows: list[dict[str, Any]]) -> list[str]:
    """Factors in which the trained trials differ, apart from those that every name has."""
    trained = [row for row in rows if row["members"]]
    always = ("regularizers", "members", "seed")
    return [f for f in FACTORS if f not in always and len({row[f] for row in trained}) > 1]


def _name(row: dict[str, Any], varying: Sequence[str]) -> str:
    """Readable name such as "kl-0.1 x4 seed 0" or "rank 8 none x1 seed 0"; nothing is ever parsed from it."""
    if row["members"] == 0:
        own = [row[f] for f in ("backbone", "task", "scoring", "precision") if f in varying]
        return " ".join(["zero-shot", *own])
    settings = [row[f] if isinstance(row[f], str) else f"{f} {row[f]:g}" for f in varying]
    return " ".join([*settings, row["regularizers"], f"x{row['members']}", f"seed {row['seed']}"])


def _curve_metrics(store: Store, member_ids: Sequence[str]) -> list[tuple[str, int, float]]:
    """(name, step, value) of the curves, the mean over the members that were still training at the step."""
    folders = [member_folder(m) for m in dict.fromkeys(member_ids)]
    if not folders:
        return []
    tables = [pq.read_table(io.BytesIO(store.read(f, "curve.parquet")), schema=CURVE) for f in folders]
    columns = dict.fromkeys(c for names in CURVES.values() for c in names)
    means = pa.concat_tables(tables).group_by(["split", "step"]).aggregate([(c, "mean") for c in columns])
    found = []
    for split, names in CURVES.items():
        points = [p for p in means.sort_by("step").to_pylist() if p["split"] == split]
        for point in _spread(points, CURVE_POINTS):
            values = {f"curve/{split}_{c}": point[f"{c}_mean"] for c in names}
            found += [(name, point["step"], v) for name, v in values.items() if math.isfinite(v)]
    return found


def _spread(points: list[Any], most: int) -> list[Any]:
    """At most `most` of the points, evenly spread, with the first and the last."""
    if len(points) <= most:
        return points
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def _table_name(sweep: str) -> str:
    return f"sweeps/{sweep}/trials.parquet"


# What MLflow has --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """A run in MLflow. One that has not ended was cut off while it was written."""

    run_id: str
    status: str
    tags: dict[str, str]


def _peek(database: Path) -> list[_Found] | None:
    """Runs of the experiment, without importing MLflow (4 s); None if this is not its database."""
    query = """
        SELECT runs.run_uuid, runs.status, tags.key, tags.value FROM experiments
        LEFT JOIN runs ON runs.experiment_id = experiments.experiment_id AND runs.lifecycle_stage = 'active'
        LEFT JOIN tags ON tags.run_uuid = runs.run_uuid
        WHERE experiments.name = ? AND experiments.lifecycle_stage = 'active'"""
    try:
        uri = f"file:{urllib.parse.quote(str(database))}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            cells = connection.execute(query, (EXPERIMENT,)).fetchall()
    except sqlite3.Error:
        return None
    runs: dict[str, _Found] = {}
    for run_id, status, key, value in cells:
        if run_id:
            runs.setdefault(run_id, _Found(run_id, status, {})).tags[key] = value
    return list(runs.values()) if cells else None


def _search(experiment: _Experiment, owner: str, sweep: str | None = None) -> list[_Found]:
    """The storage's runs, of one sweep or all, in one request."""
    wanted = {"storage": owner} | ({"sweep": sweep} if sweep else {})
    condition = " and ".join(f"tags.{key} = {_quoted(value)}" for key, value in wanted.items())
    runs = experiment.client.search_runs([experiment.id], condition, max_results=50_000)
    return [_Found(run.info.run_id, run.info.status, run.data.tags) for run in runs]


def _quoted(value: str) -> str:
    return f'"{value}"' if "'" in value else f"'{value}'"


def _of_sweep(found: list[_Found], view: _View) -> list[_Found]:
    return [f for f in found if (f.tags.get("storage"), f.tags.get("sweep")) == (view.owner, view.sweep)]


def _by_digest(found: list[_Found]) -> dict[str, _Found]:
    return {f.tags.get("digest", ""): f for f in found if f.status in ("FINISHED", "FAILED")}


def _is_current(view: _View, found: list[_Found]) -> bool:
    known = _by_digest(found)
    if len(found) != len(view.trials) + 1 or view.parent.tags["digest"] not in known:
        return False
    parent = known[view.parent.tags["digest"]]
    pairs = [(t, known.get(t.tags["digest"])) for t in view.trials]
    return not _outdated(view.parent.tags, parent) and all(
        f is not None and not _outdated(t.tags | {_PARENT: parent.run_id}, f) for t, f in pairs
    )


def _outdated(tags: dict[str, str], found: _Found) -> dict[str, str]:
    return {k: v for k, v in tags.items() if found.tags.get(k) != v}


# Writing ----------------------------------------------------------------------------------------------------


def _write_view(experiment: _Experiment, store: Store, view: _View, found: list[_Found]) -> Recorded:
    """Write what is missing, delete what is left over, then log the table. A run's status comes last."""
    client, known = experiment.client, _by_digest(found)
    parent = known.get(view.parent.tags["digest"])
    parent_id = parent.run_id if parent else _start(experiment, view.parent, view.parent.tags)
    if parent:
        _update(client, parent, view.parent.tags)
    kept = [parent] if parent else []
    for trial in view.trials:
        tags = trial.tags | {_PARENT: parent_id}
        if same := known.get(trial.tags["digest"]):
            _update(client, same, tags)
            kept.append(same)
        else:
            run_id = _start(experiment, trial, tags, _curve_metrics(store, trial.member_ids))
            client.set_terminated(run_id, trial.status)
    leftover = [f for f in found if f not in kept]
    for run in leftover:
        client.delete_run(run.run_id)
    if not parent:
        _log_table(client, parent_id, view.table)
        client.set_terminated(parent_id, view.parent.status)
    unchanged = len(kept) - (parent is not None)
    deleted = sum("trial_id" in run.tags for run in leftover)
    return Recorded(len(view.trials) - unchanged, unchanged, deleted)


def _start(
    experiment: _Experiment, run: _Run, tags: dict[str, str], curves: Sequence[tuple[str, int, float]] = ()
) -> str:
    """Create a run with everything but its end; returns its id."""
    from mlflow.entities import Metric, Param

    client = experiment.client
    run_id = client.create_run(experiment.id, tags=tags, run_name=run.name).info.run_id
    now = int(time.time() * 1000)
    points = [*((name, 0, value) for name, value in run.metrics.items()), *curves]
    metrics = [Metric(name, value, now, step) for name, step, value in points]
    params = [Param(name, value) for name, value in run.params.items()]
    client.log_batch(run_id, metrics[:_MAX_METRICS], params, synchronous=True)
    for begin in range(_MAX_METRICS, len(metrics), _MAX_METRICS):
        client.log_batch(run_id, metrics[begin : begin + _MAX_METRICS], synchronous=True)
    return run_id


def _update(client: MlflowClient, found: _Found, tags: dict[str, str]) -> None:
    from mlflow.entities import RunTag

    if outdated := _outdated(tags, found):
        client.log_batch(found.run_id, tags=[RunTag(k, v) for k, v in outdated.items()], synchronous=True)


def _log_table(client: MlflowClient, run_id: str, table: pa.Table) -> None:
    """The table without its JSON columns, as MLflow shows tables."""
    shown = table.drop_columns(["eval_sets", "recipe", "provenance"])
    client.log_table(run_id, shown.to_pydict(), TABLE)


# Places -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Experiment:
    client: MlflowClient
    id: str


def _open(tracking_uri: str) -> _Experiment:
    """The experiment, created where missing; a database's artifacts lie beside it."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient  # only now: telemetry starts with the import

    database, artifacts = _database(tracking_uri), None
    if database:
        artifacts = str(database.parent / ARTIFACTS)
        database.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA schema_version")  # fails at once where MLflow tries for 100 s
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return _Experiment(client, client.create_experiment(EXPERIMENT, artifact_location=artifacts))
    if artifacts and experiment.artifact_location != artifacts:
        raise TrackingError(
            f"{database} keeps artifacts in {experiment.artifact_location}, its folder was moved; "
            "run `lorae mlflow-rebuild STORAGE`"
        )
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return _Experiment(client, experiment.experiment_id)


def _database(tracking_uri: str) -> Path | None:
    """The file of a sqlite URI, else None."""
    scheme, _, rest = tracking_uri.partition(":///")
    return Path(rest.partition("?")[0]).resolve() if scheme == "sqlite" else None


def _own_database(store: Store) -> Path:
    return Path(store.storage.path("mlflow.db"))


def _is_own(store: Store, tracking_uri: str) -> bool:
    return store.storage.is_local and _database(tracking_uri) == _own_database(store).resolve()


def _owner(store: Store, tracking_uri: str) -> str:
    """Which storage a run belongs to; "." is the one that its database lies in, wherever that is moved."""
    return "." if _is_own(store, tracking_uri) else _without_password(store.storage.uri)


def _rebuild_own(store: Store, views: list[_View]) -> dict[str, Recorded]:
    target = _own_database(store)
    scratch = target.with_name(f".mlflow-{uuid.uuid4().hex}.db")
    try:
        experiment = _open(f"sqlite:///{scratch}")
        recorded = {v.sweep: _write_view(experiment, store, v, []) for v in views}
        _replace_database(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)
    kept = {run.run_id for run in _peek(target) or []}
    for folder in (target.parent / ARTIFACTS).iterdir():
        if folder.name not in kept:
            shutil.rmtree(folder)
    return recorded


def _replace_database(scratch: Path, target: Path) -> None:
    """Copy in one transaction: a running `mlflow ui` keeps its file and sees all the old or all the new."""
    try:
        _copy_database(scratch, target)
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorname not in ("SQLITE_NOTADB", "SQLITE_CORRUPT"):
            raise
        Path(f"{target}-journal").unlink(missing_ok=True)
        target.write_bytes(b"")  # nothing in it was of use
        _copy_database(scratch, target)


def _copy_database(source: Path, target: Path) -> None:
    with (
        contextlib.closing(sqlite3.connect(source)) as new,
        contextlib.closing(sqlite3.connect(target)) as old,
    ):
        new.backup(old)


@contextlib.contextmanager
def _tracking_errors(tracking_uri: str) -> Iterator[None]:
    """Whatever goes wrong in MLflow becomes one clear error: a view must not end a sweep."""
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:
        found = _without_password(
            f"MLflow at {tracking_uri} was not written ({type(error).__name__}: {error})"
        )
        raise TrackingError(
            f"{found}; the results are kept in Parquet; make it reachable, then repeat the sweep or run "
            "`lorae mlflow-rebuild STORAGE`"
        ) from error


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]+@", "//", text)
