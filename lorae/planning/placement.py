"""Where each stack runs, and how members are distributed over devices."""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from lorae.methods.full import MAX_FULL_BYTES, full_member_bytes
from lorae.planning.estimate import Devices, Host, Placement, estimate, memory, together, typical
from lorae.planning.memory import Saving
from lorae.planning.stack import Stack, joined, of_members
from lorae.sources import backbone_config
from lorae.trial import in_common

WORTH_HALVING = 0.9  # a stack is halved only if its longer half takes at most this share of its time
NEARLY = 1.1  # stacks may end later than they could by this factor if they then take less of the devices
WORTH_SHARING = 0.9  # a stack joins others only if it then adds at most this share of its own time
USABLE_FRAC = 0.9  # of a GPU's memory; the rest is for CUDA's context, workspaces and fragmentation


def place(stack: Stack, devices: Devices, host: Host = "tune") -> Placement:
    """One device if the stack fits, with the largest micro-batch that fits; otherwise ZeRO-3 over as few GPUs
    of a node as suffice.

    Raises:
        ValueError: the stack fits nowhere, or its backbone cannot be partitioned; says what to do.
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
            single = memory(stack, 1, 1, saving)
            return Placement(
                "zero", gpus, micro, f"{_gib(single.total)} exceed the {what}; on {gpus} GPUs {fits}"
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
    """Most examples per member and forward pass that fit, 0 if not even one fits."""
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
    """The stack, halved recursively into parts that fit on one GPU if a single member does, else on the GPUs
    of a node."""
    if stack.num_members <= 1:
        return [stack]
    if devices.memory_bytes is None:
        if _full_bytes(stack) <= MAX_FULL_BYTES:
            return [stack]
        return [part for half in _halves(stack) for part in _fitting(half, devices, host)]
    single = replace(stack, members=stack.members[:1], beside=())
    alone = host == "local" or stack.trial.method.regime == "alone"
    gpus = devices.stack_devices or (1 if alone or _fits(single, devices, 1) else devices.per_node)
    if _fits(stack, devices, gpus):
        return [stack]
    return [part for half in _halves(stack) for part in _fitting(half, devices, host)]


def _full_bytes(stack: Stack) -> int:
    """Bytes of the weights, gradients and moments of fully fine-tuned members; 0 for other methods."""
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
    """Stacks divided into parts that fit, with the pending ones distributed over the devices.

    Each stack takes its own steps, or some of them share theirs, as many as there are for a device or as many
    as can: of what ends nearly as soon as any, that which takes least of the devices.
    """
    begun, pending = (
        [part for stack in stacks for part in _fitting(stack, devices, host)] for stacks in (begun, pending)
    )
    plans = [_spread([*pending], begun, devices, host)]
    if devices.floor_seconds(1) and devices.memory_bytes is not None:
        for most in dict.fromkeys((-(-len(pending) // devices.num), len(pending))):
            plans.append(_spread(_shared(pending, devices, host, most), begun, devices, host))
    found = [(stacks, *_busiest_and_total([*begun, *stacks], devices, host)) for stacks in plans]
    soonest = min(ends for _, ends, _ in found)
    return begun + min((row for row in found if row[1] <= NEARLY * soonest), key=lambda row: row[2])[0]


def _busiest_and_total(stacks: Iterable[Stack], devices: Devices, host: Host) -> tuple[float, float]:
    """Seconds until the last device ends, and of all devices together."""
    seconds = [estimate(s, devices, place(s, devices, host)).seconds for s in stacks]
    return _busiest_seconds(seconds, devices.num), sum(seconds)


def _shared(stacks: Sequence[Stack], devices: Devices, host: Host, most: int) -> list[Stack]:
    """Stacks that share their steps, at most so many: each is joined by others as long as all fit on the
    device with their whole batches, and a step takes clearly less than their own steps together, since it has
    a floor."""
    alike: dict[Any, list[Stack]] = {}
    for stack in stacks:
        sharing = stack.members and stack.to_train == stack.members
        alike.setdefault((in_common(stack.trial), stack.paths) if sharing else stack, []).append(stack)
    found: list[Stack] = []
    for group in alike.values():
        group.sort(key=lambda stack: stack.trial.seed)  # batches of one seed are of similar lengths
        grown = group[0]
        for stack in group[1:]:
            wider = replace(grown, beside=(*grown.beside, stack))
            if len(grown.beside) + 1 < most and _pays(grown, stack, wider, devices, host):
                grown = wider
            else:
                found.append(grown)
                grown = stack
        found.append(grown)
    return [joined((replace(stack, beside=()), *stack.beside)) for stack in found]


def _pays(one: Stack, other: Stack, both: Stack, devices: Devices, host: Host) -> bool:
    """Whether two stacks should take their steps together."""
    if not _fits(both, devices, 1):
        return False
    stacks = one, other, both
    places = [place(stack, devices, host) for stack in stacks]
    if any(where.host == "zero" or where.micro_batch for where in places):
        return False
    own, others, shared = (together(s, devices, p).train_seconds for s, p in zip(stacks, places))
    return shared - own < WORTH_SHARING * others


def _halves(stack: Stack) -> list[Stack]:
    members = [(part, m) for part in stack.parts for m in part.members]
    half = math.ceil(len(members) / 2)
    return [of_members(members[:half]), of_members(members[half:])]


def _spread(stacks: list[Stack], begun: list[Stack], devices: Devices, host: Host) -> list[Stack]:
    """Halve stacks, the longest first, until no device idles long while another works; members stay exact.

    Begun stacks also occupy devices, and are not halved.

    A whole stack is cheapest, so stacks are halved only while the busiest device has over a tenth more work
    than the mean, and only if the halves are shorter: a step's fixed cost is the same for few members.
    """
    if not stacks:
        return []
    places = [place(s, devices, host) for s in stacks]
    num = max(1, devices.num // max(1, *(p.gpus for p in places)))
    seconds = [estimate(s, devices, p).seconds for s, p in zip(stacks, places)]
    occupied = [estimate(s, devices, place(s, devices, host)).seconds for s in begun]
    most, whole = len(stacks) + 4 * num, set[int]()  # the ids of those that are not worth halving
    while len(stacks) < most:
        loads = [*seconds, *occupied]
        if _busiest_seconds(loads, num) <= 1.1 * sum(loads) / num:
            break
        divisible = [i for i, s in enumerate(stacks) if s.num_members > 1 and id(s) not in whole]
        if not divisible:
            break
        at = max(divisible, key=lambda i: seconds[i])
        parts = _halves(stacks[at])
        shorter = [estimate(s, devices, place(s, devices, host)).seconds for s in parts]
        if max(shorter) > WORTH_HALVING * seconds[at]:
            whole.add(id(stacks[at]))
            continue
        stacks[at : at + 1], seconds[at : at + 1] = parts, shorter
    return stacks


def _busiest_seconds(seconds: Iterable[float], num: int) -> float:
    """Time of the device that finishes last if each takes the longest remaining stack."""
    loads = [0.0] * num
    for duration in sorted(seconds, reverse=True):
        heapq.heapreplace(loads, loads[0] + duration)
    return max(loads)
