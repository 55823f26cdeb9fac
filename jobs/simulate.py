"""How long a plan would take on other GPUs: list scheduling of its stacks by their estimates."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.devices import GPUS
from lorae.planning.estimate import Devices
from lorae.planning.plan import Plan

GPUS_PER_NODE = 8


@dataclass(frozen=True)
class Simulation:
    """The outcome, as rough as the estimates of the stacks.

    Attributes:
        gpu_hours: paid for: all GPUs until the last stack ends.
        idle_frac: share of these hours in which a GPU waits.
    """

    gpus: int
    stacks: int
    makespan_seconds: float
    gpu_hours: float
    idle_frac: float

    def __str__(self) -> str:
        took, idle = duration(self.makespan_seconds), f"{self.idle_frac:.0%} of them idle"
        stacks = f"simulated: {self.stacks} stacks on {self.gpus} GPUs"
        return f"{stacks} take roughly {took}, {self.gpu_hours:.1f} GPU hours, {idle}"


def simulated_devices(gpus: int | None, name: str | None) -> Devices:
    """`gpus` GPUs of a known kind, 8 to a node; None = one node, of A100s with 80 GB.

    Raises:
        ValueError: there is no such kind, or `gpus` is below 1.
    """
    gpus, name = GPUS_PER_NODE if gpus is None else gpus, name or "a100-80"
    if name not in GPUS:
        raise ValueError(f"--gpu {name}: must be one of {', '.join(GPUS)}")
    if gpus < 1:
        raise ValueError(f"--gpus {gpus}: must be >= 1")
    kind = GPUS[name]
    return Devices("cuda", gpus, 1, kind.memory_bytes, min(gpus, GPUS_PER_NODE), kind.peak_flops)


def simulate(plan: Plan, devices: Devices) -> Simulation:
    """Start each stack, in the plan's order, on the node whose GPUs are free first; the tuning ends before
    the rest begins."""
    rounds = [part for part in (plan.tuning, plan) if part]
    makespan, busy = map(sum, zip(*(_run(part, devices) for part in rounds)))
    paid = devices.num * makespan
    idle = max(0.0, 1 - busy / paid) if paid else 0.0
    return Simulation(devices.num, sum(len(part.stacks) for part in rounds), makespan, paid / 3600, idle)


def _run(plan: Plan, devices: Devices) -> tuple[float, float]:
    """Seconds until the last stack ends, and busy seconds summed over all GPUs."""
    per_node, rest = devices.per_node, devices.num % devices.per_node
    sizes = [per_node] * (devices.num // per_node) + ([rest] if rest else [])
    nodes = [[0.0] * size for size in sizes]  # when each GPU is free
    busy = 0.0
    for where, estimate in zip(plan.placements, plan.estimates):
        free = min((n for n in nodes if len(n) >= where.gpus), key=lambda n: sorted(n)[where.gpus - 1])
        free.sort()
        end = free[where.gpus - 1] + estimate.seconds
        free[: where.gpus] = [end] * where.gpus
        busy += where.gpus * estimate.seconds
    return max(map(max, nodes)), busy


def duration(seconds: float) -> str:
    """Seconds in words."""
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
