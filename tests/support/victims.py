"""Processes that a test may kill, and a training that says where it is. They are forked from a server that
has torch loaded, so that each costs little."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from lorae.planning.stack import Stack
from lorae.store.names import WEIGHTS
from lorae.store.storage import Storage
from lorae.store.store import Store

SUPPORT = Path(__file__).parent
PYTHON_PATH = f"{SUPPORT.parents[1]}:{SUPPORT}"  # of processes that import lorae and these helpers
LOG, STEP_SECONDS = "LORAE_TEST_LOG", "LORAE_TEST_STEP_SECONDS"
CHECKPOINT_SECONDS = "LORAE_TEST_CHECKPOINT_SECONDS"
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["lorae.engine.run", "jobs.driver", "mlflow.tracking", "transformers.models.llama.modeling_llama"]
)

SWEEP_FILE = """
from toys import Colours
from victims import Watched
from lorae.methods import Lora
from lorae.regularizers import KL
from lorae.sources import Files
from lorae.trial import AdamW, Budget, Sweep, Trial
SWEEP = Sweep(
    base=Trial(
        backbone=Files({backbone!r}), task=Colours(), method=Lora(rank=4), optimizer=AdamW(lr=1e-2),
        budget=Budget(batch_size=4, steps={steps}), members=2, precision="fp32",
    ),
    axes={{"regularizers": [(KL(Watched(0.1)),), (KL(Watched(0.5)),)]}},
)
"""


class Watched(float):
    """A beta of KL that appends a line `<pid> <beta>` to the log for each step of training, which it slows
    down."""

    def __new__(cls, beta: float) -> Watched:
        if seconds := os.environ.get(CHECKPOINT_SECONDS):  # in whatever process the stack is about to run
            from lorae.engine.run import run_stack

            run_stack.__kwdefaults__["checkpoint_seconds"] = float(seconds)
        return super().__new__(cls, beta)

    def __mul__(self, other: Any) -> Any:
        if LOG in os.environ:
            append(Path(os.environ[LOG]), f"{os.getpid()} {float(self)}")
            end = time.monotonic() + float(os.environ.get(STEP_SECONDS, "0.01"))
            while (left := end - time.monotonic()) > 0:  # a signal just before a sleep waits for its end
                time.sleep(min(left, 0.1))
        return float(self) * other


def append(log: Path, line: str) -> None:
    with log.open("a") as stream:
        stream.write(line + "\n")


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def printed(log: Path) -> str:
    """What the process of a log has printed."""
    return "\n".join(lines(log.with_suffix(".err")))


def stack_process(stack: Stack, storage: Path, log: Path, **settings: object) -> BaseProcess:
    """`run_stack`, checkpointing at every step; each step, phase and stored entry is a line of the log."""
    process = SERVER.Process(target=_run_stack, args=(stack, str(storage), log), kwargs=settings)
    process.start()
    return process


def _run_stack(
    stack: Stack, storage: str, log: Path, retry_seconds: float = 60.0, texts_at_once: int | None = None
) -> None:
    from lorae.engine.run import run_stack

    if texts_at_once:
        _note_texts(texts_at_once, log)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the tests were started with
    _redirect(log.with_suffix(".err"))
    Storage.retry_seconds = retry_seconds
    Storage.write = _noting(Storage.write, log)
    run_stack(
        stack,
        storage,
        num_threads=1,
        checkpoint_seconds=0.0,
        on_progress=lambda p: append(log, f"{p.phase} {p.step}"),
    )


def _note_texts(at_once: int, log: Path) -> None:
    """Keep texts every few examples; each example whose texts members write is a line of the log."""
    import lorae.engine.answers as engine

    own_texts = engine.own_texts

    def noting(backbone: Any, scoring: Any, examples: Any, kind: str, streams: Any = None) -> Any:
        for example in examples if streams else ():
            append(log, f"wrote {example.id}")
        return own_texts(backbone, scoring, examples, kind, streams)

    engine.AT_ONCE, engine.own_texts = at_once, noting


def _noting(write: Callable[..., None], log: Path) -> Callable[..., None]:
    @functools.wraps(write)
    def noting(storage: Storage, name: str, content: bytes) -> None:
        write(storage, name, content)
        folder, _, file = name.rpartition("/")
        if file == "DONE.json":
            append(log, f"stored {folder} {json.loads(content)['written']}")

    return noting


def lorae_process(words: tuple[object, ...], log: Path, retry_seconds: float = 60.0) -> BaseProcess:
    """The command line; what it prints is in the log's `.err`."""
    environment = dict(os.environ) | {LOG: str(log)}  # the server's is as old as the server
    process = SERVER.Process(target=_lorae, args=([str(w) for w in words], log, retry_seconds, environment))
    process.start()
    return process


def _lorae(words: list[str], log: Path, retry_seconds: float, environment: dict[str, str]) -> None:
    import torch

    from jobs.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the tests were started with
    _redirect(log.with_suffix(".err"))
    os.environ.update(environment)
    torch.set_num_threads(1)  # as many as a stack gets under Ray on two CPUs
    Storage.retry_seconds = retry_seconds
    sys.exit(main(words))


@dataclass(frozen=True)
class Command:
    """A command line that runs, and the files that it prints to."""

    process: BaseProcess
    out: Path
    err: Path

    def finished(self, code: int) -> tuple[dict[str, Any], str]:
        """The JSON that it has printed, and its messages, once it has ended with this exit code."""
        ended = exit_code(self.process)
        out, err = self.out.read_text(), self.err.read_text()
        assert ended == code, err
        return (json.loads(out) if out.strip() else {}), err


def lorae(*words: object, data_root: Path, num_threads: int | None = None) -> Command:
    """`lorae WORDS` in a process of its own."""
    folder = Path(tempfile.mkdtemp(prefix="command-", dir=data_root))
    environment = os.environ | {"PYTHONPATH": PYTHON_PATH, "LORAE_DATA_ROOT": str(data_root)}
    given = ([str(w) for w in words], folder / "out", folder / "err", dict(environment), num_threads)
    process = SERVER.Process(target=_command, args=given)
    process.start()
    return Command(process, folder / "out", folder / "err")


def _command(
    words: list[str], out: Path, err: Path, environment: dict[str, str], num_threads: int | None
) -> None:
    import torch

    from jobs.cli import main

    _redirect(out, descriptors=(1,))
    _redirect(err, descriptors=(2,))
    os.environ.update(environment)
    if num_threads:
        torch.set_num_threads(num_threads)
    sys.exit(main(words))


def _redirect(path: Path, descriptors: Sequence[int] = (1, 2)) -> None:
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in descriptors:
        os.dup2(opened, descriptor)


def wait_until(condition: Callable[[], object], process: BaseProcess | None = None) -> None:
    """Wait until the condition holds; fails after four minutes, or if the process has ended before."""
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline, "waited for four minutes"
        assert process is None or process.is_alive() or condition(), f"ended with {process.exitcode}"
        time.sleep(0.002)


def exit_code(process: BaseProcess, seconds: float = 240) -> int | None:
    """Exit code of a process once it has ended; None if it takes longer."""
    process.join(seconds)
    return process.exitcode


def contents(storage: Path) -> dict[str, bytes]:
    """Adapters and predictions of all members that are stored, by path."""
    store, found = Store(str(storage)), {}
    for member_id in store.storage.names("members"):
        assert store.is_member(member_id) and store.damage(f"members/{member_id}") is None
        folder = storage / "members" / member_id
        for path in [folder / WEIGHTS, *folder.glob("predictions/*.parquet")]:
            found[str(path.relative_to(storage))] = path.read_bytes()
    return found
