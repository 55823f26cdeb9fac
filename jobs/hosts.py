"""Where stacks run: this process, Ray Tune, or Ray Train workers of a Tune trial. All call
`lorae.run.run_stack`, none knows what it does."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from jobs.progress import ProgressLine
from jobs.request import Request, provenance
from jobs.zero import Zero, run_zero
from lorae.plan import Devices, Plan
from lorae.stack import Stack

REPORT_SECONDS = 2.0
TUNE_COPIES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")
# glibc otherwise returns every large activation to the kernel and faults it in again; one arena, since a Tune
# function
# runs in a thread, whose own arena cannot hold large blocks; 32 MiB is the largest threshold that glibc
# accepts
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_ARENA_MAX": "1",
}


def local_devices() -> Devices:
    """This machine's GPUs, or its CPUs; loads neither torch nor ray."""
    gpus = _nvidia_memory_bytes()
    cpus = len(os.sched_getaffinity(0))
    if gpus:
        return Devices("cuda", len(gpus), max(1, cpus // len(gpus)), min(gpus))
    return cpu_devices([cpus])


def cpu_devices(cpus_of_nodes: list[int]) -> Devices:
    """Two stacks per node where it has two CPUs: threads of one stack wait for each other, stacks do not."""
    per_node = 2 if min(cpus_of_nodes) >= 2 else 1
    return Devices("cpu", per_node * len(cpus_of_nodes), min(cpus_of_nodes) // per_node)


def _nvidia_memory_bytes() -> list[int]:
    import shutil
    import subprocess

    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True)
    return [int(line) * 2**20 for line in done.stdout.split()] if done.returncode == 0 else []


def run_local(plan: Plan, request: Request, devices: Devices) -> dict[str, str]:
    """Run the stacks one after another in this process; returns what failed, by member or stack."""
    from lorae.run import run_stack

    line, failed = ProgressLine(plan.stacks, plan.estimates), {}
    for number, stack in enumerate(plan.stacks):
        try:
            result = run_stack(
                stack,
                request.storage,
                device=devices.kind,
                provenance=provenance(request),
                recompute=request.recompute,
                on_progress=lambda p, n=number: line.update(n, p.phase, p.step, p.num_steps),
            )
        except Exception as error:  # one stack that fails never loses the others
            failed[stack_name(stack)] = f"{type(error).__name__}: {error}"
            line.update(number, "done")
        else:
            failed |= result.failed
    return failed


@contextlib.contextmanager
def ray_cluster(address: str | None) -> Iterator[Devices]:
    """Connect to a Ray cluster, or start Ray on this machine; yields what it can run.

    Args:
        address: "auto" or an address: that cluster, or an error; None: a running one if there is one, else
            a new one on this machine.

    Raises:
        ValueError: there is no cluster at the address.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    for name, value in ALLOCATOR.items():
        os.environ.setdefault(name, value)
    import ray

    local: dict[str, Any] = {} if address else {"include_dashboard": False}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except ConnectionError as error:
        raise ValueError(
            f"no Ray cluster at {address!r} ({error}); start one with `ray up cluster.yaml`, "
            "or leave --address out to use this machine"
        ) from error
    try:
        resources = ray.cluster_resources()
        cpus, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
        if gpus:
            yield Devices("cuda", gpus, max(1, cpus // gpus))
        else:
            nodes = [n["Resources"].get("CPU", 0) for n in ray.nodes() if n["Alive"]]
            yield cpu_devices([int(n) for n in nodes if n >= 1])
    finally:
        ray.shutdown()


def run_tune(plan: Plan, request: Request, devices: Devices) -> dict[str, str]:
    """Run the stacks as Ray Tune trials; returns what failed, by member or stack.

    With `request.zero` a trial only drives Ray Train workers, which take the CPUs and GPUs. It takes a mark
    of the head node itself, so that drivers never hold what their workers wait for.
    """
    from ray import cloudpickle, tune

    cloudpickle.register_pickle_by_value(
        request.module
    )  # a task defined in the sweep file reaches the workers
    resources = {"cpu": float(devices.cpus_per_stack), "gpu": float(devices.kind == "cuda")}
    if request.zero:
        resources = {"node:__internal_head__": 0.001}
    stacks = [{"number": n, **columns(stack)} for n, stack in enumerate(plan.stacks)]
    settings = {
        "storage_uri": request.storage,
        "device": devices.kind,
        "num_threads": devices.cpus_per_stack if devices.kind == "cpu" else None,
        "provenance": provenance(request),
        "recompute": request.recompute,
    }
    trainable = tune.with_parameters(_trainable, stacks=plan.stacks, settings=settings, zero=request.zero)
    line = ProgressLine(plan.stacks, plan.estimates)
    folder = tempfile.TemporaryDirectory(prefix="lorae-tune-", ignore_cleanup_errors=True)
    with folder as scratch, _hidden_credentials():
        results = tune.Tuner(
            tune.with_resources(trainable, resources),
            param_space={"stack": tune.grid_search(stacks)},
            tune_config=tune.TuneConfig(max_concurrent_trials=devices.num, reuse_actors=True),
            run_config=tune.RunConfig(
                name=request.name,
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=2),
                callbacks=[_progress_callback(line)],
            ),
        ).fit()
    failed: dict[str, str] = {}
    for result in results:
        if result.error:
            stack = plan.stacks[(result.config or {})["stack"]["number"]]
            failed[stack_name(stack)] = str(result.error).strip().splitlines()[-1]
        else:
            failed |= (result.metrics or {}).get("failed", {})
    return failed


@contextlib.contextmanager
def _hidden_credentials() -> Iterator[None]:
    """Tune copies these into its trials' runtime environment, which Ray writes to its logs.

    Workers have the environment of their own node.
    """
    hidden = {name: os.environ.pop(name) for name in TUNE_COPIES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _trainable(
    config: dict[str, Any], stacks: tuple[Stack, ...], settings: dict[str, Any], zero: Zero | None
) -> None:
    """One Tune trial: one stack."""
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    from lorae.run import Progress, run_stack

    reported = time.monotonic()

    def report(progress: Progress) -> None:
        nonlocal reported
        if progress.phase != "done" and time.monotonic() - reported >= REPORT_SECONDS:
            reported = time.monotonic()
            tune.report(asdict(progress))

    stack = stacks[config["stack"]["number"]]
    if zero:
        result = run_zero(stack, zero=zero, callbacks=[TuneReportCallback()], **settings)
    else:
        result = run_stack(stack, on_progress=report, **settings)
    counts = {"trained": len(result.trained), "found": len(result.found), "failed": result.failed}
    tune.report(asdict(Progress("done")) | counts)


def _progress_callback(line: ProgressLine) -> Any:
    from ray.tune import Callback

    class ShowProgress(Callback):
        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
        ) -> None:
            line.update(trial.config["stack"]["number"], result["phase"], result["step"], result["num_steps"])

    return ShowProgress()


def columns(stack: Stack) -> dict[str, Any]:
    """Readable columns of a stack in Tune's tables."""
    factors = {k: v for k, v in stack.trial.factors().items() if k not in ("members", "combine")}
    return factors | {"members": ",".join(map(str, stack.members)) or "backbone"}


def stack_name(stack: Stack) -> str:
    """A stack in words, for messages."""
    return " ".join(
        f"{k}={v}"
        for k, v in columns(stack).items()
        if k in ("task", "method", "regularizers", "seed", "members")
    )
