"""Run sweeps as separate commands on the CPU, start-up included."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from jobs.bench.setting import environment
from lorae.trial import Sweep

ON_THE_CPU = {
    "CUDA_VISIBLE_DEVICES": "",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # listens on 127.0.0.1 only
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def sweep_file(folder: Path, sweep: Sweep) -> Path:
    """Write a sweep to a file that both sides read."""
    folder.mkdir(parents=True)
    task = type(sweep.base.task)
    path = folder / "bench.py"
    path.write_text(
        "from lorae.methods import *\nfrom lorae.regularizers import *\nfrom lorae.sources import *\n"
        "from lorae.tasks.base import *\nfrom lorae.trial import *\n"
        f"from {task.__module__} import {task.__name__}\n\nSWEEP = {sweep!r}\n"
    )
    return path


def command(words: list[str]) -> float:
    """Seconds of `python -m WORDS`.

    Raises:
        RuntimeError: it failed; the message has its stderr.
    """
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *words],
        capture_output=True,
        text=True,
        env=os.environ | environment() | ON_THE_CPU,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} exited with {done.returncode}:\n{done.stderr[-2000:]}")
    return time.perf_counter() - started
