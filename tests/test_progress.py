"""The progress line: what is done, what runs, and how long it will take."""

from __future__ import annotations

import io

from jobs.progress import ProgressLine
from lorae.plan import Estimate
from lorae.stack import Stack


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
    line.update(0, "done")
    assert "stacks 1/2, members 3/4, about 0:07 left" in stream.getvalue().splitlines()[-1]
    line.update(1, "done")
    assert stream.getvalue().splitlines()[-1] == "0:30 stacks 2/2, members 4/4"
