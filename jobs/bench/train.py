"""`lorae bench train`: a stack of five members against PEFT and the HF Trainer, the best PEFT loop, and the
limit, two bare forward passes over the same tokens.

All sides take turns, each in its own process with the same environment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from jobs.bench.limit import beside_limit
from jobs.bench.peft_side import best_loop, hf_trainer
from jobs.bench.setting import (
    Setting,
    StepClock,
    batches,
    num_tokens,
    peak_memory,
    rows,
)
from lorae.trial import Trial

STEPS = {  # timed in each round, after one that is not
    "cpu": {"rotten_tomatoes": 4, "openbookqa": 2},
    "cuda": {"rotten_tomatoes": 24, "openbookqa": 24},
}
REPETITIONS = {"cpu": 2, "cuda": 3}
SIDES = {"lorae": "lorae", "trainer": "PEFT + Trainer", "loop": "PEFT, best loop", "limit": "limit"}


def measure(where: Setting) -> dict[str, Any]:
    """All figures as plain data, by task."""
    steps = STEPS[where.device]
    return {
        "machine": where.machine,
        "left_out": list(where.left_out),
        "tasks": {
            name: compare(with_steps(trial, steps[name] + 1), where.device, REPETITIONS[where.device])
            for name, trial in where.trials.items()
        },
    }


def with_steps(trial: Trial, steps: int) -> Trial:
    """The recipe with this number of optimiser steps."""
    return replace(trial, budget=replace(trial.budget, epochs=None, steps=steps))


def compare(trial: Trial, device: str, repetitions: int) -> dict[str, Any]:
    """Run the four sides in turns, on the trial's own batches."""
    train = rows(trial, "train")
    timed = [row for m in range(trial.members) for batch in batches(trial, m, train)[1:] for row in batch]
    sides = {"lorae": lorae_stack, "trainer": hf_trainer, "loop": best_loop}
    with beside_limit(sides, trial, device, timed) as started:
        found = in_turns(started, repetitions)
        for name, process in started.items():
            found["sides"][name]["peak_bytes"] = process.call(peak_memory, device)
    return {"rows": len(timed), "tokens": num_tokens(timed), "steps": trial.budget.steps, **found}


def in_turns(sides: dict[str, Any], repetitions: int) -> dict[str, Any]:
    """Run the sides (generators, or `Rounds` of them) in turns, round by round; returns medians and
    ratios."""
    what = {name: next(side) for name, side in sides.items()}
    turns: dict[str, list[Any]] = {name: [] for name in sides}
    for _ in range(repetitions):
        for name, side in sides.items():
            turns[name].append(next(side))
    passes = [(2 * seconds, tokens) for seconds, tokens in turns.pop("limit")]
    found: dict[str, Any] = {
        name: {
            "what": what[name],
            "member_examples_per_second": median([n / seconds for seconds, n, _, _ in done]),
            "tokens_per_second": median([tokens / seconds for seconds, _, tokens, _ in done]),
            "mean_losses": {m: loss for *_, losses in done for m, loss in losses.items()},
        }
        for name, done in turns.items()
    }
    found["limit"] = {
        "what": "twice " + what["limit"],
        "tokens_per_second": median([tokens / seconds for seconds, tokens in passes]),
    }
    ours, theirs = found["lorae"]["mean_losses"], found["loop"]["mean_losses"]
    return {
        "sides": found,
        "loss_difference": max(abs(ours[m] - theirs[m]) for m in theirs),
        "ratios": {
            "trainer": _ratio(turns["lorae"], turns["trainer"]),
            "loop": _ratio(turns["lorae"], turns["loop"]),
            "limit": median(
                [
                    tokens / two / (n_tokens / seconds)
                    for (seconds, _, n_tokens, _), (two, tokens) in zip(turns["lorae"], passes)
                ]
            ),
        },
    }


def _ratio(ours: Sequence[Any], theirs: Sequence[Any]) -> float:
    """Member-examples per second of one over the other, round by round."""
    return median([a[1] / a[0] / (b[1] / b[0]) for a, b in zip(ours, theirs)])


def lorae_stack(trial: Trial, device: str) -> Iterator[Any]:
    """Yields its description, then (seconds, examples, tokens, {member: mean loss}) for each round."""
    from lorae.backbone.loading import load_backbone
    from lorae.engine.training import TrainingData, train_stack

    backbone = load_backbone(trial.backbone, trial.precision, device)
    train, members = rows(trial, "train"), range(trial.members)
    data = TrainingData(train, train[:1])
    yield f"lorae's train_stack, its defaults: {trial.members} members together on one backbone"
    timed = [row for m in members for batch in batches(trial, m, train)[1:] for row in batch]
    while True:
        clock = StepClock(device)
        runs = train_stack(backbone, trial, members, data, on_step=clock)
        losses = {run.member: sum(float(r["loss"]) for r in run.curve) / len(run.curve) for run in runs}
        yield clock.seconds, len(timed), num_tokens(timed), losses


def text(found: dict[str, Any]) -> str:
    """The figures as a small table for each task."""
    lines = [found["machine"], *(f"left out: {why}" for why in found["left_out"])]
    for name, task in found["tasks"].items():
        lines.append(
            f"\n{name}: {task['rows']} sentences of 5 members, {task['tokens'] / task['rows']:.0f} tokens "
            "each; medians of rounds in turns"
        )
        lines.append(
            f"{'side':<16} {'examples/s':>10} {'tokens/s':>9} {'lorae is':>9} {'peak':>9} {'loss':>6}"
        )
        for key, title in SIDES.items():
            side, losses = task["sides"][key], task["sides"][key].get("mean_losses")
            examples = f"{side['member_examples_per_second']:.2f}" if losses else ""
            ratio = f"{task['ratios'][key]:.2f} x" if key in task["ratios"] else ""
            loss = f"{median(list(losses.values())):.3f}" if losses else ""
            lines.append(
                f"{title:<16} {examples:>10} {side['tokens_per_second']:>9.0f} {ratio:>9} "
                f"{side['peak_bytes'] / 2**20:>5.0f} MiB {loss:>6}"
            )
        lines += [f"  {title}: {task['sides'][key]['what']}" for key, title in SIDES.items()]
        lines.append(
            "examples: of all members; lorae is: times as fast as PEFT, times the limit's seconds; "
            "peak: resident memory of the side's process, or of the GPU; loss: mean over the training"
        )
        lines.append(
            f"the best loop's members and lorae's differ by at most {task['loss_difference']:.1e} in their "
            "mean loss; the Trainer's loss is that of the full vocabulary"
        )
    return "\n".join(lines)
