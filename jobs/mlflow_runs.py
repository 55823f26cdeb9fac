"""Runs in MLflow: the experiment, created if missing, and the names and values that MLflow can show."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import os
import re
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from jobs.attempt import Beat
from lorae.store.storage import Storage
from lorae.uris import remember, shown

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

LOG = logging.getLogger("lorae")
EXPERIMENT = "lorae"
PARENT, LEFT_OUT = "mlflow.parentRunId", "left_out"
LOCK, LOCK_SECONDS = "mlflow", 50.0  # shorter than a step's deadline
SCRATCH_SECONDS = 3600.0  # longer than making a database takes
MAX_NAME, MAX_VALUE, MAX_DIGEST = 250, 5000, 36  # characters that MLflow, and old servers, accept
ABOUT = (  # the experiment's description
    "LoRA ensembles: a run for each sweep, and below it one for each trial, a row of its table; while a "
    "sweep runs, one for each stack of members that train together. All this is a view of the storage that "
    "the tag `storage` names; `lorae mlflow-rebuild STORAGE` makes it again, also after that was moved."
)
NOTE = "mlflow.note.content"
TAGS = {NOTE: ABOUT}

_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "3",  # an unreachable server costs seconds; by MLflow's defaults, minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def key(name: str) -> str:
    """A name that MLflow accepts for a metric, param or tag: other characters become their code, "a+b"
    becomes "a:2b:b"."""
    return re.sub(r"[^/\w.\- :]", lambda found: f":{ord(found[0]):x}:", name)[:MAX_NAME]


def finite(metrics: dict[str, float]) -> tuple[dict[str, float], str]:
    """The metrics that MLflow can show, and a text that lists the others."""
    lost = [f"{name}={value}" for name, value in metrics.items() if not math.isfinite(value)]
    return {name: value for name, value in metrics.items() if math.isfinite(value)}, ", ".join(lost)


@contextlib.contextmanager
def alone(storage: Storage) -> Iterator[None]:
    """Hold a storage's lock on MLflow.

    Raises:
        TimeoutError: another process holds it for `LOCK_SECONDS`.
    """
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        with storage.lock(LOCK) as held:
            if held:
                yield
                return
        if time.monotonic() > deadline:
            held_by = f"another process holds {storage.path(f'locks/{LOCK}')}"
            raise TimeoutError(f"{held_by} for more than {LOCK_SECONDS:.0f} s")
        time.sleep(0.1)


@dataclass(frozen=True)
class Dataset:
    """Data that a run read.

    Args:
        digest: of its content.
        context: "training", "validation", "test" or "ood".
    """

    name: str
    digest: str
    context: str


@dataclass(frozen=True)
class Experiment:
    """The experiment "lorae" of a tracking server or database.

    Args:
        beat: called before each request.
    """

    client: MlflowClient
    id: str
    uri: str
    beat: Beat

    def runs(self, tags: dict[str, str]) -> list[Run]:
        """Runs with these tags, whatever characters are in the values."""
        self.beat()
        quotable = {name: value for name, value in tags.items() if not re.search(r'["\\\x00-\x1f]', value)}
        wanted = " and ".join(f'tags.{name} = "{value}"' for name, value in quotable.items())
        found = self.client.search_runs([self.id], wanted, max_results=50_000)
        return [run for run in found if tags.items() <= run.data.tags.items()]

    def start(
        self,
        name: str,
        tags: dict[str, str],
        params: dict[str, str],
        points: Sequence[tuple[str, float, int]] = (),
    ) -> str:
        """Create a run with everything but its final status; returns its id.

        Args:
            points: (metric, value, step).
        """
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException

        self.beat()
        tags = {key(name): shown(value)[:MAX_VALUE] for name, value in tags.items()}
        run_id = self.client.create_run(self.id, tags=tags, run_name=name[:MAX_NAME]).info.run_id
        now = int(time.time() * 1000)
        metrics = [Metric(key(name), value, now, step) for name, value, step in points]
        logged = [Param(key(name), value[:MAX_VALUE]) for name, value in params.items()]
        self.beat()
        try:
            self.client.log_batch(run_id, metrics, logged)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            self.leave_out(run_id, f"params and metrics: {error}")
        return run_id

    def log(self, run_id: str, points: Sequence[tuple[str, float, int]]) -> None:
        """Add (metric, value, step) to a run."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.beat()
        self.client.log_batch(run_id, [Metric(key(name), value, now, step) for name, value, step in points])

    def inputs(self, run_id: str, datasets: Sequence[Dataset]) -> None:
        """Say what data a run read; a server that knows no datasets is left without."""
        from mlflow.entities import Dataset as Named
        from mlflow.entities import DatasetInput, InputTag

        read = [
            DatasetInput(
                Named(key(d.name)[:MAX_NAME], d.digest[:MAX_DIGEST], "lorae", json.dumps({"name": d.name})),
                [InputTag("mlflow.data.context", d.context)],
            )
            for d in datasets
        ]
        self.beat()
        try:
            self.client.log_inputs(run_id, read)
        except Exception as error:
            self.leave_out(run_id, f"datasets: {type(error).__name__}: {error}")

    def log_files(self, run_id: str, folder: str, place: str) -> None:
        """Store a folder's files with a run; if that is impossible, the run says so."""
        if self._keeps_artifacts(run_id, place):
            try:
                self.client.log_artifacts(run_id, folder, place)
            except Exception as error:  # from the server, or from an S3 client that is not installed
                self.leave_out(run_id, f"{place}: {type(error).__name__}: {error}")

    def _keeps_artifacts(self, run_id: str, what: str) -> bool:
        """Whether a run's artifacts can be written from here; if not, the run says why."""
        self.beat()
        place = self.client.get_run(run_id).info.artifact_uri or ""
        self.beat()
        if urlsplit(self.uri).scheme in ("http", "https") and urlsplit(place).scheme in ("", "file"):
            # A folder on the server's machine; on this one it may be anything
            self.leave_out(run_id, f"{what}: the server keeps artifacts in its folder {place}")
            return False
        return True

    def leave_out(self, run_id: str, what: str) -> None:
        """Record what a run does not show."""
        self.tag(run_id, {LEFT_OUT: what})
        LOG.warning("MLflow does not show of run %s: %s", run_id, shown(what)[:300])

    def tag(self, run_id: str, tags: dict[str, str]) -> None:
        for name, value in tags.items():
            self.beat()
            self.client.set_tag(run_id, name, shown(value)[:MAX_VALUE])

    def log_table(self, run_id: str, table: dict[str, Any]) -> None:
        """Store a table with a run; if that is impossible, the run says so."""
        if not self._keeps_artifacts(run_id, "trials.json"):
            return
        try:
            self.client.log_table(run_id, table, "trials.json")
        except Exception as error:  # from the server, or from an S3 client that is not installed
            self.leave_out(run_id, f"trials.json: {type(error).__name__}: {error}")

    def end(self, run_id: str, status: str) -> None:
        self.beat()
        self.client.set_terminated(run_id, status)

    def delete(self, run_id: str) -> None:
        self.beat()
        self.client.delete_run(run_id)


def open_experiment(uri: str, beat: Beat) -> Experiment:
    """The experiment, created if missing; a sqlite database's artifacts are beside it, even after a move."""
    remember(uri)
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient  # late: it takes seconds, and telemetry starts with the import

    database = database_of(uri)
    if database:
        database.parent.mkdir(parents=True, exist_ok=True)
        if _is_empty(database) or _is_half_made(database):
            _make(database)
        _relocate(database)
    beat()
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        artifacts = _artifacts(database) if database else None
        made = client.create_experiment(EXPERIMENT, artifact_location=artifacts, tags=TAGS)
        return Experiment(client, made, uri, beat)
    for name in TAGS.keys() - experiment.tags.keys():
        client.set_experiment_tag(experiment.experiment_id, name, TAGS[name])
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return Experiment(client, experiment.experiment_id, uri, beat)


# Databases in a file ---------------------------------------------------------------------------------------


def database_of(uri: str) -> Path | None:
    """The file of a sqlite URI, else None."""
    scheme, _, path = uri.partition(":///")
    return Path(path).resolve() if scheme == "sqlite" else None


def _artifacts(database: Path) -> str:
    return str(database.parent / "mlflow-artifacts")


def _make(database: Path) -> None:
    """Make a database atomically: a process killed meanwhile leaves none."""
    from mlflow import MlflowClient

    if not _is_empty(database):
        names = (database.with_name(f"{database.name}.half-made-{n}") for n in itertools.count(1))
        aside = database.replace(next(name for name in names if not name.exists()))
        LOG.warning("%s was half made when a process died; it is %s now, and made again", database, aside)
    with _scratch(database) as folder:
        made = folder / database.name
        client = MlflowClient(f"sqlite:///{made}")
        client.create_experiment(EXPERIMENT, artifact_location=_artifacts(database), tags=TAGS)
        made.replace(database)


@contextlib.contextmanager
def _scratch(database: Path) -> Iterator[Path]:
    """A new folder beside a database; folders of killed processes are removed."""
    for left in database.parent.glob(".lorae-mlflow-*"):
        if left.is_dir() and time.time() - left.lstat().st_mtime > SCRATCH_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=database.parent, prefix=".lorae-mlflow-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def _connected(database: Path) -> Iterator[sqlite3.Connection]:
    """A connection that fails on a locked database after 5 s; MLflow tries for 100 s."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        yield connection


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}


def _is_empty(database: Path) -> bool:
    with _connected(database) as connection:
        return not _tables(connection)


def _is_half_made(database: Path) -> bool:
    """Whether a database without any run or experiment but MLflow's own lacks what MLflow needs."""
    with _connected(database) as connection:
        tables = _tables(connection)
        if not tables & {"experiments", "alembic_version"}:
            return False  # another program's
        if "runs" in tables and connection.execute("SELECT count(*) FROM runs").fetchone()[0]:
            return False
        if "experiments" in tables:
            found = {name for (name,) in connection.execute("SELECT name FROM experiments")}
            if found - {"Default"}:
                return False
    return not _opens(database)


def _opens(database: Path) -> bool:
    """Whether MLflow opens a copy of a database; it would keep a connection to the database itself."""
    from mlflow import MlflowClient

    with _scratch(database) as folder:
        copy = shutil.copy(database, folder)
        try:
            MlflowClient(f"sqlite:///{copy}").search_runs(["0"])
        except Exception:  # from alembic, from sqlalchemy, or MLflow's own
            return False
    return True


def _relocate(database: Path) -> None:
    """Let the runs of a moved database find their artifacts beside it; MLflow stores absolute paths."""
    new = _artifacts(database)
    with _connected(database) as connection, connection:
        if "experiments" not in _tables(connection):
            return
        place = "SELECT artifact_location FROM experiments WHERE name = ?"
        found = connection.execute(place, (EXPERIMENT,)).fetchone()
        if not found or not found[0] or found[0] == new:
            return
        old = found[0].rstrip("/")
        moved = "UPDATE experiments SET artifact_location = ? WHERE name = ?"
        connection.execute(moved, (new, EXPERIMENT))
        moved = "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) WHERE instr(artifact_uri, ?) = 1"
        connection.execute(moved, (new, len(old) + 1, f"{old}/"))
    LOG.info("%s was moved here from %s; its runs' artifacts are looked for in %s", database, old, new)
