"""Time functions in separate processes, so that each has its own memory and settings."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measured:
    """What a function returned, its seconds, and its process's peak resident memory, imports included."""

    result: Any
    seconds: float
    peak_bytes: int


def apart(function: Callable[..., Any], *arguments: Any, environment: Mapping[str, str] = {}) -> Measured:
    """Call a top-level function in a fresh process.

    Args:
        environment: variables that the process starts with, besides those of this one.
    """
    with _fresh() as process, _environment(environment):
        return process.submit(_measured, function, arguments).result()


class Rounds:
    """A generator in its own process, one value at a time; a context manager that ends the process.

    The sides of a comparison take turns this way, each with its model loaded: a machine that gets slower or
    faster does so for all. The first value is started at once, so that sides load their models together;
    `wait` for it before measuring anything.

    Args:
        function: a top-level function that returns the generator.
        environment: variables that the process starts with, besides those of this one.
    """

    def __init__(
        self, function: Callable[..., Iterator[Any]], *arguments: Any, environment: Mapping[str, str] = {}
    ) -> None:
        self._process = _fresh()
        with _environment(environment):
            self._first: Future[Any] | None = self._process.submit(_open, function, arguments)

    def __enter__(self) -> Rounds:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.shutdown()

    def wait(self) -> None:
        """Wait for the first value."""
        if self._first:
            self._first.result()

    def __next__(self) -> Any:
        first, self._first = self._first, None
        return first.result() if first else self.call(_next)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a top-level function in that process."""
        return self._process.submit(function, *arguments).result()


_generators: list[Iterator[Any]] = []  # of this process: the one opened by `_open`


def _open(function: Callable[..., Iterator[Any]], arguments: tuple[Any, ...]) -> Any:
    _generators[:] = [function(*arguments)]
    return _next()


def _next() -> Any:
    return next(_generators[0])


def _fresh() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _leave_stdout)


def _leave_stdout() -> None:
    """Redirect what libraries print in the process to stderr; stdout is the caller's, for `--json`."""
    os.dup2(2, 1)


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Give processes started in the block these variables; an allocator reads its own only at the start."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _measured(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Measured:
    started = time.perf_counter()
    result = function(*arguments)
    return Measured(result, time.perf_counter() - started, peak_bytes())


def peak_bytes() -> int:
    """Peak of this process's resident memory."""
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _status("VmHWM")  # Linux's ru_maxrss also counts the parent before exec


def resident_bytes() -> int:
    """This process's current resident memory, or its peak if only that is known."""
    return _status("VmRSS") if sys.platform == "linux" else peak_bytes()


def forget_peak() -> None:
    """Reset `peak_bytes`; only possible on Linux."""
    if sys.platform == "linux":
        with open("/proc/self/clear_refs", "w") as stream:
            stream.write("5")


def _status(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))
