"""What stacks run on: kinds of GPUs, this machine's devices, and those of a Ray cluster's nodes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jobs import cluster
from lorae.planning.estimate import Devices


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU: memory as nvidia-smi reports it, dense bf16 (else fp16) rate from the data sheet."""

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
    "l40s": Gpu(45, 362),
    "a100-40": Gpu(40, 312),
    "a100-80": Gpu(80, 312),
    "h100": Gpu(79.6, 989),
    "h200": Gpu(140.4, 989),
}


def known_gpu(name: str, memory_bytes: int | None = None) -> Gpu | None:
    """The kind that a driver or Ray calls `name` ("NVIDIA A100-SXM4-80GB", "A100"); the smallest if several
    have that name and the memory is not given."""
    found = [gpu for kind, gpu in GPUS.items() if kind.split("-")[0] in _words(name)]
    if memory_bytes:
        return min(found, key=lambda gpu: abs(gpu.memory_bytes - memory_bytes), default=None)
    return min(found, key=lambda gpu: gpu.gib, default=None)


def _words(name: str) -> list[str]:
    return re.split(r"[^a-z0-9]+", name.lower())


@dataclass(frozen=True)
class Seen:
    """A GPU as its driver reports it; its memory is None if unknown."""

    index: str
    uuid: str
    name: str
    memory_bytes: int | None

    @property
    def peak_flops(self) -> float | None:
        known = known_gpu(self.name, self.memory_bytes)
        return known.peak_flops if known else None


def local_devices() -> Devices:
    """This machine's GPUs that CUDA_VISIBLE_DEVICES allows, or its CPUs; loads neither torch nor ray."""
    gpus = visible_gpus()
    cpus = len(os.sched_getaffinity(0))
    if not gpus:
        return cpu_devices([cpus])
    return _like_the_least(gpus, Devices("cuda", len(gpus), max(1, cpus // len(gpus)), per_node=len(gpus)))


def process_devices() -> Devices:
    """Devices for one process that runs stacks one after another: the first GPU, or all CPUs."""
    here = local_devices()
    cpus = here.cpus_per_stack if here.kind == "cuda" else here.num * here.cpus_per_stack
    return replace(here, num=1, cpus_per_stack=cpus)


def _like_the_least(gpus: Sequence[Seen], devices: Devices) -> Devices:
    """The devices with the memory and rate of the GPU that has the least memory, if all report theirs."""
    if not gpus or any(gpu.memory_bytes is None for gpu in gpus):
        return devices
    least = min(gpus, key=lambda gpu: gpu.memory_bytes or 0)
    return replace(devices, memory_bytes=least.memory_bytes, peak_flops=least.peak_flops)


def cpu_has_bf16(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether this machine's CPUs multiply in bf16 (avx512_bf16, AMX, Arm's bf16); True if unknown."""
    try:
        words = set(Path(cpuinfo).read_text().split())
    except OSError:
        return True
    return not words.isdisjoint(("avx512_bf16", "amx_bf16", "bf16"))


def cpu_devices(cpus_of_nodes: list[int]) -> Devices:
    """Two stacks per node if it has two CPUs: threads of one stack wait for each other, stacks do not."""
    per_node = 2 if min(cpus_of_nodes) >= 2 else 1
    return Devices("cpu", per_node * len(cpus_of_nodes), min(cpus_of_nodes) // per_node)


def ray_devices(nodes: list[cluster.Resources], seen: Sequence[Seen] = ()) -> Devices:
    """What the nodes of a cluster can run, from their Ray resources. If nodes differ, a stack asks for no
    more than each of them has; the smallest kind of GPU counts.

    Args:
        seen: GPUs of the running nodes; Ray's name of a kind does not distinguish the A100s.
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
    num_gpus, num_cpus = zip(*((int(n["GPU"]), int(n.get("CPU", 0))) for n in with_gpus))
    for gpus, cpus in zip(num_gpus, num_cpus):
        if cpus < gpus:
            raise ValueError(
                f"a node has {gpus} GPUs and {cpus} CPUs; a stack needs a CPU beside its GPU; start "
                "Ray there with --num-cpus=N, at least the number of its GPUs"
            )
    cpus_per_stack = min(c // g for g, c in zip(num_gpus, num_cpus))
    devices = Devices("cuda", sum(num_gpus), cpus_per_stack, per_node=min(num_gpus))
    names = {key.partition(":")[2] for n in with_gpus for key in n if key.startswith("accelerator_type:")}
    for name in sorted(names):
        if not any(_is_named(gpu, name) for gpu in seen):  # of nodes that have not started yet
            kind = known_gpu(name)
            seen = [*seen, Seen("", "", name, kind.memory_bytes if kind else None)]
    return _like_the_least(seen, devices)


def _is_named(gpu: Seen, name: str) -> bool:
    """Whether Ray calls this GPU `name`: "A100", "GeForce-RTX-4090"."""
    return all(word in _words(gpu.name) for word in _words(name) if not re.fullmatch(r"\d+gb?", word))


def nvidia_gpus() -> list[Seen]:
    """Every GPU of this machine."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=index,uuid,memory.total,name", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True)
    rows = [line.split(", ", 3) for line in done.stdout.splitlines()] if done.returncode == 0 else []
    return [
        Seen(index, uuid, name, int(mib) * 2**20 if mib.isdigit() else None)
        for index, uuid, mib, name in rows
    ]


def visible_gpus() -> list[Seen]:
    """GPUs of this machine that CUDA_VISIBLE_DEVICES leaves to this process."""
    gpus, visible = nvidia_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return gpus
    found = []
    for word in visible.split(","):  # CUDA stops at the first invalid one
        gpu = next((g for g in gpus if word and (word == g.index or g.uuid.startswith(word))), None)
        if gpus and word.startswith("MIG-"):  # a part of a GPU
            gpu = Seen("", word, word, None)
        if gpu is None:
            break
        found.append(gpu)
    return found
