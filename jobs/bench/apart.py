"""A function timed in a process of its own, so that its memory is its own."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measured:
    """What a function returned, its seconds, and its process's peak of resident memory, imports included."""

    result: Any
    seconds: float
    peak_bytes: int


def apart(function: Callable[..., Any], *arguments: Any) -> Measured:
    """Call a top-level function in a fresh process."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, fresh) as process:
        return process.submit(_measured, function, arguments).result()


def _measured(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Measured:
    started = time.perf_counter()
    result = function(*arguments)
    return Measured(result, time.perf_counter() - started, _peak_bytes())


def _peak_bytes() -> int:
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open("/proc/self/status") as status:  # Linux's ru_maxrss counts the parent before exec too
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
