"""Where each stack runs, and how members are spread over devices."""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from lorae.methods.full import MAX_FULL_BYTES, full_member_bytes
from lorae.planning.estimate import Devices, Host, Placement, estimate, memory, typical
from lorae.planning.memory import Saving
from lorae.planning.stack import Stack
from lorae.sources import backbone_config

WORTH_HALVING = 0.9  # of a stack's time, that its longer half takes at most
USABLE_FRAC = 0.9  # of a GPU's memory; the rest: CUDA's context, workspaces, the allocator's fragments


def place(stack: Stack, devices: Devices, host: Host = "tune") -> Placement:
    """One device if the stack fits, with the largest micro-batch that does; else ZeRO-3 over as few GPUs of a
    node as suffice.

    Raises:
        ValueError: it fits nowhere, or its backbone cannot be parted; what to do.
    """
    return _place(typical(stack), devices, host)


@functools.lru_cache(maxsize=4096)
def _place(stack: Stack, devices: Devices, host: Host) -> Placement:
    asked = devices.stack_devices
    if asked and stack.members and stack.trial.method.regime == "alone":
        raise ValueError(
            f"--zero {asked} with Full(): its members are copies of the whole backbone, of which each worker "
            "has a part; leave --zero out, or write another method"
        )
    if asked and devices.memory_bytes is None:
        return Placement("zero", asked, None, f"asked for, {asked} workers per stack")
    if devices.memory_bytes is None:
        gpus = int(devices.kind == "cuda")
        why = "GPU whose memory is not known" if gpus else f"CPU, {devices.cpus_per_stack} per stack"
        return Placement(host, gpus, None, why)
    usable, saving = USABLE_FRAC * devices.memory_bytes, devices.saving
    batch = stack.trial.budget.batch_size
    what = f"usable {usable / 2**30:.1f} of {devices.memory_bytes / 2**30:.1f} GiB"
    alone = host == "local" or stack.trial.method.regime == "alone"
    widest = asked or (1 if alone else devices.per_node)
    for gpus in [asked] if asked else range(1, widest + 1):
        share = -(-batch // gpus)
        if rows := _largest_rows(stack, share, usable, gpus, saving):
            needs = memory(stack, rows, gpus, saving)
            micro = None if rows == share else rows
            fits = f"{_gib(needs.total)} fit into the {what}" + (
                f" by micro-batches of {micro}" if micro else ""
            )
            if gpus == 1:
                return Placement(host, 1, micro, fits)
            alone = memory(stack, 1, 1, saving)
            return Placement(
                "zero", gpus, micro, f"{_gib(alone.total)} exceed the {what}; on {gpus} GPUs {fits}"
            )
    needs = memory(stack, 1, widest, saving)
    raise ValueError(
        f"{stack.trial.backbone.label} with {len(stack.members)} members and one example each needs "
        f"{_gib(needs.total)} on each of {widest} GPUs: more than the {what}; "
        + ("leave --local out, " if host == "local" and devices.per_node > 1 else "")
        + f"take larger GPUs or more per node, lower Budget(max_tokens={stack.trial.budget.max_tokens}) "
        + "or write precision='bf16'"
    )


def _largest_rows(stack: Stack, most: int, usable: float, gpus: int, saving: Saving) -> int:
    """Most examples of each member per forward pass that fit, 0 if not even one does."""
    low, high = 0, most
    while low < high:
        middle = -(-(low + high) // 2)
        if memory(stack, middle, gpus, saving).total <= usable:
            low = middle
        else:
            high = middle - 1
    return low


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"


def _fitting(stack: Stack, devices: Devices, host: Host) -> list[Stack]:
    """The stack, or its halves, or theirs: parts that fit on one GPU if a single member does, else on the
    GPUs of a node."""
    if len(stack.members) <= 1:
        return [stack]
    if devices.memory_bytes is None:
        if _full_bytes(stack) <= MAX_FULL_BYTES:
            return [stack]
        return [part for half in _halves(stack) for part in _fitting(half, devices, host)]
    single = replace(stack, members=stack.members[:1])
    alone = host == "local" or stack.trial.method.regime == "alone"
    gpus = devices.stack_devices or (1 if alone or _fits(single, devices, 1) else devices.per_node)
    if _fits(stack, devices, gpus):
        return [stack]
    return [part for half in _halves(stack) for part in _fitting(half, devices, host)]


def _full_bytes(stack: Stack) -> int:
    """What the weights of members that are fine-tuned in full take, with gradients and moments."""
    if stack.trial.method.regime != "alone":
        return 0
    return len(stack.members) * full_member_bytes(backbone_config(stack.trial.backbone))


def _fits(stack: Stack, devices: Devices, gpus: int) -> bool:
    assert devices.memory_bytes is not None
    return _least_bytes(typical(stack), gpus, devices.saving) <= USABLE_FRAC * devices.memory_bytes


@functools.lru_cache(maxsize=4096)
def _least_bytes(stack: Stack, gpus: int, saving: Saving) -> int:
    return memory(stack, 1, gpus, saving).total


def divided(begun: Sequence[Stack], pending: Sequence[Stack], devices: Devices, host: Host) -> list[Stack]:
    """Stacks in parts that fit, the pending ones spread over the devices."""
    begun, pending = (
        [part for stack in stacks for part in _fitting(stack, devices, host)] for stacks in (begun, pending)
    )
    return begun + _spread(pending, begun, devices, host)


def _halves(stack: Stack) -> list[Stack]:
    half = math.ceil(len(stack.members) / 2)
    return [replace(stack, members=part) for part in (stack.members[:half], stack.members[half:])]


def _spread(stacks: list[Stack], begun: list[Stack], devices: Devices, host: Host) -> list[Stack]:
    """Halve stacks, the longest first, until no device idles long while another works; members stay exact.

    Those that were begun occupy devices too, and stay whole.

    A stack on its own is cheapest, so it is halved only while the busiest device has a tenth more to do than
    the mean, and only where its halves are shorter: the floor of a step is the same for few members.
    """
    if not stacks:
        return []
    places = [place(s, devices, host) for s in stacks]
    num = max(1, devices.num // max(1, *(p.gpus for p in places)))
    seconds = [estimate(s, devices, p).seconds for s, p in zip(stacks, places)]
    occupied = [estimate(s, devices, place(s, devices, host)).seconds for s in begun]
    most, whole = len(stacks) + 4 * num, set[Stack]()
    while len(stacks) < most:
        loads = [*seconds, *occupied]
        if _busiest_seconds(loads, num) <= 1.1 * sum(loads) / num:
            break
        divisible = [i for i, s in enumerate(stacks) if len(s.members) > 1 and s not in whole]
        if not divisible:
            break
        at = max(divisible, key=lambda i: seconds[i])
        parts = _halves(stacks[at])
        shorter = [estimate(s, devices, place(s, devices, host)).seconds for s in parts]
        if max(shorter) > WORTH_HALVING * seconds[at]:
            whole.add(stacks[at])
            continue
        stacks[at : at + 1], seconds[at : at + 1] = parts, shorter
    return stacks


def _busiest_seconds(seconds: Iterable[float], num: int) -> float:
    """Time of the device that finishes last when each takes the longest stack that is left."""
    loads = [0.0] * num
    for duration in sorted(seconds, reverse=True):
        heapq.heapreplace(loads, loads[0] + duration)
    return max(loads)
