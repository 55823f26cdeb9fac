"""Where stacks run: this process, Ray Tune, or Ray Train workers of a Tune trial. All call
`lorae.engine.run.run_stack`, none knows what it does."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from jobs import cluster
from jobs.bars import progress
from jobs.devices import nvidia_gpus, ray_devices, visible_gpus
from jobs.progress import ProgressLine
from jobs.request import Request, member_provenance, modules_of
from jobs.scratch import scratch_folder
from jobs.zero import MAX_DEATHS, Zero
from lorae.combinations import COMBINATIONS
from lorae.planning.estimate import Devices, Placement
from lorae.planning.plan import Plan
from lorae.planning.stack import Stack, Stopped

# Tune would copy these into its trials' runtime environment, which Ray writes to its logs; workers have the
# environment of their own node
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")
# glibc otherwise returns every large activation to the kernel and faults it in again; one arena, since a Tune
# function runs in a thread, whose own arena cannot hold large blocks; 32 MiB is the largest threshold that
# glibc accepts
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_ARENA_MAX": "1",
}


def run_local(plan: Plan, request: Request, devices: Devices) -> dict[str, str]:
    """Run the stacks one after another in this process; returns what failed, by member or stack.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when the running stack has saved itself.
    """
    from lorae.engine.run import run_stack

    failed: dict[str, str] = {}
    with progress(plan.stacks, plan.estimates) as line, interruptible() as should_stop:
        note = partial(_note, line, request)
        for number, stack in enumerate(plan.stacks):
            try:
                result = run_stack(
                    stack,
                    request.storage,
                    device=devices.kind,
                    provenance=member_provenance(request),
                    recompute=request.recompute,
                    on_progress=lambda p, n=number: note(n, asdict(p)),
                    should_stop=should_stop,
                )
            except Stopped:
                break
            except Exception as error:  # one stack that fails never loses the others
                failed[stack_name(stack)] = f"{type(error).__name__}: {error}"
                line.update(number, "done")
            else:
                failed |= result.failed
    return failed


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Let the block end in order after Ctrl-C or SIGTERM: it asks the yielded function whether one came.

    A second signal does what it does elsewhere: it ends the process at once.

    Raises:
        KeyboardInterrupt: one came, and the block has ended.
    """
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        came.append(number)
        restore()
        print("\nlorae: saving what runs; once more to exit at once", file=sys.stderr, flush=True)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        restore()
    if came:
        raise KeyboardInterrupt


@contextlib.contextmanager
def ray_cluster(address: str | None) -> Iterator[Devices]:
    """Connect to a Ray cluster, or start Ray on this machine; yields what it can run.

    Args:
        address: "auto" or an address: that cluster, or an error; None: RAY_ADDRESS, else a new one on this
            machine, which listens on no other address than 127.0.0.1.

    Raises:
        ValueError: there is no cluster at the address, or it cannot run anything.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # only evaluations have a search's NLL
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    for name, value in ALLOCATOR.items():
        os.environ.setdefault(name, value)
    address, local = cluster_address(address), dict[str, Any]()
    if address is None:
        local["include_dashboard"] = False
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # on Linux too: its node's address is 127.0.0.1
    import ray

    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
    except ConnectionError as error:
        raise ValueError(
            f"no Ray cluster at {address!r} ({error}); start one with `ray up cluster.yaml`, "
            "or leave --address out to use this machine"
        ) from error
    try:
        nodes = cluster.cluster_nodes()
        yield ray_devices(nodes, cluster.gpus_of_nodes(nvidia_gpus) if address else visible_gpus())
    finally:
        ray.shutdown()


def cluster_address(given: str | None) -> str | None:
    """Of the Ray cluster that stacks run on: as given, else RAY_ADDRESS; None = of this machine alone."""
    address = given or os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address


def run_tune(
    plan: Plan,
    request: Request,
    devices: Devices,
    scheduler: Any = None,
    callbacks: Sequence[Any] = (),
) -> dict[str, str]:
    """Run the stacks as Ray Tune trials; returns what failed, by member or stack.

    The trial of a stack on the zero host only drives Ray Train workers, which take the CPUs and GPUs. It
    takes a mark of the head node itself, so that drivers never hold what their workers wait for. Where stacks
    of several sizes run, each trial takes its share of the mark (`shares`).

    Args:
        scheduler, callbacks: Tune's, of a search that ends stacks early.
    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when the running stacks have saved themselves.
    """
    from ray import cloudpickle, tune
    from ray.tune.execution import class_cache

    from jobs.stack_trial import StackTrial, StopAll

    for module in modules_of(request):  # a task that is defined there reaches the workers
        cloudpickle.register_pickle_by_value(module)
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(CREDENTIALS)
    zeros = [request.zero or Zero(place.gpus) if place.host == "zero" else None for place in plan.placements]
    alone = {"CPU": float(devices.cpus_per_stack), "GPU": float(devices.kind == "cuda")}
    marks = [{"node:__internal_head__": share} for share in shares(plan.placements, devices.num)]

    def resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        number = config["stack"]["number"]
        if zeros[number]:
            return tune.PlacementGroupFactory([marks[number]])
        return tune.PlacementGroupFactory([alone, marks[number]] if any(zeros) else [alone])

    stacks = [{"number": n, **columns(stack)} for n, stack in enumerate(plan.stacks)]
    settings = {
        "storage_uri": request.storage,
        "device": devices.kind,
        "num_threads": devices.cpus_per_stack,  # not OMP_NUM_THREADS: `ray submit` exports 1
        "provenance": member_provenance(request),
        "recompute": request.recompute,
        "early_end": request.sweep.search if scheduler else None,
    }
    with contextlib.ExitStack() as open_:
        line = open_.enter_context(progress(plan.stacks, plan.estimates))
        agreed = open_.enter_context(cluster.agreement(request.storage, plan.stacks))
        # Tune's own notes; only this process reads them, since the store has the stacks' checkpoints
        scratch = open_.enter_context(scratch_folder())
        should_stop = open_.enter_context(interruptible())
        trainable = tune.with_parameters(
            StackTrial, stacks=plan.stacks, settings=settings, zeros=zeros, agreed=agreed
        )
        results = tune.Tuner(
            tune.with_resources(trainable, resources),
            param_space={"stack": tune.grid_search(stacks)},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=devices.num, reuse_actors=True, scheduler=scheduler
            ),
            run_config=tune.RunConfig(
                name=request.name,
                storage_path=scratch,
                verbose=0,
                stop=StopAll(should_stop),
                failure_config=tune.FailureConfig(max_failures=MAX_DEATHS),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # the storage has its own
                callbacks=[_progress_callback(line, request), *callbacks],
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


def shares(placements: Sequence[Placement], num_devices: int) -> list[float]:
    """Of each stack: how much of one mark its trial takes, so that stacks run at once as long as there are
    devices for all of them. Ray counts resources to the fourth digit."""
    rays_own = 0.001 * (
        2 + num_devices // 2
    )  # of the mark: an actor of Ray Train's beside each stack in parts
    share = max(1.0, math.floor(1e4 * (1 - rays_own) / num_devices)) / 1e4
    return [round(max(1, place.gpus) * share, 4) for place in placements]


def _note(line: ProgressLine, request: Request, number: int, progress: dict[str, Any]) -> None:
    """Show a stack's progress, and tell who watches the request."""
    line.update(number, progress["phase"], progress["step"], progress["num_steps"])
    if request.watch:
        request.watch(line.stacks, number, progress)


def _progress_callback(line: ProgressLine, request: Request) -> Any:
    from ray.tune import Callback

    class ShowProgress(Callback):
        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
        ) -> None:
            phase = "done" if result.get("done") else result["phase"]  # a search has ended it
            _note(line, request, trial.config["stack"]["number"], {**result, "phase": phase})

        def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
            if not any(trial.status == "RUNNING" for trial in trials):
                line.waiting()

    return ShowProgress()


def columns(stack: Stack) -> dict[str, Any]:
    """Readable columns of a stack in Tune's tables."""
    factors = {k: v for k, v in stack.trial.factors().items() if k not in ("members", "combine")}
    members = ",".join(map(str, stack.members)) or "backbone"
    of = COMBINATIONS[stack.soup].soup if stack.soup else "texts" if stack.pool else None
    return factors | {"members": f"{of} of {members}" if of else members}


def stack_name(stack: Stack) -> str:
    """A stack in words, for messages."""
    words = [
        f"{k}={v}"
        for k, v in columns(stack).items()
        if k in ("task", "method", "regularizers", "lr", "seed", "members")
    ]
    return " ".join(words) + "".join(f"; beside it {stack_name(other)}" for other in stack.beside)
