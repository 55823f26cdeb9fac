"""What stacks run on: kinds of GPUs, this machine's devices, and those of a Ray cluster's nodes."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from jobs import cluster
from lorae.plan import Devices


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU: memory as nvidia-smi reports it, dense bf16 (else fp16) rate of the data sheet."""

    gib: float
    tflops: float

    @property
    def memory_bytes(self) -> int:
        return int(self.gib * 2**30)

    @property
    def peak_flops(self) -> float:
        return self.tflops * 1e12


GPUS = {
    "t4": Gpu(15, 65),
    "v100-16": Gpu(16, 125),
    "v100-32": Gpu(32, 125),
    "a10g": Gpu(22.5, 70),
    "l4": Gpu(22.5, 121),
    "a100-40": Gpu(40, 312),
    "a100-80": Gpu(80, 312),
    "h100": Gpu(79.6, 989),
    "h200": Gpu(140.4, 989),
}


def known_gpu(name: str, memory_bytes: int | None = None) -> Gpu | None:
    """The kind that a driver or Ray calls by `name` ("NVIDIA A100-SXM4-80GB", "A100"), the smallest one if
    several have that name and the memory is not given."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    found = [gpu for kind, gpu in GPUS.items() if kind.split("-")[0] in words]
    if memory_bytes:
        return min(found, key=lambda gpu: abs(gpu.memory_bytes - memory_bytes), default=None)
    return min(found, key=lambda gpu: gpu.gib, default=None)


def local_devices() -> Devices:
    """This machine's GPUs, or its CPUs; loads neither torch nor ray."""
    gpus = _nvidia_gpus()
    cpus = len(os.sched_getaffinity(0))
    if not gpus:
        return cpu_devices([cpus])
    name, memory_bytes = min(gpus, key=lambda gpu: gpu[1])
    known = known_gpu(name, memory_bytes)
    flops = known.peak_flops if known else None
    return Devices("cuda", len(gpus), max(1, cpus // len(gpus)), memory_bytes, len(gpus), flops)


def cpu_has_bf16(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether this machine's CPUs multiply in bf16 (avx512_bf16, AMX, Arm's bf16); True where Linux does not
    tell."""
    try:
        words = set(Path(cpuinfo).read_text().split())
    except OSError:
        return True
    return not words.isdisjoint(("avx512_bf16", "amx_bf16", "bf16"))


def cpu_devices(cpus_of_nodes: list[int]) -> Devices:
    """Two stacks per node where it has two CPUs: threads of one stack wait for each other, stacks do not."""
    per_node = 2 if min(cpus_of_nodes) >= 2 else 1
    return Devices("cpu", per_node * len(cpus_of_nodes), min(cpus_of_nodes) // per_node)


def ray_devices(nodes: list[cluster.Resources]) -> Devices:
    """What the nodes of a cluster can run, from their Ray resources. Where nodes differ a stack asks for no
    more than each has; of several kinds of GPU the smallest counts.

    Raises:
        ValueError: no stack could ever start.
    """
    with_gpus = [n for n in nodes if n.get("GPU", 0) >= 1]
    if not with_gpus:
        cpus_of_nodes = [int(n["CPU"]) for n in nodes if n.get("CPU", 0) >= 1]
        if not cpus_of_nodes:
            raise ValueError(
                f"the cluster has {len(nodes)} nodes without GPU or CPU and will start no others; start Ray "
                "with --num-cpus=N on a node, or give a worker type of cluster.yaml max_workers above 0"
            )
        return cpu_devices(cpus_of_nodes)
    gpus, cpus = zip(*((int(n["GPU"]), int(n.get("CPU", 0))) for n in with_gpus))
    for num_gpus, num_cpus in zip(gpus, cpus):
        if num_cpus < num_gpus:
            raise ValueError(
                f"a node has {num_gpus} GPUs and {num_cpus} CPUs; a stack needs a CPU beside its GPU; start "
                "Ray there with --num-cpus=N, at least the number of its GPUs"
            )
    cpus_per_stack = min(c // g for g, c in zip(gpus, cpus))
    names = {key.partition(":")[2] for n in with_gpus for key in n if key.startswith("accelerator_type:")}
    kinds = [known_gpu(name) for name in names]
    if not kinds or None in kinds:
        return Devices("cuda", sum(gpus), cpus_per_stack, per_node=min(gpus))
    least = min((k for k in kinds if k), key=lambda k: k.gib)
    return Devices("cuda", sum(gpus), cpus_per_stack, least.memory_bytes, min(gpus), least.peak_flops)


def _nvidia_gpus() -> list[tuple[str, int]]:
    """Name and memory in bytes of each GPU of this machine."""
    import shutil
    import subprocess

    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True)
    rows = [line.rpartition(",") for line in done.stdout.splitlines()] if done.returncode == 0 else []
    return [(name, int(mib) * 2**20) for name, _, mib in rows]
