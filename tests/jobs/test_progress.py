"""The progress line: what is done, what runs, and how long it will take."""

from __future__ import annotations

import io
import os
import pty
import termios

import pytest

from jobs.progress import ProgressLine
from lorae.planning.estimate import Estimate
from lorae.planning.stack import Stack


def test_plain_lines_tell_stacks_members_and_steps(tiny_trial, monkeypatch):
    stacks = (Stack(tiny_trial(), (0, 1, 2)), Stack(tiny_trial(seed=1), (0,)))
    estimates = (Estimate(0, 0, 60.0, 20.0), Estimate(0, 0, 20.0, 0.0))
    clock = [0.0]
    monkeypatch.setattr("jobs.progress.time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    line = ProgressLine(stacks, estimates, stream)
    clock[0] = 30.0
    line.update(0, "train", 15, 30)
    assert stream.getvalue().strip() == (
        "0:30 stacks 0/2, members 0/4, about 1:10 left | colours lora none seed 0 x3: train 15/30"
    )
    line.update(0, "train", 16, 30)
    assert len(stream.getvalue().splitlines()) == 1, "no flood of lines where there is no terminal"
    clock[0] = 60.0
    line.update(0, "predict", 50, 100)
    assert stream.getvalue().strip().endswith("about 0:25 left | colours lora none seed 0 x3: predict 50 %")
    clock[0] = 30.0
    line.update(0, "done")
    assert "stacks 1/2, members 3/4, about 0:07 left" in stream.getvalue().splitlines()[-1]
    line.update(1, "done")
    assert stream.getvalue().splitlines()[-1] == "0:30 stacks 2/2, members 4/4"


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (100, "0:00 stacks 0/5, members 0/5 | colours lora none seed 0 x1: load | 4 more"),
        (60, "0:00 stacks 0/5, members 0/5 | 5 more"),
        (10, "0:00 stac"),
        (0, "0:00 stacks 0/5, members 0/5 | colours lora none seed 0 x1: load | 4 more"),  # not known: 80
    ],
)
def test_the_line_keeps_to_one_row_of_the_terminal(tiny_trial, columns, shown):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    screen = io.StringIO()
    screen.isatty, screen.fileno = lambda: True, lambda: theirs
    stacks = tuple(Stack(tiny_trial(seed=seed), (0,)) for seed in range(5))
    line = ProgressLine(stacks, 5 * (Estimate(0, 0, 60.0, 20.0),), screen)
    for number in range(5):
        line.update(number, "load")
    os.close(ours), os.close(theirs)
    rows = screen.getvalue().split("\r\x1b[K")
    assert rows[-1] == shown
    assert all(len(row) < (columns or 80) for row in rows)
