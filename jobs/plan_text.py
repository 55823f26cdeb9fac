"""A plan as text for a person and as plain data, for the dry run and the start of a sweep."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from jobs.hosts import columns
from jobs.simulate import duration, simulate
from lorae.planning.estimate import Devices, answers_bytes
from lorae.planning.plan import Plan


def show_plan(plan: Plan, as_json: bool, search: str, simulated: Devices | None = None) -> None:
    """Print a plan, what a search adds to it, and how it would run on simulated devices."""
    record, lines = plan_record(plan), [plan_text(plan), *tuning_text(plan)]
    if search:
        record["search"] = search
        lines.append(search)
    if simulated is not None:
        outcome = simulate(plan, simulated)
        record["simulation"] = asdict(outcome)
        lines.append(str(outcome))
    print(json.dumps(record, indent=1) if as_json else "\n".join(lines))


def plan_record(plan: Plan) -> dict[str, Any]:
    """The plan as plain data: trials, members needed, stored and to train, stacks with their place, memory
    and time. Before the tuned values are known, it has the same for the "tuning" and is marked "at_most"."""
    record = {
        "trials": [trial.factors() for trial, _ in plan.trials],
        "members": {
            "needed": len(plan.needed),
            "stored": len(plan.stored),
            "to_train": plan.num_to_train,
            "damaged": list(plan.damaged),
        },
        "students": sum(len(stack.members) for stack in plan.students),
        "soups": sum(bool(stack.soup) for stack in plan.soups),
        "answers_bytes": _answers_bytes(plan),
        "pools": sum(stack.pool for stack in plan.soups),
        "backbones": [asdict(found) for found in plan.backbones],
        "stacks": [
            columns(stack)
            | asdict(place)
            | {
                "memory_bytes": e.memory_bytes,
                "train_tokens": e.train_tokens,
                "seconds": round(e.seconds),
                "beside": [columns(other) for other in stack.beside],
            }
            for stack, place, e in zip(plan.stacks, plan.placements, plan.estimates)
        ],
    }
    if plan.tuning:
        record |= {"at_most": True, "tuning": plan_record(plan.tuning)}
    if best := tuning_text(plan):
        record["best"] = best
    return record


def plan_text(plan: Plan) -> str:
    """The plan for a person; in two parts before the tuned values are known."""
    if plan.tuning is None:
        return _round_text(plan)
    num_tuned = sum(bool(choice.study.points) for choice in plan.tuned)
    return "\n".join(
        [
            f"first, {num_tuned} recipes are tuned by validation NLL:",
            _round_text(plan.tuning),
            "then, at the chosen values, at most (tuned members count as stored):",
            _round_text(plan),
        ]
    )


def tuning_text(plan: Plan) -> tuple[str, ...]:
    """What was chosen for each tuned recipe, and whether recipes are tuned alike."""
    lines, sizes = filter(None, map(str, plan.tuned)), {len(choice.study.points) for choice in plan.tuned}
    if len(sizes) < 2 or any(choice.study.uneven for choice in plan.tuned):
        return tuple(lines)
    uneven = f"recipes are tuned over {min(sizes)} to {max(sizes)} points: `lorae audit` fails"
    return *lines, f"{uneven} unless the sweep says uneven_tuning=True"


def _round_text(plan: Plan) -> str:
    """What is run together, for a person."""
    record = plan_record(plan)
    members = record["members"]
    prompted = plan.num_to_prompt
    lines = [
        f"{len(plan.trials)} trials; members: {members['needed']} needed, {members['stored']} stored, "
        f"{members['to_train'] - prompted} to train" + (f", {prompted} to prompt" if prompted else "")
    ]
    lines += [f"damaged, will be trained again: {what}" for what in plan.damaged]
    lines += map(str, plan.backbones)
    for number, stack in enumerate(record["stacks"], 1):
        lines.append(
            f"  stack {number}: {_stack_text(stack)} | host {stack['host']} | "
            f"{stack['memory_bytes'] / 2**30:.1f} GiB | roughly {duration(stack['seconds'])}"
            + ("" if stack["train_tokens"] else " to predict")
        )
        lines += [f"    in the same steps: {_stack_text(other)}" for other in stack["beside"]]
    if plan.students:
        num = sum(len(stack.members) for stack in plan.students)
        lines.append(f"  then {num} members learn from the predictions of their teachers")
    if soups := [stack for stack in plan.soups if stack.soup]:
        lines.append(f"  then {len(soups)} soups of their members predict")
    if pools := [stack for stack in plan.soups if stack.pool]:
        lines.append(f"  then members of {len(pools)} ensembles write together")
    if size := _answers_bytes(plan):
        lines.append(f"  texts: at most {math.ceil(size / 2**20)} MiB, before compression")
    reasons = dict.fromkeys(f"host {where.host}: {where.reason}" for where in plan.placements)
    return "\n".join([*lines, *reasons])


def _answers_bytes(plan: Plan) -> int:
    return sum(answers_bytes(part) for stack in (*plan.stacks, *plan.soups) for part in stack.parts)


def _stack_text(stack: dict[str, Any]) -> str:
    """A recipe, its seed and members, from their columns."""
    # A method that trains nothing has no learning rate
    size = f"rank {stack['rank']} lr {stack['lr']:g}" if stack["lr"] else stack["init"]
    return (
        f"{stack['task']} {stack['method']} {size} {stack['regularizers']} "
        f"seed {stack['seed']} members {stack['members']}"
    )
