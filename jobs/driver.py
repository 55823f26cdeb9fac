"""A sweep from the request to the table: plan, run what is missing, one row per trial, MLflow."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Thread

from jobs import tracking
from jobs.closing import next_commands, outcome_text, table_head
from jobs.devices import cpu_has_bf16, local_devices, process_devices
from jobs.hosts import cluster_address, ray_cluster, run_local, run_tune
from jobs.live_runs import live_runs
from jobs.plan_text import (
    plan_text,
    show_plan,
    tuning_text,
)
from jobs.request import Request, provenance
from jobs.search import Found, check_search, num_trained, run_search, search_text
from jobs.tracking_files import record_files
from jobs.verify import set_rotten_aside, used_entries, verifying
from lorae.backbone.checks import check_backbones
from lorae.planning.estimate import Devices, Host
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
        run = _Run(request, store, here, local, address)
        return _finish(run, plan, started, as_json, tracking_uri)


@dataclass(frozen=True)
class _Run:
    """What a sweep is and where it runs.

    Attributes:
        here: the devices of this machine, None before a cluster is connected.
        local: without Ray, in this process.
        address: of the cluster.
    """

    request: Request
    store: Store
    here: Devices | None
    local: bool
    address: str | None

    def all(self, plan: Plan) -> Found:
        """Run what a plan lacks: a search, or the grid."""
        where = {"local": self.local, "address": self.address}
        if search := self.request.sweep.search:
            return run_search(search, plan, self.request, self.store, **where)
        return _run_grid(plan, self.request, self.store, self.here, **where)


def _finish(run: _Run, plan: Plan, started: float, as_json: bool, tracking_uri: str | None) -> int:
    """Run what a plan lacks, write the table, then MLflow; returns the exit code."""
    request, store, here = run.request, run.store, run.here
    store.storage.sweep()
    store.finish_writes()  # of a killed run that left no stack to do so
    if request.sweep.search or here or plan.is_done:
        say("\n".join(filter(None, [plan_text(plan), search_text(request.sweep, plan)])))
        _warn_of_slow_bf16(plan, here)
    patient = "training goes on; MLflow is tried again at its end"
    # MLflow takes as long to start as Ray
    preparing = _Started(lambda: _tracked(tracking.prepare, store, tracking_uri, patient))
    with live_runs(store, request.name, tracking_uri, preparing.outcome) as watch:
        run = replace(run, request=replace(request, watch=watch))
        with verifying(store, used_entries(plan)) as damaged:
            found, rotten = run.all(plan), damaged()
        if rotten:
            set_rotten_aside(store, rotten)
            again = run.all(make_plan(request.sweep, store, here, "local" if run.local else "tune"))
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


def say(text: str) -> None:
    """For the person at the terminal; stdout is left to --json."""
    print(shown(text), file=sys.stderr, flush=True)
