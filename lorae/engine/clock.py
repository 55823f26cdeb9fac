"""How long something takes, also without what other work on the machine adds to it."""

from __future__ import annotations

import time
from typing import Any

import torch


class Stopwatch:
    """Wall seconds, and process seconds: on a CPU the CPU time of all threads of this process, on a GPU the
    time between two points of its stream. It runs until `stop`.

    Args:
        num_processes: that do the same at once, each on a device of its own; their process seconds are added.
    """

    def __init__(self, device: torch.device, num_processes: int = 1) -> None:
        self._cuda, self.num_processes = device.type == "cuda", num_processes
        self._started, self._begin = time.perf_counter(), self._mark()

    def _mark(self) -> Any:
        if not self._cuda:
            return time.process_time()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def stop(self) -> Stopwatch:
        """Without waiting for the device."""
        self.seconds, self._end = time.perf_counter() - self._started, self._mark()
        return self

    @property
    def process_seconds(self) -> float:
        """Known when the device has come so far."""
        if not self._cuda:
            return self.num_processes * (self._end - self._begin)
        self._end.synchronize()
        return self.num_processes * self._begin.elapsed_time(self._end) / 1e3
