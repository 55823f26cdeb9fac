"""Progress for a person to follow: one rewritten line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from typing import Any, TextIO

from lorae.combinations import COMBINATIONS
from lorae.planning.estimate import Estimate
from lorae.planning.stack import Stack

PLAIN_SECONDS = 15.0


class ProgressLine:
    """Stacks done and running, members, steps and the remaining time.

    Args:
        stacks: the stacks to run, with `estimates` of their relative length.
        stream: where to write; None for the current standard error.
    """

    def __init__(
        self, stacks: tuple[Stack, ...], estimates: tuple[Estimate, ...], stream: TextIO | None = None
    ) -> None:
        self.stacks, self.stream = stacks, stream or sys.stderr
        self.estimates = estimates
        self.fractions = [0.0] * len(stacks)
        self.phases = ["waiting"] * len(stacks)
        self.started = self.printed = time.monotonic()

    def __reduce__(self) -> tuple[Any, ...]:
        """Ray Tune pickles its callbacks, to be restored from; a terminal cannot be pickled, so a copy shows
        nothing."""
        return ProgressLine, ((), ())

    def update(self, stack: int, phase: str, step: int = 0, num_steps: int = 0) -> None:
        """Update a stack: its phase, and how far it is in training (steps) or predicting (per cent)."""
        trained = self.estimates[stack].train_seconds / self.estimates[stack].seconds
        within = step / num_steps if num_steps else 0.0
        predicted = 0.99 if self.stacks[stack].answer_sets() else 1.0  # before texts are written
        predicting = min(predicted, trained + (1 - trained) * within)
        shares = {"train": trained * within, "predict": predicting, "done": 1.0}
        self.fractions[stack] = max(self.fractions[stack], shares.get(phase, 0.0))
        self.phases[stack] = phase
        if num_steps:
            self.phases[stack] += f" {step} %" if phase in ("predict", "write") else f" {step}/{num_steps}"
        if phase == "done":
            self._print(final=True)
        elif self.stream.isatty() or time.monotonic() - self.printed >= PLAIN_SECONDS:
            self._print()

    def waiting(self) -> None:
        """Say now and then that nothing runs; an autoscaling cluster takes minutes to start a node."""
        if time.monotonic() - self.printed >= PLAIN_SECONDS and min(self.fractions) < 1:
            self._print(
                note="waiting for a worker (`ray status` shows what is free, and what is being started)"
            )

    def line(self, columns: int | None = None, note: str = "") -> str:
        """The current line; on a terminal, with as many of the running stacks as fit in its columns.

        A longer line would wrap, and overwriting it would leave its first rows behind.
        """
        running = [
            f"{stack_label(s)}: {phase}"
            for s, phase, f in zip(self.stacks, self.phases, self.fractions)
            if phase not in ("waiting", "done") and f < 1
        ]
        head = [self.counts(), *filter(None, [note])]
        width, line = columns or sys.maxsize, ""
        for num in range(len(running), -1, -1):
            more = [f"{len(running) - num} more"] if num < len(running) else []
            line = " | ".join([*head, *running[:num], *more])
            if len(line) < width:
                return line
        return line[: width - 1]

    def share(self) -> float:
        """Of all the work, what is done."""
        seconds = [e.seconds for e in self.estimates]
        return sum(s * f for s, f in zip(seconds, self.fractions)) / sum(seconds)

    def counts(self) -> str:
        """Time that has passed, stacks and members that are done, time that remains."""
        total, elapsed = self.share(), time.monotonic() - self.started
        remaining = f", about {_clock(elapsed * (1 - total) / total)} left" if 0.03 < total < 1 else ""
        sizes = [0 if s.soup or s.pool else s.num_members for s in self.stacks]
        members = sum(size for size, f in zip(sizes, self.fractions) if f == 1.0)
        done = sum(f == 1.0 for f in self.fractions)
        counts = f"stacks {done}/{len(self.stacks)}"
        counts += f", members {members}/{sum(sizes)}" if any(sizes) else ""
        return f"{_clock(elapsed)} {counts}{remaining}"

    def _print(self, final: bool = False, note: str = "") -> None:
        self.printed = time.monotonic()
        if self.stream.isatty():
            columns = os.get_terminal_size(self.stream.fileno()).columns or 80  # 0: unknown
            self.stream.write(f"\r\x1b[K{self.line(columns, note)}" + ("\n" if final else ""))
        else:
            self.stream.write(self.line(note=note) + "\n")
        self.stream.flush()


def stack_label(stack: Stack) -> str:
    """A stack in a few words."""
    factors = stack.trial.factors()
    label = f"{factors['task']} {factors['method']} {factors['regularizers']} seed {factors['seed']}"
    if stack.soup:
        return f"{label} {COMBINATIONS[stack.soup].soup} of {len(stack.members)}"
    if stack.pool:
        return f"{label} texts of {len(stack.members)}"
    if stack.beside:
        return f"{label} and {len(stack.beside)} beside it x{stack.num_members}"
    return f"{label} x{len(stack.members)}" if stack.members else f"{factors['task']} backbone"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes}:{seconds:02d}"
