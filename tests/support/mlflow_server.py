"""A real MLflow server."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all tests, since making one takes seconds; storages are told apart in it."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/new/mlflow.db"


@dataclass(frozen=True)
class Server:
    uri: str
    pid: int  # of a process group of its own


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A real tracking server with a database and artifacts of its own, on localhost."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    words = f"server --backend-store-uri sqlite:///{tmp_path}/server.db --workers 1".split()
    place = ["--artifacts-destination", str(tmp_path / "artifacts"), "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *words, *place, "--port", address.rpartition(":")[2]],
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 180
        while not answers(f"http://{address}/health"):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        yield Server(f"http://{address}", process.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def server(running: Server) -> str:
    return running.uri


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False
