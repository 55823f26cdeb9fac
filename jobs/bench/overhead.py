"""What a sweep costs beyond training, the second half of `lorae bench sweep`: time until the first step, per
further stack, with two workers instead of one, and for planning. The model is so small that little else
remains.
"""

from __future__ import annotations

import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.bench.apart import apart
from jobs.bench.commands import ON_THE_CPU, command, sweep_file
from jobs.bench.setting import environment
from lorae.store.names import WEIGHTS, member_folder
from lorae.store.predictions import prediction_file
from lorae.store.store import Store
from lorae.trial import Budget, Sweep, Trial
from pipelines.demo import SWEEP as DEMO

STACKS, STACK_STEPS = 10, 80
PLANNED, STORED = 10_000, 1_000


def measure(trial: Trial, folder: Path, data_root: str | None) -> dict[str, Any]:
    """All figures as plain data, for stacks of this trial."""
    budget = Budget(batch_size=8, steps=STACK_STEPS, max_tokens=128)
    many = Sweep(base=replace(trial, budget=budget), axes={"seed": list(range(STACKS))}, zero_shot=False)
    single = one_stack(replace(many, axes={"members": [1]}), folder / "one", data_root)
    workers = {
        n: apart(
            run_stacks, many, folder / f"workers{n}", n, data_root, environment=environment() | ON_THE_CPU
        ).result
        for n in (1, 2)
    }
    return {
        "one_stack": single,
        "stacks": STACKS,
        "workers": workers,
        "efficiency": workers[1]["seconds"] / workers[2]["seconds"] / 2,
        "planned_trials": PLANNED,
        "plan_seconds": apart(plan_many, trial, str(folder / "empty"), PLANNED).result,
        "stored_members": STORED,
        "resume_seconds": apart(plan_stored, trial, str(folder / "stored"), STORED).result,
    }


def one_stack(sweep: Sweep, folder: Path, data_root: str | None) -> dict[str, float]:
    """`lorae sweep` of one member: seconds to its first step, and seconds beyond training and prediction."""
    file, storage = sweep_file(folder, sweep), folder / "storage"
    root = ["--data-root", data_root] if data_root else []
    words = ["jobs.cli", "sweep", str(file), "--storage", str(storage), *root]
    started = time.perf_counter()
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(command, words)
        while not running.done() and not list(storage.glob("checkpoints/*.json")):
            time.sleep(0.01)  # a stack is recorded there just before its first step
        first = time.perf_counter() - started
        wall = running.result()
    work = sum(sum(seconds) for seconds, _ in _stacks(Store(str(storage))))
    return {"seconds": wall, "first_step_seconds": first, "overhead_seconds": wall - work}


def run_stacks(sweep: Sweep, folder: Path, workers: int, data_root: str | None) -> dict[str, float]:
    """A sweep on `workers` workers: seconds with Ray's start, and the median seconds of a further stack on a
    worker beyond its training and prediction."""
    from jobs.hosts import ray_cluster, run_tune
    from jobs.request import read_request
    from lorae.planning.plan import make_plan, placed

    request = read_request(str(sweep_file(folder, sweep)), [], str(folder / "storage"), data_root)
    store, started = Store(request.storage), time.perf_counter()
    with ray_cluster("local") as devices:
        devices = replace(devices, num=workers)
        plan = placed(make_plan(request.sweep, store, devices), devices)
        if failed := run_tune(plan, request, devices):
            raise RuntimeError(f"stacks failed: {failed}")
    wall, stacks = time.perf_counter() - started, _stacks(store)
    ends = [end for _, end in stacks]
    # With several workers, a worker's next stack ends `workers` places later
    gaps = [later - end for end, later in zip(ends, ends[workers:])]
    further = [gap - sum(seconds) for gap, (seconds, _) in zip(gaps, stacks[workers:])]
    return {"seconds": wall, "further_stack_seconds": statistics.median(further)}


def _stacks(store: Store) -> list[tuple[list[float], float]]:
    """Seconds of each stack's members, and when the stack was stored; sorted by that time."""
    stacks: dict[int, tuple[list[float], float]] = {}
    for member_id in store.storage.names("members"):
        record = json.loads(store.read(member_folder(member_id), "member.json"))
        path = Path(store.storage.path(member_folder(member_id))) / "DONE.json"
        seconds, stored = stacks.get(record["streams"]["init"][0], ([], 0.0))
        cost = record["cost"]
        seconds = [*seconds, cost["train_seconds"] + cost["predict_seconds"]]
        stacks[record["streams"]["init"][0]] = (seconds, max(stored, path.stat().st_mtime))
    return sorted(stacks.values(), key=lambda stack: stack[1])


def plan_many(trial: Trial, storage: str, num_trials: int) -> float:
    """Seconds to plan a grid of `num_trials` trials."""
    from jobs.devices import cpu_devices
    from lorae.planning.plan import make_plan

    axes = {"regularizers": [(), DEMO.axes["regularizers"][1]], "members": [1, 2, 4, 8]}
    sweep = Sweep(base=trial, axes=axes | {"seed": list(range(num_trials // 8))}, zero_shot=False)
    started = time.perf_counter()
    plan = make_plan(sweep, Store(storage), cpu_devices([2]))
    assert len(plan.trials) == num_trials // 8 * 8
    return time.perf_counter() - started


def plan_stored(trial: Trial, storage: str, num_members: int) -> float:
    """Seconds to find that every member of a sweep is stored."""
    from jobs.devices import cpu_devices
    from lorae.planning.plan import make_plan

    store = Store(storage)
    sweep = Sweep(
        base=replace(trial, members=4), axes={"seed": list(range(num_members // 4))}, zero_shot=False
    )
    sets = {prediction_file(trial.task.eval_set(split)): bytes(5000) for split in ("validation", "test")}
    for one in sweep.trials():
        for member_id in one.member_ids():
            store.write_entry(member_folder(member_id), {WEIGHTS: bytes(100_000), **sets})
    started = time.perf_counter()
    plan = make_plan(sweep, Store(storage), cpu_devices([2]))
    assert plan.num_to_train == 0
    return time.perf_counter() - started


def text(over: dict[str, Any]) -> str:
    """The figures as lines."""
    single = over["one_stack"]
    lines = [
        f"beyond training, on a random model of three small layers, stacks of 4, {STACK_STEPS} steps",
        f"`lorae sweep` of one member: first step after {single['first_step_seconds']:.1f} s; beyond "
        f"training and prediction {single['overhead_seconds']:.1f} of {single['seconds']:.1f} s",
    ]
    lines += [
        f"{over['stacks']} stacks, {workers} workers: {at['seconds']:.1f} s; a further stack on a worker "
        f"{at['further_stack_seconds']:.2f} s beyond its training"
        for workers, at in over["workers"].items()
    ]
    lines += [
        f"efficiency of two workers: {100 * over['efficiency']:.0f} %",
        f"plan of {over['planned_trials']:,} trials: {over['plan_seconds']:.1f} s; of a store with "
        f"{over['stored_members']:,} members: {over['resume_seconds']:.1f} s",
    ]
    return "\n".join(lines)
