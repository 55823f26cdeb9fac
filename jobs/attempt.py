"""Run an action that may hang, such as a request to a server, in a thread with a deadline."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Beat = Callable[[], None]  # what an action calls before each of its steps


class Abandoned(Exception):
    """Raised in an action that nobody waits for any more."""


class Attempt(Generic[T]):
    """Start an action in a daemon thread: if it hangs, the process can still exit.

    Args:
        action: called with `beat`, which it calls before each step; `beat` ends an abandoned action.
    """

    def __init__(self, action: Callable[[Beat], T]) -> None:
        self._told: queue.SimpleQueue[Callable[[], tuple[T] | None]] = queue.SimpleQueue()
        self._abandoned = threading.Event()
        threading.Thread(target=self._run, args=(action,), daemon=True).start()

    def _run(self, action: Callable[[Beat], T]) -> None:
        try:
            found = action(self._beat)
        except BaseException as error:
            self._told.put(lambda failure=error: _raise(failure))
        else:
            self._told.put(lambda: (found,))

    def _beat(self) -> None:
        if self._abandoned.is_set():
            raise Abandoned
        self._told.put(lambda: None)

    def result(self, step_seconds: float, total_seconds: float) -> T:
        """What the action returns, or raises.

        Raises:
            TimeoutError: a step took longer than `step_seconds`, or all steps from now on longer than
                `total_seconds`.
        """
        deadline = time.monotonic() + total_seconds
        while True:
            seconds = min(step_seconds, deadline - time.monotonic())
            try:
                found = self._told.get(timeout=max(0.0, seconds))()
            except queue.Empty:
                self._abandoned.set()
                limit = step_seconds if seconds == step_seconds else total_seconds
                raise TimeoutError(f"it was not done within {limit:g} s") from None
            if found:
                return found[0]


def _raise(error: BaseException) -> Any:
    raise error
