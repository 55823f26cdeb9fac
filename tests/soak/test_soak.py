"""The soak of hostile inputs finds what it looks for, and finds nothing in some inputs of each parser."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import soak_inputs
from soak_inputs import Parser, soak
from victims import PYTHON_PATH

pytestmark = pytest.mark.process


def same(content: bytes, _: object) -> bytes:
    return content


def ending(content: bytes, _: Path) -> None:
    os.abort()


def busy(content: bytes, _: Path) -> None:
    until = time.process_time() + 1.6
    while time.process_time() < until:
        pass


def asleep(content: bytes, _: Path) -> None:
    time.sleep(60)


def large(content: bytes, _: Path) -> None:
    bytearray(80_000_000)


def unnamed(content: bytes, _: Path) -> None:
    raise ValueError("something is wrong")


def broken(content: bytes, _: Path) -> None:
    raise KeyError("step")


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (ending, "signal 6"),
        (busy, "2 s"),
        (asleep, "no end within"),
        (large, "MB"),
        (unnamed, "no file named"),
        (broken, "KeyError: 'step'"),
    ],
)
def test_each_kind_of_fault_is_found_and_its_neighbours_are_parsed(
    read: Callable[[bytes, Path], None], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak_inputs, "CPU_SECONDS", 1.0)
    monkeypatch.setattr(soak_inputs, "WAIT_SECONDS", 3.0 if read is asleep else 60.0)
    monkeypatch.setattr(soak_inputs, "MEMORY_BYTES", 60_000_000)
    sound = Parser(lambda content, _: content, (b"x",), same)
    hostile = Parser(read, (b"x",), same, "a.json")
    monkeypatch.setattr(soak_inputs, "parsers", lambda: {"before": sound, "at": hostile, "after": sound})
    counts, faults = soak(3, 0)
    assert counts == {("before", "read"): 1, ("at", "fault"): 1, ("after", "read"): 1}
    assert list(faults) == [1] and said in faults[1]


def test_an_input_is_the_same_whenever_it_is_made() -> None:
    known = soak_inputs.parsers()
    first, again = ([soak_inputs.hostile(known, seed, 5 + n) for n in range(19)] for seed in (3, 3))
    assert first == again != [soak_inputs.hostile(known, 4, 5 + n) for n in range(19)]


@pytest.mark.slow
def test_some_inputs_of_each_parser() -> None:
    words = [sys.executable, soak_inputs.__file__, "--number", "190", "--seed", "11"]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": PYTHON_PATH})
    assert done.returncode == 0 and "190 inputs of seed 11" in done.stdout, done.stdout + done.stderr
    assert {line.split()[0] for line in done.stdout.splitlines()[:-1]} == set(soak_inputs.parsers())
