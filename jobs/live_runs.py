"""MLflow while a sweep runs: a run for the sweep, and below it one for each stack, with its loss and NLL.

They are a preview: when the sweep ends, `tracking.record_sweep` puts the runs of its trials in their place. A
thread writes them, from what the stacks last said, so that the sweep never waits for MLflow.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any

from jobs.attempt import Abandoned, Attempt, Beat
from jobs.bars import short_names
from jobs.mlflow_runs import PARENT, Experiment, open_experiment
from jobs.request import Watch
from jobs.tracking import default_uri, storage_id
from lorae.planning.stack import Stack
from lorae.store.store import Store
from lorae.uris import shown

LOG = logging.getLogger("lorae")
LIVE = "live"  # tag of these runs
FLUSH_SECONDS = 5.0  # between points of a curve
RETRY_SECONDS = 60.0  # after MLflow failed
CLOSE_SECONDS = 5.0  # that a sweep which has ended waits for the thread
METRICS = {  # what a stack says -> the metric, as in the runs of trials
    "train_loss": "curve/train_loss",
    "member_nll": "curve/validation_nll",
    "validation_nll": "validation_nll",
}


@dataclass
class LiveRuns:
    """What the thread has written, and what it has still to write.

    Args:
        uri: of MLflow.
        tags: of every run: the storage and the sweep.
    """

    uri: str
    tags: dict[str, str]
    latest: dict[str, tuple[str, Stack, dict[str, Any]]] = field(default_factory=dict)  # by stack
    runs: dict[str, str] = field(default_factory=dict)  # stack -> run
    written: dict[str, dict[str, Any]] = field(default_factory=dict)  # stack -> what its run shows
    parent: str | None = None
    closed: Event = field(default_factory=Event)

    def __reduce__(self) -> tuple[Any, ...]:
        """Ray Tune pickles its callbacks, to be restored from; a copy has nothing to write."""
        return LiveRuns, (self.uri, self.tags)

    def note(self, stacks: Sequence[Stack], number: int, progress: dict[str, Any]) -> None:
        """A `Watch`: remember the last that a stack said; costs nothing."""
        stack = stacks[number]
        known = self.latest.get(stack.id)
        name = known[0] if known else [*short_names(stacks)][number]
        before = known[2] if known else {}
        said = {name: value for name, value in progress.items() if value is not None}
        self.latest[stack.id] = name, stack, before | said

    def follow(self, beat: Beat, ready: Callable[[], bool]) -> None:
        """Write what is new now and then until `closed`; MLflow that fails is tried again later."""
        if not ready():
            return
        wait = FLUSH_SECONDS
        while not self.closed.wait(wait):
            wait = FLUSH_SECONDS
            try:
                self._flush(open_experiment(self.uri, beat))
            except Abandoned:
                raise
            except Exception as error:
                LOG.info("MLflow does not show the running sweep (%s)", shown(str(error))[:200])
                wait = RETRY_SECONDS

    def _flush(self, experiment: Experiment) -> None:
        if self.latest and self.parent is None:
            self._remove_old(experiment)
            name = f"{self.tags['sweep']}, running"
            self.parent = experiment.start(name, self.tags | {LIVE: "true"}, {})
        for key, (name, stack, said) in [*self.latest.items()]:
            if self.written.get(key) != said:
                self._show(experiment, key, name, stack, said)

    def _show(self, experiment: Experiment, key: str, name: str, stack: Stack, said: dict[str, Any]) -> None:
        step = int(said.get("step") or 0) if said["phase"] in ("train", "evaluate") else None
        if key not in self.runs:
            own = self.tags | {LIVE: "true", PARENT: str(self.parent), "phase": said["phase"]}
            params = {factor: str(value) for factor, value in stack.trial.factors().items()}
            params |= {"members": str(len(stack.members))}
            self.runs[key] = experiment.start(name, own, params)
        found = {METRICS[n]: v for n, v in said.items() if n in METRICS and math.isfinite(v)}
        if step is not None and found:
            experiment.log(self.runs[key], [(metric, float(value), step) for metric, value in found.items()])
        if said["phase"] != self.written.get(key, {}).get("phase"):
            experiment.tag(self.runs[key], {"phase": said["phase"]})
        if said["phase"] == "done":
            experiment.end(self.runs[key], "FINISHED")
        self.written[key] = said

    def _remove_old(self, experiment: Experiment) -> None:
        """Of a sweep that was killed."""
        for run in experiment.runs(self.tags | {LIVE: "true"}):
            experiment.delete(run.info.run_id)


@contextlib.contextmanager
def live_runs(
    store: Store, sweep: str, tracking_uri: str | None, ready: Callable[[], bool]
) -> Iterator[Watch | None]:
    """While the block runs, MLflow shows what the yielded function is told; None if there is no MLflow.

    Args:
        ready: called once in the thread; whether MLflow can be written. It may wait.
    """
    try:
        tags = {"storage_id": storage_id(store.storage), "storage": store.storage.uri, "sweep": sweep}
        live = LiveRuns(tracking_uri or default_uri(store), tags)
    except (ValueError, OSError):  # the sweep says so where it records its runs
        yield None
        return
    attempt = Attempt(lambda beat: live.follow(beat, ready))
    try:
        yield live.note
    finally:
        live.closed.set()
        with contextlib.suppress(Exception):
            attempt.result(CLOSE_SECONDS, CLOSE_SECONDS)
