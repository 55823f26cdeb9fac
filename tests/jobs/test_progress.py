"""The progress line: what is done, what runs, and how long it will take."""

from __future__ import annotations

import io
import os
import pickle
import pty
import termios

import cloudpickle
import pytest

from jobs.bars import Bars, progress, short_names
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


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_bar_for_each_running_stack_named_by_what_varies(tiny_trial, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "140")
    stacks = (Stack(tiny_trial(), (0, 1)), Stack(tiny_trial(seed=1), (0,)))
    estimates = 2 * (Estimate(0, 0, 60.0, 20.0),)
    assert [*short_names(stacks)] == ["seed 0 x2", "seed 1 x1"]
    screen = Terminal()
    with progress(stacks, estimates, screen) as bars:
        assert isinstance(bars, Bars)
        bars.update(0, "train", 5, 10)
        drawn = {task.description: task for task in bars.drawn.tasks}
        assert drawn.keys() == {"all", "seed 0 x2"} and drawn["seed 0 x2"].fields["what"] == "train 5/10"
        assert drawn["all"].completed == bars.share() == pytest.approx(5 / 10 * 60 / 80 / 2)
        bars.update(0, "done")
        bars.update(1, "load")
        assert {task.description for task in bars.drawn.tasks} == {"all", "seed 1 x1"}
        bars.update(1, "done")
        assert [task.description for task in bars.drawn.tasks] == ["all"]
    assert "stacks 2/2, members 3/3" in screen.getvalue()
    assert screen.getvalue().count("\x1b[?25l") == screen.getvalue().count("\x1b[?25h"), "the cursor is back"


def test_the_terminal_is_given_back_when_a_sweep_is_stopped(tiny_trial, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    screen = Terminal()
    with (
        pytest.raises(KeyboardInterrupt),
        progress((Stack(tiny_trial(), (0,)),), (Estimate(0, 0, 1.0, 0.5),), screen),
    ):
        raise KeyboardInterrupt
    assert screen.getvalue().endswith("\x1b[?25h")


def test_elsewhere_lines_are_plain(tiny_trial):
    with progress((Stack(tiny_trial(), (0,)),), (Estimate(0, 0, 1.0, 0.5),), io.StringIO()) as line:
        assert type(line) is ProgressLine


def test_bars_are_pickled_without_their_terminal(tiny_trial, monkeypatch):
    """Ray Tune pickles the callback that holds them."""
    monkeypatch.setenv("TERM", "xterm-256color")
    read, write = os.openpty()
    with (
        open(write, "w") as screen,
        progress((Stack(tiny_trial(), (0,)),), (Estimate(0, 0, 1.0, 0.5),), screen) as bars,
    ):
        assert isinstance(bars, Bars) and type(pickle.loads(cloudpickle.dumps(bars))) is ProgressLine
    os.close(read)
