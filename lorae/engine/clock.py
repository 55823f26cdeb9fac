"""Wall time, and time without the influence of other work on the machine."""

from __future__ import annotations

import time
from typing import Any

import torch


class Stopwatch:
    """Wall seconds, and process seconds: on a CPU the CPU time of all threads of this process, on a GPU the
    time between two events on its stream. It runs until `stop`.

    Args:
        num_processes: processes that do the same in parallel, each on its own device; their process seconds
            are added.
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
        """Stop, without waiting for the device."""
        self.seconds, self._end = time.perf_counter() - self._started, self._mark()
        return self

    @property
    def process_seconds(self) -> float:
        """Process seconds; on a GPU, waits until the device has reached the end."""
        if not self._cuda:
            return self.num_processes * (self._end - self._begin)
        self._end.synchronize()
        return self.num_processes * self._begin.elapsed_time(self._end) / 1e3
