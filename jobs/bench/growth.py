"""`lorae bench growth`: time of a member's step as stacks and sentences get longer, and where that time goes.

The number of members is varied on real batches; the length on rows of equal length, with the same number of
tokens for each member. The profiler gives the share of frozen products: mm and addmm; bmm and baddbmm are
those of the adapters and of eager attention.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jobs.bench.apart import apart
from jobs.bench.setting import (
    Setting,
    StepClock,
    batches,
    environment,
    frozen_flops,
    num_tokens,
    peak_flops,
    rows,
)
from jobs.bench.train import with_steps
from lorae.tasks.encoding import Row
from lorae.trial import Trial

MEMBERS = (1, 2, 5, 10, 20)
LENGTHS = (32, 64, 128, 256, 512)
STEP_TOKENS = {"cpu": 512, "cuda": 4096}  # for each member, where lengths are compared
LENGTH_MEMBERS = 2  # where lengths are compared
STEPS = {"cpu": 2, "cuda": 8}  # timed, after one that is not; half of them where steps are long or alike
LONG = 10  # members
GAIN = 1.05  # a smaller ratio from one size to the next is no gain
PRODUCTS = {
    "frozen products": ("aten::mm", "aten::addmm"),
    "batched products": ("aten::bmm", "aten::baddbmm"),
    "attention": ("aten::_scaled_dot_product", "aten::_flash", "aten::_efficient"),
}


def measure(where: Setting) -> dict[str, Any]:
    """Every figure as plain data."""
    found = apart(grow, where.trial, where.device, MEMBERS, LENGTHS, environment=environment()).result
    limits = [limit(found["members"], "members"), limit(found["lengths"], "length")]
    return {"machine": where.machine, "step_tokens": STEP_TOKENS[where.device], **found, "limits": limits}


def grow(trial: Trial, device: str, sizes: tuple[int, ...], lengths: tuple[int, ...]) -> dict[str, Any]:
    """Steps of stacks of these sizes, then of a stack on rows of these lengths."""
    by_members = []
    for members in sizes:
        steps = STEPS[device] // (2 if members >= LONG else 1)
        many = replace(with_steps(trial, steps + 1), members=members)
        by_members.append({"members": members, **timed(many, rows(trial, "train"), device)})
    by_length = []
    for length in lengths:
        size = STEP_TOKENS[device] // length
        budget = replace(trial.budget, epochs=None, steps=STEPS[device] // 2 + 1, batch_size=size)
        long = replace(trial, budget=budget, members=LENGTH_MEMBERS)
        by_length.append(
            {"length": length, "batch_size": size, **timed(long, of_length(trial, length, size), device)}
        )
    return {"members": by_members, "lengths": by_length}


def of_length(trial: Trial, length: int, batch_size: int) -> list[Row]:
    """A batch of real rows cut or repeated to `length` tokens."""
    some = rows(trial, "train")[:batch_size]
    return [replace(r, tokens=(r.tokens * (length // len(r.tokens) + 1))[:length]) for r in some]


def timed(trial: Trial, train: list[Row], device: str) -> dict[str, Any]:
    """Seconds of a member's step, tokens per second, and shares of the time."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from lorae.backbone.loading import load_backbone
    from lorae.engine.training import TrainingData, train_stack

    backbone, members = load_backbone(trial.backbone, trial.precision, device), range(trial.members)
    data, cuda, clock = TrainingData(train, train[:1]), device == "cuda", StepClock(device)
    profiler = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])])
    if cuda:  # the profiler slows the launch of kernels, but not a CPU's products
        train_stack(backbone, trial, members, data, on_step=clock)

    def on_step(step: int, num_steps: int, runs: object) -> None:
        if not cuda:
            clock()
        if step == num_steps - 1:  # only the last step, since reading a profile takes longer than a step
            profiler.start()
        elif step == num_steps:
            profiler.stop()

    train_stack(backbone, trial, members, data, on_step=on_step)
    tokens = sum(num_tokens(batch) for m in members for batch in batches(trial, m, train)[1:])
    rate, peak = tokens / clock.seconds, peak_flops(device)
    return {
        "seconds_per_member_step": clock.seconds / (len(clock.stamps) - 1) / trial.members,
        "tokens_per_second": rate,
        "shares": shares(profiler.key_averages(), cuda),
        # A frozen layer costs its product in the forward pass and one in the backward pass
        "peak_flops_frac": 2 * frozen_flops(backbone.lm) * rate / peak if peak else None,
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
    }


def shares(events: Any, cuda: bool) -> dict[str, float]:
    """Shares of the operators' own time, by kind; on a GPU without its idle time."""
    from torch.profiler import DeviceType

    operators = [e for e in events if e.device_type == DeviceType.CPU]  # kernels are listed beside them
    own = {e.key: e.self_device_time_total if cuda else e.self_cpu_time_total for e in operators}
    total = sum(own.values())
    found = {
        kind: sum(t for key, t in own.items() if key.startswith(names)) / total
        if kind == "attention"
        else sum(own.get(name, 0) for name in names) / total
        for kind, names in PRODUCTS.items()
    }
    return found | {"rest": 1 - sum(found.values())}


def limit(sizes: list[dict[str, Any]], key: str) -> dict[str, Any]:
    """The size from which tokens per second grow by less than `GAIN` at each larger size, and the share of
    frozen products there."""
    rates = [at["tokens_per_second"] for at in sizes]
    last = max((n for n in range(1, len(rates)) if rates[n] >= GAIN * rates[n - 1]), default=0)
    return {key: sizes[last][key], "frozen_frac": sizes[last]["shares"]["frozen products"]}


def text(found: dict[str, Any]) -> str:
    """The figures as two small tables."""
    lines = [found["machine"]]
    for (kind, title), end in zip((("members", "members"), ("lengths", "length")), found["limits"]):
        what = "real batches of 8"
        if kind == "lengths":
            what = f"{LENGTH_MEMBERS} members, {found['step_tokens']} tokens each"
        lines.append(f"\ntime of a member's step, {what}; shares of the time by the profiler")
        lines.append(
            f"{title:>8} {'ms':>8} {'tokens/s':>9}" + "".join(f"{name:>18}" for name in (*PRODUCTS, "rest"))
        )
        for at in found[kind]:
            lines.append(
                f"{at[title]:>8} {1e3 * at['seconds_per_member_step']:>8.0f} {at['tokens_per_second']:>9.0f}"
                + "".join(f"{100 * share:>16.0f} %" for share in at["shares"].values())
                + (f"  {100 * at['peak_flops_frac']:.0f} % of peak FLOPs" if at["peak_flops_frac"] else "")
            )
        if end[title] == found[kind][-1][title]:
            lines.append(f"tokens per second still grow at the largest {title}")
            continue
        lines.append(
            f"less than {100 * (GAIN - 1):.0f} % more tokens per second at each size beyond {title} "
            f"{end[title]}, where frozen products, of which a larger batch has as many for each token, take "
            f"{100 * end['frozen_frac']:.0f} % of the time"
        )
    return "\n".join(lines)
