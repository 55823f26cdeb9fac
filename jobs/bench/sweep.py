"""`lorae bench sweep`: the demo's grid against a naive Ray Tune + PEFT sweep, and what a sweep costs beyond
training.

Both sweeps read one sweep file and run as commands of their own, start-up included, one after the other; few
examples keep that short. The full demo's ratio is computed from the measured parts.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jobs.bench.apart import apart
from jobs.bench.naive_sweep import AT_ONCE
from jobs.bench.setting import TINY, Setting, environment, random_llama
from lorae import metrics
from lorae.store import WEIGHTS, Store, member_folder, prediction_file
from lorae.trial import Budget, Sweep, Trial
from pipelines.demo import SWEEP as DEMO

NUM_TRAIN, NUM_VALIDATION, NUM_TEST = 32, 8, 50
STACKS, STACK_STEPS = 16, 150
PLANNED, STORED = 10_000, 1_000
LOCALHOST = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}


def measure(where: Setting) -> dict[str, Any]:
    """Every figure as plain data."""
    task = replace(where.trial.task, num_train=NUM_TRAIN, num_validation=NUM_VALIDATION, num_test=NUM_TEST)
    base = replace(DEMO.base, backbone=where.trial.backbone, precision=where.trial.precision, task=task)
    sweep = replace(DEMO, base=replace(base, budget=replace(base.budget, epochs=1)), ood=())
    with tempfile.TemporaryDirectory() as folder:
        tiny = replace(
            base, backbone=random_llama(f"{folder}/tiny", TINY, "fp32"), precision="fp32", members=4
        )
        return {
            "machine": where.machine,
            "demo": against_naive(sweep, Path(folder) / "demo", where.data_root),
            "overhead": overhead(tiny, Path(folder) / "overhead", where.data_root),
        }


# The demo's grid -------------------------------------------------------------------------------------------


def against_naive(sweep: Sweep, folder: Path, data_root: str | None) -> dict[str, Any]:
    """Both sweeps end to end: seconds, tables, and the ratio of the full demo by the measured parts."""
    file = sweep_file(folder, sweep)
    root = [data_root] if data_root else []
    storage, out = folder / "storage", folder / "naive.json"
    ours = command(
        [
            "jobs.cli",
            "sweep",
            str(file),
            "--storage",
            str(storage),
            *[w for r in root for w in ("--data-root", r)],
        ]
    )
    theirs = command(["jobs.bench.naive_sweep", str(file), str(out), *root])
    located = sweep.located(Path(data_root) if data_root else None)
    naive = json.loads(out.read_text())
    trials = [t for t in located.trials() if t.members]
    parts = {
        "lorae": lorae_parts(located, Store(str(storage)), ours),
        "naive": naive_parts(located, naive, theirs),
    }
    full = {name: full_demo(name, parts[name]) for name in parts}
    return {
        "trials": len(trials),
        "train_examples": sweep.base.task.num_train,
        "test_examples": sweep.base.task.num_test,
        "seconds": {"lorae": ours, "naive": theirs},
        "ratio": theirs / ours,
        "parts": parts,
        "full_seconds_computed": full,
        "full_ratio_computed": full["naive"] / full["lorae"],
        "table": [
            table_row(trial, Store(str(storage)), row["probabilities"])
            for trial, row in zip(trials, naive["rows"])
        ],
    }


def sweep_file(folder: Path, sweep: Sweep) -> Path:
    """A sweep as a file that both sides read."""
    folder.mkdir(parents=True)
    task = type(sweep.base.task)
    path = folder / "bench.py"
    path.write_text(
        "from lorae.methods import *\nfrom lorae.regularizers import *\nfrom lorae.sources import *\n"
        "from lorae.tasks.base import *\nfrom lorae.trial import *\n"
        f"from {task.__module__} import {task.__name__}\n\nSWEEP = {sweep!r}\n"
    )
    return path


def command(words: list[str]) -> float:
    """Seconds of `python -m WORDS`.

    Raises:
        RuntimeError: it failed; what it wrote to stderr.
    """
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *words],
        capture_output=True,
        text=True,
        env=os.environ | environment() | LOCALHOST,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} exited with {done.returncode}:\n{done.stderr[-2000:]}")
    return time.perf_counter() - started


def table_row(trial: Trial, store: Store, probabilities: list[list[float]]) -> dict[str, Any]:
    """One row of both tables; the difference in NLL has the standard error of its mean over the examples."""
    folders = [member_folder(m) for m in trial.member_ids()]
    found = store.predictions(folders, trial.task.eval_set("test"))
    labels_N, ours_NC = found.labels_N, metrics.combine(found.logits_MNC, trial.combine)
    theirs_NC = np.log(np.array(probabilities))
    gap_N = (ours_NC - theirs_NC)[np.arange(len(labels_N)), labels_N]  # theirs minus ours in NLL
    return {
        "regularizers": trial.factors()["regularizers"],
        "members": trial.members,
        "acc": [metrics.acc(logp_NC, labels_N) for logp_NC in (ours_NC, theirs_NC)],
        "nll": [metrics.ensemble_nll(logp_NC, labels_N) for logp_NC in (ours_NC, theirs_NC)],
        "nll_difference": float(gap_N.mean()),
        "nll_error": float(gap_N.std(ddof=1) / np.sqrt(len(gap_N))),
    }


def lorae_parts(sweep: Sweep, store: Store, wall: float) -> dict[str, float]:
    """Seconds of a sweep by what they went to; two stacks at once, so stacks' seconds count half."""
    members = {m for trial in sweep.trials() for m in trial.member_ids()}
    costs = [json.loads(store.read(member_folder(m), "member.json"))["cost"] for m in members]
    train, predict = (sum(c[f"{part}_seconds"] for c in costs) for part in ("train", "predict"))
    task = sweep.base.task
    return {
        "members": len(members),
        "start_seconds": wall - (train + predict) / AT_ONCE,
        "train_seconds_per_example": train / len(members) / _seen(sweep, "train"),
        "predict_seconds_per_example": predict
        / len(members)
        / (_size(task, "validation") + _size(task, "test")),
    }


def naive_parts(sweep: Sweep, found: dict[str, Any], wall: float) -> dict[str, float]:
    """The same of the naive sweep, whose trials load the model each."""
    members = sum(trial.members for trial in sweep.trials())
    total = {p: sum(r[f"{p}_seconds"] for r in found["rows"]) for p in ("load", "train", "predict")}
    return {
        "members": members,
        "start_seconds": wall - (total["train"] + total["predict"]) / AT_ONCE,
        "train_seconds_per_example": total["train"] / members / _seen(sweep, "train"),
        "predict_seconds_per_example": total["predict"] / members / _size(sweep.base.task, "test"),
    }


def _seen(sweep: Sweep, split: Any) -> int:
    """Training examples that a member sees, in all epochs."""
    size = _size(sweep.base.task, split)
    return sweep.base.budget.num_steps(size) * sweep.base.budget.batch_size


def _size(task: Any, split: Any) -> int:
    return len(task.examples(split))


def full_demo(name: str, parts: dict[str, float]) -> float:
    """Seconds of the whole demo by the seconds per example measured: the naive one has no validation set."""
    base, ood = DEMO.base, DEMO.ood[0]
    seen = base.task.num_train * base.budget.epochs  # type: ignore[operator]
    predicted = base.task.num_test + ood.num_test  # type: ignore[operator]
    predicted += base.task.num_validation if name == "lorae" else 0  # type: ignore[operator]
    member = seen * parts["train_seconds_per_example"] + predicted * parts["predict_seconds_per_example"]
    return parts["start_seconds"] + parts["members"] * member / AT_ONCE


# What a sweep costs beyond training ------------------------------------------------------------------------


def overhead(trial: Trial, folder: Path, data_root: str | None) -> dict[str, Any]:
    """Seconds beyond training, on a model so small that little else is left."""
    budget = Budget(batch_size=8, steps=STACK_STEPS, max_tokens=128)
    many = Sweep(base=replace(trial, budget=budget), axes={"seed": list(range(STACKS))}, zero_shot=False)
    single = one_stack(replace(many, axes={"members": [1]}), folder / "one", data_root)
    workers = {
        n: apart(
            run_stacks, many, folder / f"workers{n}", n, data_root, environment=environment() | LOCALHOST
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
    """`lorae sweep` of one member: seconds to its first step, and those beyond training and prediction."""
    file, storage = sweep_file(folder, sweep), folder / "storage"
    root = ["--data-root", data_root] if data_root else []
    words = ["jobs.cli", "sweep", str(file), "--storage", str(storage), *root]
    started = time.perf_counter()
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(command, words)
        while not running.done() and not list(storage.glob("checkpoints/*.json")):
            time.sleep(0.01)  # a stack is noted there just before its first step
        first = time.perf_counter() - started
        wall = running.result()
    work = sum(sum(seconds) for seconds, _ in _stacks(Store(str(storage))))
    return {"seconds": wall, "first_step_seconds": first, "overhead_seconds": wall - work}


def run_stacks(sweep: Sweep, folder: Path, workers: int, data_root: str | None) -> dict[str, float]:
    """A sweep on so many workers: seconds with Ray's start, and those of a further stack on a worker beyond
    its training and prediction (median)."""
    from jobs.hosts import ray_cluster, run_tune
    from jobs.request import read_request
    from lorae.plan import make_plan, placed

    request = read_request(str(sweep_file(folder, sweep)), [], str(folder / "storage"), data_root)
    store, started = Store(request.storage), time.perf_counter()
    with ray_cluster("local") as devices:
        devices = replace(devices, num=workers)
        plan = placed(make_plan(request.sweep, store, devices), devices)
        if failed := run_tune(plan, request, devices):
            raise RuntimeError(f"stacks failed: {failed}")
    wall, stacks = time.perf_counter() - started, _stacks(store)
    ends = [end for _, end in stacks]
    # With several workers one's next stack is the one that ends `workers` places later
    gaps = [later - end for end, later in zip(ends, ends[workers:])]
    further = [gap - sum(seconds) for gap, (seconds, _) in zip(gaps, stacks[workers:])]
    return {"seconds": wall, "further_stack_seconds": statistics.median(further)}


def _stacks(store: Store) -> list[tuple[list[float], float]]:
    """Of each stack the seconds of its members, and when it was stored; in that order."""
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
    """Seconds to plan so many trials of a grid."""
    from jobs.hosts import cpu_devices
    from lorae.plan import make_plan

    axes = {"regularizers": [(), DEMO.axes["regularizers"][1]], "members": [1, 2, 4, 8]}
    sweep = Sweep(base=trial, axes=axes | {"seed": list(range(num_trials // 8))}, zero_shot=False)
    started = time.perf_counter()
    plan = make_plan(sweep, Store(storage), cpu_devices([2]))
    assert len(plan.trials) == num_trials // 8 * 8
    return time.perf_counter() - started


def plan_stored(trial: Trial, storage: str, num_members: int) -> float:
    """Seconds to find that every member of a sweep is stored."""
    from jobs.hosts import cpu_devices
    from lorae.plan import make_plan

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


# For people ------------------------------------------------------------------------------------------------


def text(found: dict[str, Any]) -> str:
    """The figures as small tables."""
    demo, over = found["demo"], found["overhead"]
    ours, theirs = demo["seconds"]["lorae"], demo["seconds"]["naive"]
    lines = [
        found["machine"],
        f"\nthe demo's {demo['trials']} trials with {demo['train_examples']} training and "
        f"{demo['test_examples']} test sentences, 1 epoch, start-up included",
        f"lorae sweep {ours:.0f} s, naive sweep {theirs:.0f} s: {demo['ratio']:.2f} times as fast",
        "  lorae: `lorae sweep`, each member trained once, in stacks, on two workers of one thread",
        "  naive: Ray Tune, two trials at once with a CPU each; each loads the model, trains its own members "
        "one by one with PEFT, padded, and evaluates in batches of 32 by the whole vocabulary's logits",
    ]
    for name, parts in demo["parts"].items():
        lines.append(
            f"  {name}: {parts['members']} members; start {parts['start_seconds']:.0f} s; an example "
            f"{1e3 * parts['train_seconds_per_example']:.0f} ms to train, "
            f"{1e3 * parts['predict_seconds_per_example']:.0f} ms to predict"
        )
    full = demo["full_seconds_computed"]
    lines.append(
        f"the full demo, computed from these parts: lorae {full['lorae']:.0f} s, naive "
        f"{full['naive']:.0f} s: {demo['full_ratio_computed']:.2f} times as fast"
    )
    lines.append(
        f"\n{'regularizers':<14} {'members':>7} {'accuracy, naive':>16} {'NLL, naive':>14} {'difference':>18}"
    )
    for row in demo["table"]:
        lines.append(
            f"{row['regularizers']:<14} {row['members']:>7} {row['acc'][0]:>9.3f} {row['acc'][1]:>6.3f} "
            f"{row['nll'][0]:>7.3f} {row['nll'][1]:>6.3f} {row['nll_difference']:>+8.3f} +- "
            f"{row['nll_error']:.3f}"
        )
    lines.append(
        "difference: naive NLL minus lorae's, with the standard error of its mean over the sentences"
    )
    single = over["one_stack"]
    lines.append(
        f"\nbeyond training, on a random model of three small layers, stacks of 4, {STACK_STEPS} steps"
    )
    lines.append(
        f"`lorae sweep` of one member: first step after {single['first_step_seconds']:.1f} s; beyond "
    )
    lines[-1] += f"training and prediction {single['overhead_seconds']:.1f} of {single['seconds']:.1f} s"
    for workers, at in over["workers"].items():
        lines.append(
            f"{over['stacks']} stacks, {workers} workers: {at['seconds']:.1f} s; a further stack on a worker "
            f"{at['further_stack_seconds']:.2f} s beyond its training"
        )
    lines.append(f"efficiency of two workers: {100 * over['efficiency']:.0f} %")
    lines.append(f"plan of {over['planned_trials']:,} trials: {over['plan_seconds']:.1f} s; ")
    lines[-1] += f"of a store with {over['stored_members']:,} members: {over['resume_seconds']:.1f} s"
    return "\n".join(lines)
