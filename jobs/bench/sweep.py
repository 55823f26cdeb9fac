"""`lorae bench sweep`: nine trials against a naive Ray Tune + PEFT sweep, and a sweep's cost beyond training.

Both sweeps read the same sweep file and run as separate commands, one after the other, start-up included; few
examples keep this short. The full grid's ratio is computed from the measured parts.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jobs.bench import overhead
from jobs.bench.commands import command, sweep_file
from jobs.bench.naive_sweep import AT_ONCE
from jobs.bench.setting import TINY, Setting, random_llama
from lorae import metrics
from lorae.combinations import COMBINATIONS
from lorae.regularizers import KL, DecayB
from lorae.store.names import member_folder
from lorae.store.store import Store
from lorae.trial import Sweep, Trial
from pipelines.demo import SWEEP as DEMO

GRID = {"regularizers": [(), (KL(beta=0.3),), (DecayB(strength=50.0),)], "members": [1, 2, 4]}  # nine trials
NUM_TRAIN, NUM_VALIDATION, NUM_TEST = 16, 8, 32
FULL_TRAINED, FULL_PREDICTED, FULL_VALIDATION = 64 * 4, 256 + 128, 100  # per member of the full grid


def measure(where: Setting) -> dict[str, Any]:
    """Every figure as plain data.

    Raises:
        ValueError: the device is a GPU, for which there is no naive sweep.
    """
    if where.device != "cpu":
        raise ValueError(f"--device {where.device}: `lorae bench sweep` compares on a CPU; leave it out")
    task = replace(where.trial.task, num_train=NUM_TRAIN, num_validation=NUM_VALIDATION, num_test=NUM_TEST)
    base = replace(DEMO.base, backbone=where.trial.backbone, precision=where.trial.precision, task=task)
    base = replace(base, budget=replace(base.budget, epochs=1))
    sweep = replace(DEMO, base=base, axes=GRID, tune={}, ood=())
    with tempfile.TemporaryDirectory() as folder:
        tiny = replace(
            base, backbone=random_llama(f"{folder}/tiny", TINY, "fp32"), precision="fp32", members=4
        )
        demo = against_naive(sweep, Path(folder) / "demo", where.data_root)
        seconds = ", ".join(f"{side} {seconds:.0f} s" for side, seconds in demo["seconds"].items())
        print(
            f"the demo's grid: {seconds}; now what a sweep costs beyond training", file=sys.stderr, flush=True
        )
        beyond = overhead.measure(tiny, Path(folder) / "overhead", where.data_root)
    return {"machine": where.machine, "demo": demo, "overhead": beyond}


# The demo's grid -------------------------------------------------------------------------------------------


def against_naive(sweep: Sweep, folder: Path, data_root: str | None) -> dict[str, Any]:
    """Both sweeps end to end: seconds, tables, and the full demo's ratio computed from the measured parts."""
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


def table_row(trial: Trial, store: Store, probabilities: list[list[float]]) -> dict[str, Any]:
    """One row of both tables; the NLL difference has the standard error of its mean over the examples."""
    folders = [member_folder(m) for m in trial.member_ids()]
    found = store.predictions(folders, trial.task.eval_set("test"))
    labels_N, ours_NC = found.labels_N, metrics.combine(found.logits_MNC, COMBINATIONS[trial.combine].rule)
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
    """Seconds of a sweep by part; two stacks run at once, so their seconds count half."""
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
    """The same for the naive sweep, where each trial loads the model."""
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
    """Seconds of the full grid, from measured seconds per example; the naive sweep has no validation set."""
    predicted = FULL_PREDICTED + (FULL_VALIDATION if name == "lorae" else 0)
    trained = FULL_TRAINED * parts["train_seconds_per_example"]
    member = trained + predicted * parts["predict_seconds_per_example"]
    return parts["start_seconds"] + parts["members"] * member / AT_ONCE


# For people ------------------------------------------------------------------------------------------------


def text(found: dict[str, Any]) -> str:
    """The figures as small tables."""
    parts = [found["machine"], demo_text(found["demo"]), overhead.text(found["overhead"])]
    return "\n\n".join(parts)


def demo_text(demo: dict[str, Any]) -> str:
    """The comparison with the naive sweep."""
    ours, theirs = demo["seconds"]["lorae"], demo["seconds"]["naive"]
    lines = [
        f"the demo's {demo['trials']} trials with {demo['train_examples']} training and "
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
    return "\n".join(lines)
