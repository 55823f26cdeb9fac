"""`lorae doctor`: what this machine has, and what a sweep would miss."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from jobs.devices import local_devices
from lorae.cache import cache_dir
from lorae.store.storage import Storage
from lorae.tasks.readers import READERS

PACKAGES = ("torch", "ray", "transformers", "datasets", "deepspeed", "mlflow", "pyarrow", "numpy")


def run_doctor(storage: str, data_root: str | None) -> int:
    """Print one line per check; returns 0 if a local sweep has everything it needs, else 1."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("python", lambda: sys.version.split()[0]),
        *((name, lambda name=name: importlib.metadata.version(name)) for name in PACKAGES),
        ("devices", _devices),
        ("bf16", _bf16),
        ("ray", _ray),
        ("storage", lambda: _storage(storage)),
        ("cache", _cache),
        ("data root", lambda: _data_root(data_root)),
        ("embedded model and data", _embedded),
        ("model hub", _hub),
    ]
    broken = 0
    for name, check in checks:
        try:
            print(f"ok    {name}: {check()}", flush=True)
        except Exception as error:  # a check that raises is a finding, not a crash
            optional = name == "model hub"
            broken += not optional
            print(f"{'note ' if optional else 'FAIL '} {name}: {error}", flush=True)
    return 1 if broken else 0


def _devices() -> str:
    import torch

    devices = local_devices()
    if devices.kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"{devices.num} GPUs, which torch {torch.__version__} cannot use; install torch for the CUDA "
            "version that nvidia-smi shows, or a newer driver"
        )
    memory = f" with {devices.memory_bytes / 2**30:.0f} GiB" if devices.memory_bytes else ""
    return f"{devices.num} x {devices.kind}{memory}, {devices.cpus_per_stack} CPUs per stack"


def _bf16() -> str:
    import time

    import torch

    def seconds(dtype: torch.dtype) -> float:
        x = torch.ones(1024, 1024, dtype=dtype)
        torch.mm(x, x)
        started = time.perf_counter()
        for _ in range(5):
            torch.mm(x, x)
        return time.perf_counter() - started

    ratio = seconds(torch.float32) / seconds(torch.bfloat16)
    advice = "" if ratio > 1 else "; use --set precision=fp32 on this CPU"
    return f"a product is {ratio:.1f} times as fast as in fp32 on the CPU{advice}"


def _ray() -> str:
    import ray

    from jobs.hosts import ray_cluster

    with ray_cluster(None) as devices:
        nodes = len(ray.nodes())
        answer = ray.get(ray.remote(lambda: "answers").remote(), timeout=60)
        return f"{answer}; {nodes} node(s), {devices.num} x {devices.kind}"


def _storage(uri: str) -> str:
    storage = Storage(uri)
    storage.check_writable()
    if fault := storage.locking_fault():
        raise ValueError(fault)
    locks = " and locked" if storage.is_local else "; it has no locks: run one sweep at a time"
    free = f", {shutil.disk_usage(storage.root).free / 2**30:.0f} GiB free" if storage.is_local else ""
    return f"{storage.uri} can be written{locks}{free}"


def _cache() -> str:
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    return f"{folder}, {shutil.disk_usage(folder).free / 2**30:.0f} GiB free"


def _data_root(folder: str | None) -> str:
    if folder is None:
        return "none; datasets come from the hub (--data-root DIR or LORAE_DATA_ROOT for local copies)"
    files = [p for p in Path(folder).rglob("test*") if READERS.keys() & set(p.suffixes)]
    found = sorted({str(p.parent.relative_to(folder)) for p in files})
    if not found:
        raise ValueError(
            f"{folder} has no <task>/test.parquet; give the folder that holds the tasks' folders"
        )
    return f"{folder} has {', '.join(found)}"


def _embedded() -> str:
    from lorae.backbone.checks import inspect_backbone
    from lorae.tasks import RottenTomatoes
    from pipelines.demo import SMOLLM2_135M

    found = inspect_backbone(SMOLLM2_135M)
    if found.faults:
        raise ValueError("; ".join(found.faults))
    return f"{found}; {len(RottenTomatoes().located().examples('test'))} test sentences"


def _hub() -> str:
    from huggingface_hub import HfApi

    try:
        HfApi().model_info("HuggingFaceTB/SmolLM2-135M", timeout=10)
    except Exception as error:
        raise ValueError(
            f"cannot be reached ({type(error).__name__}); use Files('DIR') and --data-root DIR"
        ) from error
    return "reached"
