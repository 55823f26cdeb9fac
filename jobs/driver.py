"""A sweep from the request to the table: plan, run what is missing, one row per trial, MLflow."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from threading import Thread
from typing import Any

from jobs import tracking
from jobs.closing import next_commands, table_head
from jobs.devices import cpu_has_bf16, local_devices, process_devices
from jobs.hosts import cluster_address, columns, ray_cluster, run_local, run_tune
from jobs.live_runs import live_runs
from jobs.parser import coloured
from jobs.request import Request, provenance
from jobs.search import Found, check_search, num_trained, run_search, search_text
from jobs.simulate import duration, simulate
from jobs.tracking_files import record_files
from jobs.verify import set_rotten_aside, used_entries, verifying
from lorae.backbone.checks import check_backbones
from lorae.planning.estimate import Devices, Host, answers_bytes
from lorae.planning.faults import input_faults
from lorae.planning.plan import Plan, after_tuning, make_plan, placed, soups_of
from lorae.planning.teachers import students_of
from lorae.results import trials_table
from lorae.store.store import Store
from lorae.tasks.splits import refuse
from lorae.uris import shown

MEDIA_SECONDS = 5.0  # to decode images and sounds before training; the rest is decoded when a stack begins
PLAN_RETRY_SECONDS = 5.0  # report a storage that refuses while the user is watching; stacks wait longer


def run_sweep(
    request: Request,
    *,
    dry_run: bool = False,
    as_json: bool = False,
    local: bool = False,
    address: str | None = None,
    tracking_uri: str | None = None,
    single_driver: bool = False,
) -> int:
    """Run a sweep, or what remains of it; returns the exit code.

    Args:
        single_driver: no other driver works on the storage, so its mount needs no locks.
    Raises:
        ValueError: bad input, before anything is trained.
    """
    store, started = Store(request.storage), time.monotonic()
    search, elsewhere = request.sweep.search, not local and cluster_address(address) is not None
    patience, store.storage.retry_seconds = store.storage.retry_seconds, PLAN_RETRY_SECONDS
    # What a cluster can run is known once it is connected; bad input is refused before that
    here = None if elsewhere else request.on(process_devices() if local else local_devices())
    plan = make_plan(request.sweep, store, here, "local" if local else "tune")
    if search:
        check_search(search, plan, request, local)
    if dry_run or not plan.is_done:
        plan = replace(plan, backbones=check_backbones(trial for trial, _ in plan.trials))
    if not plan.is_done:
        refuse(input_faults(plan.trials, MEDIA_SECONDS))
    if dry_run:
        if elsewhere:
            with ray_cluster(address) as devices:
                here = request.on(devices)
                plan = placed(plan, here)
        show_plan(plan, as_json, search_text(request.sweep, plan))
        _warn_of_slow_bf16(plan, here)
        if not single_driver and (fault := store.storage.locking_fault(make=False)):
            say(fault)
        return 0
    store.storage.check_writable()
    store.storage.retry_seconds = patience
    with store.storage.driving(single_driver):
        return _run(plan, request, store, here, started, as_json, local, address, tracking_uri)


def _run(
    plan: Plan,
    request: Request,
    store: Store,
    here: Devices | None,
    started: float,
    as_json: bool,
    local: bool,
    address: str | None,
    tracking_uri: str | None,
) -> int:
    """Run what a plan lacks, write the table, then MLflow; returns the exit code."""
    search = request.sweep.search
    store.storage.sweep()
    store.finish_writes()  # of a killed run that left no stack to do so
    if search or here or plan.is_done:
        say("\n".join(filter(None, [plan_text(plan), search_text(request.sweep, plan)])))
        _warn_of_slow_bf16(plan, here)
    patient = "training goes on; MLflow is tried again at its end"
    # MLflow takes as long to start as Ray
    preparing = _Started(lambda: _tracked(tracking.prepare, store, tracking_uri, patient))
    with live_runs(store, request.name, tracking_uri, preparing.outcome) as watch:
        asked = replace(request, watch=watch)
        run = partial(_run_all, request=asked, store=store, here=here, local=local, address=address)
        with verifying(store, used_entries(plan)) as damaged:
            found, rotten = run(plan), damaged()
        if rotten:
            set_rotten_aside(store, rotten)
            again = run(make_plan(request.sweep, store, here, "local" if local else "tune"))
            found = replace(again, failed=found.failed | again.failed, trained=found.trained + again.trained)
    rows, choices = found.plan.trials, found.plan.choices
    table = trials_table(store, request.name, rows, provenance(request), found.pruned, choices)
    try:
        store.write_table(request.name, table)
    except OSError as error:
        found.failed["the table of trials"] = str(error)
    later = f"for the MLflow runs: lorae mlflow-rebuild {store.storage.uri}"
    later += f" --tracking-uri {tracking_uri}" if tracking_uri else ""
    preparing.outcome()  # within its deadline
    record = partial(tracking.record_sweep, store, request.name)
    is_shown = _tracked(record, store, tracking_uri, later)
    status = table["status"].to_pylist()
    incomplete = status.count("failed")
    outcome = {
        "sweep": request.name,
        "trials": table.num_rows,
        "incomplete": incomplete,
        "pruned": status.count("pruned"),
        "failed": found.failed,
        "trained": found.trained,
        "best": found.best,
        "seconds": round(time.monotonic() - started, 1),
    }
    if as_json:
        print(shown(json.dumps(outcome, indent=1)))
    say(outcome_text(outcome, request, found.plan))
    if not as_json and "done" in status:
        where = request.storage, request.name
        say("\n".join(filter(None, [table_head(*where), next_commands(*where)])))
    if is_shown and "done" in status:
        _tracked(partial(record_files, store, request.name), store, tracking_uri, later)
    return 1 if found.failed or incomplete else 0


def _run_all(
    plan: Plan, request: Request, store: Store, here: Devices | None, local: bool, address: str | None
) -> Found:
    if request.sweep.search:
        return run_search(request.sweep.search, plan, request, store, local=local, address=address)
    return _run_grid(plan, request, store, here, local, address)


def _run_grid(
    plan: Plan, request: Request, store: Store, here: Devices | None, local: bool, address: str | None
) -> Found:
    """Run the tuning, every stack, then the soups. A plan for devices that are not `here` is printed
    first."""
    if plan.is_done:
        return Found(plan, {}, num_trained(store, plan), best=tuning_text(plan))
    with nullcontext(here) if local else ray_cluster(address) as found:
        assert found
        devices = request.on(found)
        host, run = ("local", run_local) if local else ("tune", run_tune)
        rounds = _Rounds(request, store, devices, host, run)
        plan = placed(plan, devices, host)
        if here is None:
            say(plan_text(plan))
            _warn_of_slow_bf16(plan, devices)
        if plan.tuning and any(trial.teacher for trial, _ in plan.trials):
            rounds.tune(plan.tuning)  # of the teachers alone; students are tuned with the values chosen there
            plan = make_plan(request.sweep, store, devices, host)
        if plan.tuning:
            rounds.tune(plan.tuning)
            plan = placed(after_tuning(request.sweep, store), devices, host)
            say(plan_text(plan))
        rounds.failed |= rounds.members(plan)
        if (soups := soups_of(plan, store)).pending:
            rounds.failed |= run(placed(soups, devices, host), request, devices)
    trained = rounds.trained + num_trained(store, plan)
    return Found(plan, rounds.failed, trained, best=tuning_text(plan))


@dataclass
class _Rounds:
    """What a grid runs one after another, and what became of it."""

    request: Request
    store: Store
    devices: Devices
    host: Host
    run: Callable[[Plan, Request, Devices], dict[str, str]]
    failed: dict[str, str] = field(default_factory=dict)
    trained: int = 0

    def members(self, plan: Plan) -> dict[str, str]:
        """Run a plan's members, then the students whose teachers are stored; returns what failed."""
        lost = self.run(plan, self.request, self.devices) if plan.stacks else {}
        if (students := students_of(plan, self.store)).pending:
            lost |= self.run(placed(students, self.devices, self.host), self.request, self.devices)
        return lost

    def tune(self, tuning: Plan) -> None:
        lost = self.members(tuning)
        # A diverged member is a result: its value is not chosen
        self.failed |= {what: why for what, why in lost.items() if what not in tuning.needed}
        self.trained += num_trained(self.store, tuning)


def _warn_of_slow_bf16(plan: Plan, devices: Devices | None) -> None:
    """Warn before a CPU without bf16 arithmetic emulates it: fp32 is several times as fast there."""
    emulates = devices is not None and devices.kind == "cpu" and not cpu_has_bf16()
    stacks = [s for p in (plan.tuning, plan) if p for s in (*p.begun, *p.pending)]
    if emulates and any(stack.trial.precision == "bf16" for stack in stacks):
        say("this CPU has no bf16 arithmetic and is slow without: add --set precision=fp32 (other members)")


class _Started:
    """An action in a daemon thread."""

    def __init__(self, action: Callable[[], bool]) -> None:
        self._found = False

        def act() -> None:
            self._found = action()

        self._thread = Thread(target=act, daemon=True)
        self._thread.start()

    def outcome(self) -> bool:
        """What it returned, once it has."""
        self._thread.join()
        return self._found


def _tracked(write: Callable[[str], object], store: Store, tracking_uri: str | None, then: str) -> bool:
    """Write to MLflow and say whether that went well; an unreachable server costs seconds and a message, not
    the sweep."""
    started = time.monotonic()
    try:
        write(tracking_uri or tracking.default_uri(store))
    except ValueError as error:
        say(f"{error}\nMLflow cost {time.monotonic() - started:.0f} s; {then}")
        return False
    return True


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


def outcome_text(outcome: dict[str, Any], request: Request, plan: Plan) -> str:
    """What was done, what failed, and the commands that follow."""
    prompted = not all(trial.method.trains for trial, _ in plan.trials)
    made = "trained or prompted" if prompted else "trained"
    lines = [
        f"{outcome['trials']} trials, {outcome['trained']} members {made} in "
        f"{duration(outcome['seconds'])}; results in {request.storage}/sweeps/{request.name}"
    ]
    if outcome["pruned"]:
        lines.append(f"{outcome['pruned']} trials were ended early by the search and are in no table")
    lines += outcome["best"]
    lines += [f"{coloured('failed:', 'red')} {what}: {why}" for what, why in outcome["failed"].items()]
    if outcome["incomplete"]:
        lines.append(f"{outcome['incomplete']} trials lack predictions")
    if outcome["incomplete"] or outcome["failed"]:
        lines.append(f"resume with: {request.command}")
    return "\n".join(lines)


def say(text: str) -> None:
    """For the person at the terminal; stdout is left to --json."""
    print(shown(text), file=sys.stderr, flush=True)
