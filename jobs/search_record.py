"""What the stacks of a search reported, and which of them were ended. It is kept in the storage, so that a
repeated command judges against the same reports."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lorae.identity import canonical
from lorae.planning.stack import Stack
from lorae.results import Pruned
from lorae.search import EarlyEnd
from lorae.store.store import Store
from lorae.untrusted import MAX_JSON_BYTES, count, json_object

if TYPE_CHECKING:
    pass


LOG = logging.getLogger("lorae")
TIME, OBJECTIVE = "evaluation", "validation_nll"  # fields of a stack's reports


def _any_number(value: Any) -> bool:
    """A shape: any number, including that of a diverged stack."""
    return type(value) in (int, float)


_REPORT = {"step": count, "num_steps": count, TIME: count, OBJECTIVE: _any_number}


_STACK = {"evaluated_on": str, "reports": [_REPORT], "ended": bool}


class SearchRecord:
    """What each stack reported and which stacks were ended: `sweeps/<name>/search.json`.

    A damaged record, or one of other search settings, is ignored.
    """

    def __init__(self, store: Store, sweep: str, search: EarlyEnd) -> None:
        self.storage, self.name, self.sweep = store.storage, f"sweeps/{sweep}/search.json", sweep
        self.search = canonical(search)
        self.stacks: dict[str, dict[str, Any]] = {}
        shape = {"search": dict, "stacks": {str: _STACK}}

        def read(content: bytes) -> dict[str, Any]:
            return json_object(content, self.name, shape, "the search begins anew", infinite=True)

        try:
            stored = self.storage.read_as(self.name, read, MAX_JSON_BYTES)
        except FileNotFoundError:
            return
        except ValueError as error:
            LOG.warning("%s", error)
            return
        if stored["search"] == self.search and stored.get("owner", sweep) == sweep:
            self.stacks = stored["stacks"]

    def add(self, stack: Stack, report: dict[str, Any], ended: bool) -> None:
        """Store a report, after which the scheduler `ended` the stack or let it continue."""
        entry = self.stacks.setdefault(stack.id, {"evaluated_on": evaluated_on(stack), "reports": []})
        entry["reports"].append({name: report[name] for name in ("step", "num_steps", TIME, OBJECTIVE)})
        entry["ended"] = ended
        content = {"owner": self.sweep, "search": self.search, "stacks": self.stacks}
        self.storage.write(self.name, json.dumps(content, indent=1).encode())

    def ended(self, stack: Stack) -> bool:
        entry = self.stacks.get(stack.id)
        return bool(entry and entry["ended"] and entry["reports"])

    def pruned(self, stacks: Sequence[Stack]) -> dict[str, Pruned]:
        """Members of the stacks that were ended, with their stack's last report."""
        found = {}
        for stack in filter(self.ended, stacks):
            last = self.stacks[stack.id]["reports"][-1]
            stop = Pruned(last["step"], last["num_steps"], last[OBJECTIVE])
            found |= {stack.trial.member_id(m): stop for m in stack.members}
        return found


def evaluated_on(stack: Stack) -> str:
    """The examples of the objective; NLLs on other examples cannot be compared with it."""
    return stack.trial.task.eval_set("validation")
