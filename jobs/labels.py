"""Specs by the labels that tables call them: `--set regularizers=kl-0.5`, `method=vera`, `task=TREC`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import Any

from lorae import tasks
from lorae.methods import METHODS
from lorae.regularizers import REGULARIZERS
from lorae.tasks import Task
from lorae.tasks.scoring import SCORINGS

KINDS: dict[str, Sequence[type]] = {"regularizers": REGULARIZERS, "method": METHODS, "scoring": SCORINGS}


def spec_of_label(axis: str, label: str) -> Any | None:
    """The value of an axis that has this label, all else at its default; None if there is none.

    Args:
        axis: a field of Trial: "regularizers" (several joined by +), "method", "task" (its class's name), or
            "task.scoring".
    """
    field = axis.rpartition(".")[2]
    if field == "task":
        kind = getattr(tasks, label, None)
        return kind() if isinstance(kind, type) and issubclass(kind, Task) and kind is not Task else None
    if field == "regularizers":
        parts = [] if label == "none" else label.split("+")
        specs = [_of_kinds(REGULARIZERS, part) for part in parts]
        return None if None in specs else tuple(specs)
    return _of_kinds(KINDS.get(field, ()), label)


def forms(axis: str) -> list[str]:
    """How labels of an axis look, for a message."""
    field = axis.rpartition(".")[2]
    if field == "task":
        return sorted(
            n for n, v in vars(tasks).items() if isinstance(v, type) and issubclass(v, Task) and v != Task
        )
    return sorted(made.label for kind in KINDS.get(field, ()) if (made := _made(kind, ())) is not None)


def _of_kinds(kinds: Sequence[type], label: str) -> Any | None:
    """The spec of one of the kinds whose label it is; numbers in the label are its first fields."""
    words = re.findall(r"(?<![a-z\d.])-?\d+\.?\d*(?:e-?\d+)?|(?<=x)\d+\.?\d*(?:e-?\d+)?", label)
    numbers = [int(word) if word.isdigit() else float(word) for word in words]
    for kind in kinds:
        for values in ((), numbers, [float(n) for n in numbers], [abs(n) for n in numbers]):
            made = _made(kind, values)
            if made is not None and made.label == label:
                return made
    return None


def _made(kind: type, values: Sequence[float]) -> Any | None:
    with contextlib.suppress(TypeError, ValueError):
        return kind(*values)
    return None
