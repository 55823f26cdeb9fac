"""MLflow as a view of the Parquet files: experiment "lorae" -> one run per sweep -> one child run per trial.

Nothing is read back from MLflow except which runs exist, and `rebuild` recreates everything. A run is written
once: its tag `digest` is the hash of what it shows, and a changed row gets a new run in place of the old one.
Every run has the same params, the factors; a sweep's run lists the values of its trials. Metrics have the
names of the row's columns (`mlflow_runs.key`). A metric that is undefined for a trial (disagreement of a
single member) is absent, since MLflow would plot a NaN as 0; the tag `left_out` names infinite ones.

A storage is identified by an id stored in it, because on a shared server another storage may have the same
path. MLflow never holds up a sweep: each step has a deadline.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import math
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from jobs.attempt import Attempt, Beat
from jobs.mlflow_runs import (
    LEFT_OUT,
    PARENT,
    Dataset,
    Experiment,
    alone,
    database_of,
    finite,
    open_experiment,
)
from lorae.identity import digest
from lorae.results import FACTORS, read_trials
from lorae.store.names import member_folder, trials_file
from lorae.store.records import CURVE
from lorae.store.storage import Storage
from lorae.store.store import Store
from lorae.untrusted import json_object
from lorae.uris import shown

if TYPE_CHECKING:
    from mlflow.entities import Run

T = TypeVar("T")
STORAGE_ID = "mlflow-id.json"  # of the storage; a copy that should have its own runs needs another
_ENDED = {"done": "FINISHED", "failed": "FAILED", "pruned": "KILLED"}
FIRST = ("ensemble_nll", "acc", "debiased_ce15", "brier", "ece15", "rmse", "crps")  # metrics of a run
VIEW = 2  # raise it when runs show more: they are then written again
CURVE_POINTS = 200  # at most, of each curve; Parquet keeps every step
STEP_SECONDS = 60.0  # that a request to a server may take
FILE_SECONDS = 300.0  # that a database in a file may take; making one is slow on a busy machine
TRIAL_SECONDS = 2.0  # added per trial for all its requests


class TrackingError(ValueError):
    """MLflow could not be written; the results are still in Parquet."""


@dataclass(frozen=True)
class Recorded:
    """Numbers of trials' runs written, found unchanged, and deleted because their row changed or is gone."""

    written: int
    unchanged: int
    deleted: int


def default_uri(store: Store) -> str:
    """Where a storage's runs go: MLFLOW_TRACKING_URI if it is set, else a sqlite database in the storage.

    Raises:
        ValueError: MLFLOW_TRACKING_URI is not set and the storage is not a local folder that a URI can name.
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
    database = database_of(tracking_uri)

    def create(beat: Beat) -> None:
        lock = contextlib.nullcontext()
        if database:  # MLflow fails where two processes create it
            folder = Storage(str(database.parent))
            folder.retry_seconds = 0.0  # a sweep does not wait for MLflow
            lock = alone(folder)
        with lock:
            open_experiment(tracking_uri, beat)

    with _tracking_errors(tracking_uri):
        _result(Attempt(create), tracking_uri, 0)


def record_sweep(store: Store, sweep: str, tracking_uri: str) -> Recorded:
    """Make MLflow show a sweep's trials.parquet: write missing or changed runs, delete stale ones.

    Raises:
        TrackingError: MLflow cannot be reached or written; raised within seconds.
        ValueError: the storage has no such sweep.
    """
    table = read_trials(store, sweep)

    def record(experiment: Experiment) -> Recorded:
        return _record(experiment, store, sweep, table)

    return with_experiment(store, tracking_uri, table.num_rows, record)


def rebuild(store: Store, tracking_uri: str) -> dict[str, Recorded]:
    """Delete the storage's runs and record every sweep again; returns what was recorded, by sweep.

    Raises:
        TrackingError: MLflow cannot be reached or written.
        ValueError: the storage has no sweeps, or this version cannot read one of them.
    """
    sweeps = [s for s in store.storage.names("sweeps") if store.storage.exists(trials_file(s))]
    if not sweeps:
        raise ValueError(f"{store.storage.uri} has no sweeps; give the --storage of an earlier `lorae sweep`")
    tables = {sweep: read_trials(store, sweep) for sweep in sweeps}  # before anything is deleted

    def delete(experiment: Experiment) -> None:
        stored = experiment.runs({"storage_id": storage_id(store.storage)})
        for sweep, table in tables.items():
            stored += _older(experiment, store.storage, sweep, table["trial_id"].to_pylist())
        for run in stored:
            experiment.delete(run.info.run_id)

    with_experiment(store, tracking_uri, sum(table.num_rows for table in tables.values()), delete)
    return {sweep: record_sweep(store, sweep, tracking_uri) for sweep in sweeps}


def storage_id(storage: Storage) -> str:
    """A storage's id in MLflow, wherever the storage is; created once."""
    try:
        content = storage.read(STORAGE_ID, 1000)
    except FileNotFoundError:
        content = json.dumps({"storage_id": secrets.token_hex(8)}).encode()
        storage.write(STORAGE_ID, content)
    return json_object(content, STORAGE_ID, {"storage_id": _hexadecimal})["storage_id"]


def _hexadecimal(value: Any) -> bool:
    """A shape: 16 hexadecimal digits."""
    return type(value) is str and len(value) == 16 and set(value) <= set("0123456789abcdef")


def with_experiment(store: Store, tracking_uri: str, num_trials: int, action: Callable[[Experiment], T]) -> T:
    """What an action on the experiment returns; no other process of this storage runs one meanwhile.

    Raises:
        TrackingError: MLflow failed, or took too long.
    """

    def locked(beat: Beat) -> T:
        with alone(store.storage):
            return action(open_experiment(tracking_uri, beat))

    with _tracking_errors(tracking_uri):
        return _result(Attempt(locked), tracking_uri, num_trials)


def _result(attempt: Attempt[T], tracking_uri: str, num_trials: int) -> T:
    """What the attempt returns within its deadline; TimeoutError after that."""
    seconds = FILE_SECONDS if database_of(tracking_uri) else STEP_SECONDS
    return attempt.result(seconds, 2 * seconds + TRIAL_SECONDS * num_trials)


def _record(experiment: Experiment, store: Store, sweep: str, table: pa.Table) -> Recorded:
    rows = table.to_pylist()
    parent, trials = _views(sweep, rows)
    place = {"storage_id": storage_id(store.storage), "storage": store.storage.uri, "sweep": sweep}
    found = experiment.runs({name: place[name] for name in ("storage_id", "sweep")})
    found += _older(experiment, store.storage, sweep, [row["trial_id"] for row in rows])
    # The status is written last: a run that is still RUNNING was cut off, and is written again.
    # Those without digest showed the sweep while it ran.
    tagged = [run for run in found if "digest" in run.data.tags]
    known = {r.data.tags["digest"]: r for r in tagged if r.info.status != "RUNNING"}
    kept = {view.digest: known[view.digest] for view in trials if view.digest in known}
    for run in [*kept.values(), *([known[parent.digest]] if parent.digest in known else [])]:
        if not place.items() <= run.data.tags.items():  # the storage was moved, or had no id
            experiment.tag(run.info.run_id, place)
    if len(known) == len(found) and known.keys() == {view.digest for view in [parent, *trials]}:
        return Recorded(0, len(trials), 0)

    tags = place | _made_by(json.loads(rows[0]["provenance"]))
    parent_id = experiment.start(parent.name, tags | parent.all_tags, parent.params)
    experiment.inputs(parent_id, [*dict.fromkeys(d for row in rows for d in _datasets(row))])
    for row, trial in zip(rows, trials):
        if trial.digest in kept:
            experiment.tag(kept[trial.digest].info.run_id, {PARENT: parent_id})
            continue
        curves = _curves(store, row["member_ids"]) if row["status"] == "done" else []
        points = [*((name, value, 0) for name, value in trial.metrics.items()), *curves]
        own = tags | {PARENT: parent_id} | trial.all_tags
        run_id = experiment.start(trial.name, own, trial.params, points)
        experiment.inputs(run_id, _datasets(row))
        experiment.end(run_id, _ENDED[row["status"]])
    staying = {run.info.run_id for run in kept.values()}
    stale = [run for run in found if run.info.run_id not in staying]
    for run in stale:
        experiment.delete(run.info.run_id)
    visible = table.drop_columns(["eval_sets", "recipe", "tuning", "provenance"])
    experiment.log_table(parent_id, visible.to_pydict())
    experiment.end(parent_id, _ENDED[parent.tags["status"]])
    return Recorded(len(trials) - len(kept), len(kept), sum("trial_id" in run.data.tags for run in stale))


def _made_by(provenance: dict[str, Any]) -> dict[str, str]:
    """Tags of what made a sweep, and those that MLflow shows as its source, commit and user."""
    words = str(provenance.get("command", "")).split()
    source = next((word for word in words if word.endswith(".py")), "lorae")
    known = {"mlflow.source.name": source, "mlflow.source.type": "LOCAL", "mlflow.user": _user()}
    if commit := provenance.get("commit"):
        known["mlflow.source.git.commit"] = str(commit)
    return known | {f"provenance.{name}": str(value) for name, value in provenance.items()}


def _user() -> str:
    """Who records, which is whoever ran the sweep."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"


def _datasets(row: dict[str, Any]) -> list[Dataset]:
    """What a trial read, each with the digest of its content."""
    task = json.loads(row["recipe"]).get("task") or {}
    trained = [Dataset(str(row["task"]), digest(task), "training")] if row["members"] else []
    predicted = []
    for kind, name in json.loads(row["eval_sets"]).items():
        dataset, split, code = name.rsplit("__", 2)
        context = kind if kind in ("validation", "test") else "ood"
        predicted.append(Dataset(f"{dataset} {split}", code, context))
    return trained + predicted


def _older(experiment: Experiment, storage: Storage, sweep: str, trial_ids: Sequence[str]) -> list[Run]:
    """Runs of a sweep from an older lorae, which knew a storage only by its path. Another machine may have a
    storage at the same path: the runs are this one's if a trial matches."""
    database = database_of(experiment.uri)
    inside = database is not None and str(database.parent) == storage.root  # whatever path it had
    tags = {"sweep": sweep} | ({} if inside else {"storage": storage.uri})
    found = [run for run in experiment.runs(tags) if "storage_id" not in run.data.tags]
    return found if {run.data.tags.get("trial_id") for run in found} & set(trial_ids) else []


@dataclass(frozen=True)
class _View:
    """What the run of a trial or a sweep shows."""

    name: str
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]

    @property
    def digest(self) -> str:
        return digest([VIEW, self.name, self.params, self.metrics, self.tags])

    @property
    def all_tags(self) -> dict[str, str]:
        return self.tags | {"digest": self.digest}


def _views(sweep: str, rows: Sequence[dict[str, Any]]) -> tuple[_View, list[_View]]:
    """Views of the sweep and of its trials."""
    trials = []
    for row, name in zip(rows, _names(rows)):
        params = {factor: str(row[factor]) for factor in FACTORS}
        metrics = {k: float(v) for k, v in row.items() if isinstance(v, (int, float)) and k not in FACTORS}
        tags = {k: row[k] for k in ("trial_id", "status", "error") if row[k]}
        if row["tuning"]:
            tuning = json.loads(row["tuning"])
            metrics |= {f"tuning_{cost}": float(tuning[cost]) for cost in ("train_tokens", "train_seconds")}
            tags["tuned"] = ", ".join(f"{axis}={found['chosen']}" for axis, found in tuning["axes"].items())
        metrics, lost = finite({name: metrics[name] for name in sorted(metrics, key=_rank)})
        tags |= {"member_ids": " ".join(row["member_ids"])} | ({LEFT_OUT: lost} if lost else {})
        trials.append(_View(name, params, metrics, tags))
    listed = {factor: ", ".join(dict.fromkeys(t.params[factor] for t in trials)) for factor in FACTORS}
    status = "failed" if any(row["status"] == "failed" for row in rows) else "done"
    return _View(sweep, listed, {}, {"status": status}), trials


def _rank(metric: str) -> int:
    """MLflow's plots begin with the first metric of a run: the main ones come before the others."""
    return FIRST.index(metric) if metric in FIRST else len(FIRST)


def _names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Readable names, such as "kl-0.1 rank 8 members 4" or "zero-shot"; they are never parsed."""
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


@contextlib.contextmanager
def _tracking_errors(tracking_uri: str) -> Iterator[None]:
    """Turn any failure of MLflow into one clear error: a view must not end a sweep."""
    try:
        yield
    except Exception as error:
        cause = shown(f"MLflow at {tracking_uri} was not written ({type(error).__name__}: {error})")
        raise TrackingError(
            f"{cause}; results are kept in Parquet; make it reachable, or delete a damaged sqlite file, then "
            "run `lorae mlflow-rebuild STORAGE`"
        ) from error
