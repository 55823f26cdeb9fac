"""Run a stack whose backbone does not fit on one GPU, on Ray Train workers that hold it in parts.

DeepSpeed ZeRO-3 (arXiv:1910.02054) partitions the frozen backbone and gathers each layer on demand. Adapters,
their gradients and the optimiser stay whole on every worker, outside DeepSpeed.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from jobs.scratch import scratch_folder
from lorae.planning.estimate import Devices
from lorae.planning.stack import Progress, Stack, StackResult, Stopped

if TYPE_CHECKING:
    from jobs.cluster import Agreement
    from lorae.backbone.loading import Backbone, Precision
    from lorae.sources import Source

PERSISTENT_NUMBERS = 100_000  # norms and biases below this size stay whole: gathering them only adds latency
MAX_DEATHS = 10  # of one stack's workers: machines vanish, but a stack that always dies must end
REPORT_SECONDS = 2.0
WAIT_SECONDS = 7200  # rank 0 may wait for another stack's reference predictions, the other ranks for rank 0


@dataclass(frozen=True)
class Zero:
    """How one stack's backbone is partitioned.

    Args:
        workers: processes with one GPU each (or a share of the CPUs), >= 2.
        cpu_offload: keep the parts in host memory instead of GPU memory.
        hpz: number of workers on one machine that together hold a second copy, so that gathering for the
            backward pass stays within the machine (hpZ of ZeRO++, arXiv:2306.10209); divides `workers`. None
            = no copy.
    """

    workers: int
    cpu_offload: bool = False
    hpz: int | None = None

    def __post_init__(self) -> None:
        if self.workers < 2:
            raise ValueError(f"workers={self.workers}: ZeRO needs >= 2 to partition over; write --zero 2")
        if self.hpz is not None and (self.hpz < 2 or self.workers % self.hpz):
            raise ValueError(
                f"hpz={self.hpz}: must be >= 2 and divide the {self.workers} workers; "
                "give the number of GPUs of a machine"
            )

    @property
    def words(self) -> list[str]:
        """Its command-line options."""
        offload = ["--offload"] if self.cpu_offload else []
        return ["--zero", str(self.workers), *offload, *(["--hpz", str(self.hpz)] if self.hpz else [])]


def zero_devices(devices: Devices, zero: Zero | None) -> Devices:
    """The same devices, of which every stack takes `zero.workers` with these settings; None = as many as it
    needs.

    Raises:
        ValueError: there are fewer devices; the workers would wait forever for the missing ones.
    """
    if zero is None:
        return devices
    if devices.num < zero.workers:
        what = "GPUs" if devices.kind == "cuda" else "CPU workers"
        raise ValueError(
            f"--zero {zero.workers}: there are {devices.num} {what}; give --zero {devices.num} or less, "
            "or add machines"
        )
    saving = replace(devices.saving, offload=zero.cpu_offload, hpz=zero.hpz)
    return replace(devices, stack_devices=zero.workers, saving=saving)


def deepspeed_config(zero: Zero, precision: Precision, device: str) -> dict[str, Any]:
    """DeepSpeed's settings: it only partitions and gathers; its gradient handling is off."""
    partitioning: dict[str, Any] = {
        "stage": 3,
        "stage3_param_persistence_threshold": PERSISTENT_NUMBERS,
        "zero_hpz_partition_size": zero.hpz or 1,
    }
    if zero.cpu_offload:
        partitioning["offload_param"] = {"device": "cpu", "pin_memory": device == "cuda"}
    return {
        "train_micro_batch_size_per_gpu": 1,  # required; batches are ours
        "gradient_clipping": 0.0,
        "bf16": {"enabled": precision == "bf16"},
        "zero_optimization": partitioning,
    }


def load_partitioned(
    source: Source, precision: Precision, device: str, recompute: bool, *, zero: Zero
) -> Backbone:
    """The backbone in parts, in an existing process group; no rank ever holds all of it.

    The order matters: the settings are alive while the weights are read, so that each layer is partitioned as
    it is created; the gathering hooks are set on the bare model; adapters, inserted later, stay whole.
    """
    os.environ["DS_ACCELERATOR"] = device
    import deepspeed
    import torch.distributed as dist
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    from lorae.backbone.loading import read_backbone
    from lorae.backbone.processes import Ranks
    from lorae.backbone.self_check import check_packed
    from lorae.backbone.weights import check_weights
    from lorae.sources import backbone_config, backbone_folder

    if device == "cpu":
        deepspeed.ops.__dict__["__compatible_ops__"] = {}  # else it compiles C++ that does what gloo does
    deepspeed.init_distributed(dist.get_backend())
    check_weights(backbone_folder(source), backbone_config(source))  # cannot be counted once partitioned
    config = deepspeed_config(zero, precision, device)
    alive = HfDeepSpeedConfig(config)
    whole = read_backbone(source, precision, device, recompute)
    del alive
    engine: Any = deepspeed.initialize(model=whole.lm, config=config, optimizer=None)[0]
    gather = engine.optimizer.get_param_coordinator()
    # A step begins at the model below the head; DeepSpeed then knows what comes next and fetches it ahead.
    whole.lm.base_model.register_forward_pre_hook(lambda *_: gather.reset_step(), prepend=True)
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    backbone = replace(whole, ranks=ranks, gathered=deepspeed.zero.GatheredParameters)
    check_packed(backbone)
    return backbone


class Wire:
    """A Ray actor between a stack's driver and its rank 0: progress one way, a request to stop the other."""

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self.stopping = False

    def report(self, progress: Progress) -> bool:
        """Called by the rank; returns whether it should stop."""
        self.progress = progress
        return self.stopping

    def look(self, stopping: bool) -> Progress | None:
        """Called by the driver; returns the last progress."""
        self.stopping = stopping
        return self.progress


def run_zero(
    stack: Stack,
    storage_uri: str,
    *,
    zero: Zero,
    agreed: Agreement,
    device: str = "cpu",
    num_threads: int | None = None,
    provenance: dict[str, Any] | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> StackResult:
    """`lorae.engine.run.run_stack` on `zero.workers` Ray Train workers that together hold the backbone. If
    one of them dies, all restart from the stack's checkpoint.

    Raises:
        ValueError: a worker's node does not share what was agreed.
        Stopped: `should_stop` was true, and the workers have ended.
    """
    settings |= {
        "device": device,
        "num_threads": num_threads,
        "provenance": (provenance or {}) | {"zero": asdict(zero)},
    }
    for left in reversed(range(MAX_DEATHS + 1)):
        wire = _ray().remote(num_cpus=0)(Wire).remote()
        work = functools.partial(_worker, stack, storage_uri, zero, agreed, settings, wire)
        try:
            return _fit(work, zero.workers, device, num_threads, wire, on_progress, should_stop)
        except Exception as error:
            if should_stop():
                raise Stopped from error
            if not (left and _has_died(error)):
                raise
    raise AssertionError("the last try returns or raises")


def _has_died(error: Exception) -> bool:
    """Whether a worker's process or node is gone; the others then lose their connection to it. An exception
    of the stack is its outcome."""
    from ray.exceptions import RayActorError
    from ray.train import WorkerGroupError

    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    # Ray Train's WorkerHealthCheckFailedError holds the cause
    return any(isinstance(getattr(f, "health_check_failure", f), RayActorError) for f in failures)


def _fit(
    work: Callable[[], StackResult],
    workers: int,
    device: str,
    num_threads: int | None,
    wire: Any,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> StackResult:
    """What rank 0 of the Ray Train workers returns."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from jobs.process_group import Joining

    resources = {"CPU": float(num_threads or 1), "GPU": float(device == "cuda")}
    with scratch_folder() as scratch, ThreadPoolExecutor(max_workers=1) as thread:
        trainer = TorchTrainer(
            work,
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=device == "cuda", resources_per_worker=resources
            ),
            run_config=RunConfig(storage_path=scratch),
            torch_config=Joining(),
        )
        fitting: Future[Any] = thread.submit(trainer.fit)
        while not fitting.done():
            wait([fitting], timeout=REPORT_SECONDS)
            if progress := _ray().get(wire.look.remote(should_stop())):
                on_progress(progress)
    return fitting.result().return_value


def _ray() -> Any:
    import ray

    return ray


def _worker(
    stack: Stack, storage_uri: str, zero: Zero, agreed: Agreement, settings: dict[str, Any], wire: Any
) -> StackResult:
    """One rank of a stack. Only rank 0 reports and is asked to stop; the others end with it."""
    from ray import train

    from jobs.process_group import join
    from lorae.engine.run import run_stack
    from lorae.store.storage import Storage

    if broken := agreed.broken(Storage.retry_seconds):
        raise ValueError(broken)
    join(settings["device"], WAIT_SECONDS)
    ray = _ray()
    load = functools.partial(load_partitioned, zero=zero)
    if train.get_context().get_world_rank() > 0:
        return run_stack(stack, storage_uri, load=load, **settings)
    reported, stopping = -REPORT_SECONDS, False

    def report(progress: Progress) -> None:
        nonlocal reported, stopping
        if time.monotonic() - reported >= REPORT_SECONDS:
            reported = time.monotonic()
            stopping = ray.get(wire.report.remote(progress))

    return run_stack(
        stack, storage_uri, load=load, on_progress=report, should_stop=lambda: stopping, **settings
    )
