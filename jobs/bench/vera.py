"""`lorae bench vera`: training time, memory and parameters of LoRA and VeRA at equal rank, as in the appendix
of arXiv:2310.11454, one adapter each; VeRA with matrices that layers share, and with each layer's own.

The sides take turns, each in its own process with the same environment.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from statistics import median
from typing import Any

from jobs.bench.apart import Rounds
from jobs.bench.setting import Setting, environment, peak_memory
from jobs.bench.train import REPETITIONS, STEPS, lorae_stack, with_steps
from lorae.methods import Lora, Method, Vera
from lorae.trial import Trial

RANK = 64
SIDES: dict[str, Method] = {
    "LoRA": Lora(rank=RANK, alpha=RANK),
    "VeRA": Vera(rank=RANK),
    "VeRA, per layer": Vera(rank=RANK, projection="per_layer"),
}


def measure(where: Setting) -> dict[str, Any]:
    """All figures as plain data, of film reviews."""
    steps = STEPS[where.device][where.trial.task.name] + 1
    trial = replace(with_steps(where.trial, steps), members=1)
    found = compare(trial, where.device, REPETITIONS[where.device])
    return {"machine": where.machine, "rank": RANK, "steps": steps - 1, "sides": found}


def compare(trial: Trial, device: str, repetitions: int) -> dict[str, dict[str, Any]]:
    """Seconds of a step (median over rounds in turns), peak memory, and trained parameters of each side; time
    and memory also over LoRA's."""
    with contextlib.ExitStack() as processes:
        started = {
            name: processes.enter_context(
                Rounds(lorae_stack, replace(trial, method=method), device, environment=environment())
            )
            for name, method in SIDES.items()
        }
        for side in started.values():
            next(side)
        turns = [{name: next(side)[0] for name, side in started.items()} for _ in range(repetitions)]
        peaks = {name: side.call(peak_memory, device) for name, side in started.items()}
    steps = (trial.budget.steps or 2) - 1  # the first is not timed
    return {
        name: {
            "seconds_per_step": median(turn[name] for turn in turns) / steps,
            "peak_bytes": peaks[name],
            "trained_parameters": num_trained(replace(trial, method=SIDES[name])),
            "time_over_lora": median(turn[name] / turn["LoRA"] for turn in turns),
            "memory_over_lora": peaks[name] / peaks["LoRA"],
        }
        for name in SIDES
    }


def num_trained(trial: Trial) -> int:
    """Trained parameters of one member."""
    from lorae.shapes import linear_shapes
    from lorae.sources import backbone_config

    config = backbone_config(trial.backbone)
    layers = trial.method.adapted_layers(linear_shapes(config), trial.backbone.label)
    return trial.method.num_trained(config, layers)


def text(found: dict[str, Any]) -> str:
    """The figures as a small table."""
    lines = [
        found["machine"],
        f"one adapter of rank {found['rank']} on queries and values, {found['steps']} steps a round",
        f"{'side':<16} {'s/step':>8} {'/ LoRA':>7} {'peak':>9} {'/ LoRA':>7} {'parameters':>11}",
    ]
    lines += [
        f"{name:<16} {side['seconds_per_step']:>8.3f} {side['time_over_lora']:>7.2f} "
        f"{side['peak_bytes'] / 2**20:>5.0f} MiB {side['memory_over_lora']:>7.2f} "
        f"{side['trained_parameters']:>11,}"
        for name, side in found["sides"].items()
    ]
    lines.append("peak: resident memory of the side's process, or of the GPU, with the backbone")
    return "\n".join(lines)
