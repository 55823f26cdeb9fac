"""Progress in a terminal: a bar for each stack that runs, what varies in its name, and one for all with the
time that remains."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TextIO

from jobs.progress import ProgressLine, stack_label
from lorae.planning.estimate import Estimate
from lorae.planning.stack import Stack

MAX_BARS = 8  # of stacks at once


@contextlib.contextmanager
def progress(
    stacks: tuple[Stack, ...], estimates: tuple[Estimate, ...], stream: TextIO | None = None
) -> Iterator[ProgressLine]:
    """How stacks get on: bars where there is a terminal, plain lines elsewhere. The end of the block gives
    the terminal back.

    Args:
        stream: None for the standard error of the moment.
    """
    screen = stream or sys.stderr
    if not screen.isatty() or os.environ.get("TERM") == "dumb":
        yield ProgressLine(stacks, estimates, screen)
        return
    bars = Bars(stacks, estimates, screen)
    try:
        yield bars
    finally:
        bars.close()


class Bars(ProgressLine):
    """A `ProgressLine` that draws; arguments as there."""

    def __init__(self, stacks: tuple[Stack, ...], estimates: tuple[Estimate, ...], stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

        super().__init__(stacks, estimates, stream)
        self.names = [*short_names(stacks)]
        texts = TextColumn("{task.description}"), TextColumn("{task.fields[what]}")
        columns = texts[0], BarColumn(30), TaskProgressColumn(), texts[1]
        self.drawn = Progress(*columns, console=Console(file=stream), refresh_per_second=4)
        self.total = self.drawn.add_task("all", total=1.0, what="")
        self.tasks: dict[int, TaskID] = {}
        self.drawn.start()

    def close(self) -> None:
        """Leave the last state on the screen, and the cursor as it was."""
        if self.stacks:
            self._print()
        self.drawn.stop()

    def _print(self, final: bool = False, note: str = "") -> None:
        for number, fraction in enumerate(self.fractions):
            running = 0 < fraction < 1 or self.phases[number] not in ("waiting", "done")
            if number not in self.tasks and running and len(self.tasks) < MAX_BARS:
                self.tasks[number] = self.drawn.add_task(self.names[number], total=1.0, what="")
            if number in self.tasks:
                self.drawn.update(self.tasks[number], completed=fraction, what=self.phases[number])
            if number in self.tasks and fraction == 1.0:
                self.drawn.remove_task(self.tasks.pop(number))
        told = " ".join(filter(None, [self.counts(), note]))
        self.drawn.update(self.total, completed=self.share(), what=told)


def short_names(stacks: Sequence[Stack]) -> Iterator[str]:
    """What tells each stack from the others: the factors that vary, and its number of members."""
    factors = [stack.trial.factors() for stack in stacks]
    varying = [name for name in factors[0] if len({str(f[name]) for f in factors}) > 1] if stacks else []
    varying = [name for name in varying if name not in ("members", "combine", "targets", "init")]
    for stack, of_it in zip(stacks, factors):
        told = " ".join(f"{name} {of_it[name]}" for name in varying[:4]) or of_it["task"]
        yield (
            f"{told} x{len(stack.members)}"
            if stack.members and not (stack.soup or stack.pool or stack.beside)
            else stack_label(stack)
        )
