"""One Tune trial: one stack in a thread of its worker, so that it can report and be asked to stop."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict
from threading import Semaphore
from typing import Any

from ray import tune

from jobs.cluster import Agreement
from jobs.hosts import stack_name
from jobs.zero import Zero, run_zero
from lorae.planning.stack import Progress, Stack, StackResult, Stopped
from lorae.store.storage import Storage

REPORT_SECONDS = 1.0


class StackTrial(tune.Trainable):
    """A stack, on a node that may have joined since the sweep began.

    It saves a checkpoint before its worker exits: on SIGTERM (the machine is taken away), and when Tune stops
    it (Ctrl-C, or a search). An exception is its outcome; only a worker that dies is retried.

    After an evaluation the stack waits for the search: the next `step` lets it continue, `cleanup` ends it.
    """

    def setup(  # type: ignore[override]  # Tune gives the rest by `with_parameters`
        self,
        config: dict[str, Any],
        stacks: Sequence[Stack],
        settings: dict[str, Any],
        zeros: Sequence[Zero | None],
        agreed: Agreement,
    ) -> None:
        self.stacks, self.settings, self.zeros, self.agreed = stacks, settings, zeros, agreed
        self.thread, self.worn = ThreadPoolExecutor(max_workers=1), False
        leave = signal.getsignal(signal.SIGTERM)  # Ray's own: ends the process and the thread with it

        def preempted(number: int, frame: Any) -> None:
            self.cleanup()
            assert callable(leave)
            leave(number, frame)

        signal.signal(signal.SIGTERM, preempted)
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start the worker's next stack, which finds the backbone loaded."""
        self.cleanup()  # a stack that a search has ended still waits
        error = self.running.exception()
        self.worn = error is not None and not isinstance(error, Stopped)  # CUDA may be broken in this process
        if not self.worn:
            self._start(new_config)
        return True

    def _start(self, config: dict[str, Any]) -> None:
        number = config["stack"]["number"]
        self.stack, zero = self.stacks[number], self.zeros[number]
        self.progress = self.reported = Progress("load")
        self.judged, self.stopping = Semaphore(0), False
        self.running = self.thread.submit(
            self._run, zero, on_progress=self._note, should_stop=lambda: self.stopping, **self.settings
        )

    def _run(self, zero: Zero | None, **settings: Any) -> StackResult:
        if broken := self.agreed.broken(Storage.retry_seconds):
            raise ValueError(broken)
        if zero:
            return run_zero(self.stack, zero=zero, agreed=self.agreed, **settings)
        from lorae.engine.run import run_stack  # not at the top: the sweep's driver would wait for torch too

        return run_stack(self.stack, **settings)

    def _note(self, progress: Progress) -> None:
        """Called by the stack."""
        self.progress = progress
        if progress.phase == "evaluate":
            self.judged.acquire()

    def step(self) -> dict[str, Any]:
        """How far the stack is; at the end, its outcome."""
        if self.worn:
            raise RuntimeError("a stack raised in this worker; Tune tries the next one in another")
        if self.reported.phase == "evaluate":
            self.progress = Progress("train", self.reported.step, self.reported.num_steps)
            self.judged.release()
        wait([self.running], timeout=REPORT_SECONDS)
        if not self.running.done():
            self.reported = self.progress
            return _report(self.reported)
        if error := self.running.exception():
            failed = {stack_name(self.stack): f"{type(error).__name__}: {error}"}
        else:
            failed = self.running.result().failed
        return _report(Progress("done")) | {"failed": failed, "done": True}

    def cleanup(self) -> None:
        """Let the stack save itself, and wait until it has."""
        self.stopping = True
        self.judged.release()
        wait([self.running])


def _report(progress: Progress) -> dict[str, Any]:
    """A report for Tune; a scheduler reads only reports with an objective."""
    return {name: value for name, value in asdict(progress).items() if value is not None}


class StopAll(tune.Stopper):
    """Stops all trials once `should_stop` returns true."""

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self.should_stop = should_stop

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.should_stop()
