"""Texts and answers of test examples by id. A storage has ids alone; the texts are in the task's own files.

A task's files are its test set if they give the prediction set's name, which is a hash of their content, so
the texts of other data are never shown.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from analysis.cells import Cell
from analysis.data import Trials
from lorae import tasks as known_tasks
from lorae.identity import spec_of
from lorae.sources import is_here
from lorae.store.names import member_folder
from lorae.tasks.base import Example, Task
from lorae.tasks.data import local_copy
from lorae.tasks.scoring import SCORINGS

MAX_CHARACTERS = 280  # of a text that is shown


@dataclass(frozen=True)
class Shown:
    """How examples are shown.

    Args:
        examples: by id; empty where the task's files are not here.
        options: names of the classes that all examples share.
    """

    examples: Mapping[str, Example] = field(default_factory=dict)
    options: Sequence[str] = ()
    note: str = ""

    def text(self, name: str) -> str:
        """What was asked, or the example's id."""
        example = self.examples.get(name)
        asked = [example.question, example.pair] if example and not example.media else []
        words = " ".join(" / ".join(filter(None, asked)).split())
        cut = words if len(words) <= MAX_CHARACTERS else f"{words[: MAX_CHARACTERS - 1]}…"
        return cut or name

    def answer(self, name: str, label: int) -> str:
        """The name of a class of an example, or its number."""
        example = self.examples.get(name)
        options = example.options if example else self.options
        return options[label] if 0 <= label < len(options) else f"class {label}"


def shown_examples(trials: Trials, cell: Cell, tasks: Sequence[Task] = ()) -> Shown:
    """The test examples of a cell, as far as the storage and the given tasks know them.

    Args:
        tasks: with their sources; one whose test set is another has no part.
    """
    for task in tasks:
        if found := _of_task(task, cell):
            return Shown({example.id: example for example in found})
    named = "Their texts: `lorae report --data-root DIR`, or `--task my_tasks.py:MyTask` of your own."
    return Shown(options=_options(trials, cell), note=named)


def tasks_of(trials: Trials, data_root: Path | None) -> list[Task]:
    """Tasks of lorae that a sweep's rows name and whose files are on this machine; nothing is fetched."""
    wanted = {json.dumps(json.loads(row["recipe"])["task"]): None for row in trials.rows if row["members"]}
    found = []
    for task in (task for content in map(json.loads, wanted) for task in _named(content)):
        copy = local_copy(data_root, task.name, task.home) if data_root else None
        if copy or is_here(task.home):
            found.append(replace(task, source=copy or task.home))
    return found


def _named(content: Mapping[str, Any]) -> Iterator[Task]:
    """Tasks of lorae by what a recipe says of them."""
    for kind in vars(known_tasks).values():
        if isinstance(kind, type) and issubclass(kind, Task) and kind is not Task:
            with contextlib.suppress(TypeError, ValueError):  # another task's fields, or its scoring
                task = kind(scoring=spec_of(content["scoring"], SCORINGS), **content.get("fields", {}))
                if task.name == content["task"]:
                    yield task


def _of_task(task: Task, cell: Cell) -> Sequence[Example]:
    """The task's test examples if they are the cell's; else none."""
    content = json.loads(cell.rows[0]["recipe"])["task"]
    scoring = spec_of(content["scoring"], SCORINGS)
    with contextlib.suppress(ValueError):  # a scoring that the task cannot have
        asked = replace(task, scoring=scoring, option_seed=content.get("option_seed"))
        for size in (None, cell.rows[0]["num_examples"]):
            same = replace(asked, num_test=size)
            if same.eval_set("test") == cell.test_set:
                return same.examples("test")
    return ()


def _options(trials: Trials, cell: Cell) -> Sequence[str]:
    """Names of the classes, by the record of a member; older members do not say."""
    shape = {"options": _names, "classes": _names}
    for member in cell.rows[0]["member_ids"][:1]:
        with contextlib.suppress(ValueError):
            record = trials.store.record(member_folder(member), shape)
            return record.get("options") or record.get("classes") or ()
    return ()


def _names(value: Any) -> bool:
    """A shape: names, or nothing."""
    return value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value))
