"""`lorae bench memory`: peak memory of training and predicting with a stack of ten members, and with one.

Each stack has its own process. What the process holds besides the weights once the backbone is loaded
(interpreter and libraries) is left out; on CUDA the figures are the GPU's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jobs.bench.apart import apart, forget_peak, resident_bytes
from jobs.bench.setting import Setting, environment, peak_memory, rows
from jobs.bench.train import with_steps
from lorae.trial import Trial

MEMBERS = {"cpu": (1, 10), "cuda": (1, 5, 10)}
STEPS = 8  # one for every length of the batches in a window
NUM_TEST = 16  # more than one batch for ten members; all batches have equally many tokens


def measure(where: Setting) -> dict[str, Any]:
    """Every figure as plain data."""
    trial = with_steps(where.trial, STEPS)
    stacks = []
    for members in MEMBERS[where.device]:
        many = replace(trial, members=members)
        stacks.append(apart(stack_bytes, many, where.device, environment=environment()).result)
    return {"machine": where.machine, "stacks": stacks, "largest": against_bound(stacks)}


def stack_bytes(trial: Trial, device: str) -> dict[str, int]:
    """Bytes of a stack at its peak, by kind."""
    import torch

    from lorae.backbone.loading import load_backbone
    from lorae.engine.adapters import Adapters
    from lorae.engine.prediction import predict
    from lorae.engine.training import TrainingData, train_stack

    cuda = device == "cuda"
    train, members = rows(trial, "train"), range(trial.members)
    backbone = load_backbone(trial.backbone, trial.precision, device)
    weights = sum(p.numel() * p.element_size() for p in backbone.lm.parameters())
    before = 0 if cuda else resident_bytes() - weights
    torch.cuda.reset_peak_memory_stats() if cuda else forget_peak()
    runs = train_stack(backbone, trial, members, TrainingData(train, train[:1]))
    with Adapters(backbone, trial.method, [trial.member_key(m)["init"] for m in members]):
        predict(backbone, rows(trial, "test")[:NUM_TEST])
    peak = peak_memory(device) - before
    adapters = 4 * sum(4 * p.numel() for run in runs for p in run.state.values())
    return {
        "members": trial.members,
        "peak_bytes": peak,
        "backbone_bytes": weights,
        "adapter_bytes": adapters,  # parameters, gradients and two moments, all fp32
        "activation_bytes": peak - weights - adapters,
    }


def against_bound(stacks: list[dict[str, int]]) -> dict[str, Any]:
    """The largest stack relative to one backbone plus M times one member's adapters and activations."""
    one, most = stacks[0], stacks[-1]
    times = most["members"] / one["members"]
    bound = one["backbone_bytes"] + times * (one["adapter_bytes"] + one["activation_bytes"])
    return {
        "members": most["members"],
        "over_bound": most["peak_bytes"] / bound,
        "over_one": most["peak_bytes"] / one["peak_bytes"],
    }


def text(found: dict[str, Any]) -> str:
    """The figures as a small table."""
    lines = [found["machine"], "\npeak of training and predicting with a stack, libraries left out, MiB"]
    parts = ("peak", "backbone", "adapter", "activation")
    lines.append("members" + "".join(f"{part:>12}" for part in parts))
    for stack in found["stacks"]:
        lines.append(
            f"{stack['members']:>7}" + "".join(f"{stack[f'{part}_bytes'] / 2**20:>12.0f}" for part in parts)
        )
    most = found["largest"]
    lines.append(
        "adapter: parameters, gradients and moments, counted; activation: the rest of the peak\n"
        f"{most['members']} members take {most['over_one']:.2f} times the memory of one, and "
        f"{most['over_bound']:.2f} times what one backbone, {most['members']} times the adapters and "
        f"{most['members']} times the activations would take"
    )
    return "\n".join(lines)
