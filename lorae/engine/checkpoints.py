"""Checkpoints of a running stack: their content, and the file that stores them."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import safetensors
import safetensors.torch
import torch

from lorae import untrusted
from lorae.engine.adapters import Adapters, State
from lorae.engine.optimizer import Moments, Optimizer
from lorae.planning.stack import Stopped
from lorae.store import ownership
from lorae.store.names import checkpoint_file
from lorae.store.records import CURVE
from lorae.store.storage import Storage
from lorae.untrusted import count

if TYPE_CHECKING:
    from lorae.engine.training import MemberRun

LOG = logging.getLogger("lorae")
# The fields of the header that are relied on; older headers have the curve's records, not their number
CHECKPOINT = {"step": count, "active": [count], "runs": [{"member": int, "curve": count}]}

COUNTED_LATER = "process_seconds", "train_flops", "shared_flops"  # lacking in older checkpoints

IN_TENSORS = "snapshots", "path", "curve"  # a member's lists; safetensors reads headers of at most 100 MB
SPLITS = "train", "validation"  # of a curve's records; a tensor has their indices
MOMENTS = "exp_avg", "exp_avg_sq"  # fields of `Moments`


class Checkpoints(Protocol):
    """Where a running stack saves itself: one file of tensors with a JSON header."""

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None: ...
    def save(self, tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None: ...
    def set_aside(self, why: str) -> None: ...
    def due(self) -> bool: ...


def keep_members(adapters: Adapters, optimizer: Optimizer, staying: list[int]) -> None:
    """Shrink parameters and optimiser state to the staying members."""
    adapters.keep(staying)
    optimizer.keep(staying)


def checkpoint(
    step: int, active: list[int], runs: list[MemberRun], adapters: Adapters, optimizer: Optimizer
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and header from which `restore` continues to the same bytes; random streams need no state."""
    tensors: dict[str, torch.Tensor] = {}
    for name, p in adapters.parameters.items():
        tensors[f"parameter/{name}"] = p.detach()
        if name in optimizer.moments:
            tensors |= {f"{moment}/{name}": getattr(optimizer.moments[name], moment) for moment in MOMENTS}
    for position, run in enumerate(runs):
        numbered = [*_numbered("snapshot", run.snapshots), *_numbered("path", run.path)]
        for folder, state in [("state", run.state), *numbered]:
            tensors |= {f"{folder}/{position}/{name}": value for name, value in state.items()}
        tensors[f"curve/{position}"] = _curve_tensor(run.curve)
    header = [
        {name: value for name, value in vars(run).items() if name != "state"}
        | {name: len(getattr(run, name)) for name in IN_TENSORS}
        for run in runs
    ]
    return tensors, {"step": step, "active": active, "runs": header}


def load_fitting(
    checkpoints: Checkpoints, runs: list[MemberRun], adapters: Adapters
) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """The checkpoint of these members and adapters, None if there is none; a checkpoint that does not fit
    them is set aside, and the stack restarts."""
    saved = checkpoints.load()
    if saved and (fault := _misfit(*saved, runs, adapters)):
        checkpoints.set_aside(fault)
        return None
    return saved


def _misfit(
    tensors: dict[str, torch.Tensor], header: dict[str, Any], runs: list[MemberRun], adapters: Adapters
) -> str | None:
    """Why `restore` cannot continue from a checkpoint, or None."""
    members, active = [run.member for run in runs], header["active"]
    if (found := [saved["member"] for saved in header["runs"]]) != members:
        return f"it is of members {found}, not {members}"
    if active != [place for place in range(len(runs)) if place in active]:
        return f"{active} are no places among {len(runs)} members"
    for place, saved in enumerate(header["runs"]):
        if fault := _run_fault(runs[place], saved) or _curve_fault(tensors.get(f"curve/{place}"), saved):
            return f"member {members[place]}: {fault}"
    shapes = {name: p.shape[1:] for name, p in adapters.parameters.items()}
    expected = {f"parameter/{name}": (len(active), *shape) for name, shape in shapes.items()}
    for place, saved in enumerate(header["runs"]):
        states = [f"snapshot-{k}/{place}/" for k in range(saved["snapshots"])]
        states += [f"state/{place}/"] if any(n.startswith(f"state/{place}/") for n in tensors) else []
        expected |= {prefix + name: shape for prefix in states for name, shape in shapes.items()}
    for name in shapes:
        if f"{MOMENTS[0]}/{name}" in tensors:
            expected |= {f"{moment}/{name}": expected[f"parameter/{name}"] for moment in MOMENTS}
    for name, shape in expected.items():
        if name not in tensors or tensors[name].shape != tuple(shape):
            return f"{name} is {list(tensors[name].shape) if name in tensors else 'missing'}, not {[*shape]}"
    return None


def _run_fault(run: MemberRun, saved: dict[str, Any]) -> str | None:
    """What is wrong with a member's numbers in a header."""
    for name, value in vars(run).items():
        if name in ("state", *IN_TENSORS):
            fits = name == "state" or count(saved.get(name))
        elif name == "error":
            fits = saved.get(name) is None or type(saved[name]) is str
        else:
            fits = type(saved.get(name, value)) in (int, float) and not saved.get(name, value) < 0
        if not fits or (name not in saved and name not in ("state", *COUNTED_LATER)):
            return f"{name} is {str(saved.get(name))[:40]!r}"
    return None


def _curve_fault(columns: torch.Tensor | None, saved: dict[str, Any]) -> str | None:
    shape = [len(CURVE.names), saved["curve"]]
    if columns is None or [*columns.shape] != shape:
        return f"its curve has the shape {None if columns is None else [*columns.shape]}, not {shape}"
    steps, splits = (columns[CURVE.names.index(name)] for name in ("step", "split"))
    sound = torch.isfinite(steps).all() and ((splits == 0) | (splits == 1)).all()
    return None if sound else "its curve has no steps or splits"


def restore(
    tensors: dict[str, torch.Tensor],
    header: dict[str, Any],
    runs: list[MemberRun],
    adapters: Adapters,
    optimizer: Optimizer,
) -> tuple[int, list[int]]:
    """Inverse of `checkpoint`; returns the step and the members still training."""
    step, active = header["step"], header["active"]

    def saved_state(prefix: str) -> State:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    for position, (run, saved) in enumerate(zip(runs, header["runs"])):
        vars(run).update(
            dict.fromkeys(COUNTED_LATER, math.nan) | {k: saved[k] for k in vars(run) if k in saved}
        )
        run.state = saved_state(f"state/{position}/")
        run.snapshots = [saved_state(f"snapshot-{k}/{position}/") for k in range(saved["snapshots"])]
        run.path = [saved_state(f"path-{k}/{position}/") for k in range(saved["path"])]
        run.curve = _curve_records(tensors[f"curve/{position}"])
    keep_members(adapters, optimizer, active)
    for name, p in adapters.parameters.items():
        p.data.copy_(tensors[f"parameter/{name}"])
        if f"{MOMENTS[0]}/{name}" in tensors:
            moments = (tensors[f"{moment}/{name}"].to(p.device) for moment in MOMENTS)
            optimizer.moments[name] = Moments(*moments, steps=step)
    return step, active


def _numbered(name: str, states: list[State]) -> list[tuple[str, State]]:
    return [(f"{name}-{k}", state) for k, state in enumerate(states)]


def _curve_tensor(curve: Sequence[dict[str, Any]]) -> torch.Tensor:
    """A curve's columns, as in CURVE, in fp64, which represents all their numbers exactly."""

    def column(name: str) -> np.ndarray:
        values = (SPLITS.index(r[name]) if name == "split" else r[name] for r in curve)
        return np.fromiter(values, np.float64, len(curve))

    return torch.from_numpy(np.stack([column(name) for name in CURVE.names]))


def _curve_records(columns: torch.Tensor) -> list[dict[str, Any]]:
    """Inverse of `_curve_tensor`."""
    values = dict(zip(CURVE.names, columns.tolist()))
    values["step"] = map(int, values["step"])
    values["split"] = [SPLITS[int(place)] for place in values["split"]]
    return [dict(zip(values, record)) for record in zip(*values.values())]


class StackCheckpoints:
    """The only checkpoint of a running stack, replaced when due: safetensors, followed by its SHA-256."""

    def __init__(
        self, storage: Storage, stack_id: str, seconds: float, should_stop: Callable[[], bool]
    ) -> None:
        self.storage, self.seconds, self.should_stop = storage, seconds, should_stop
        self.name, self.stack_id = checkpoint_file(stack_id), stack_id
        self.saved = time.monotonic()

    def due(self) -> bool:
        return self.should_stop() or time.monotonic() - self.saved >= self.seconds

    def save(self, tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
        """Save; if the storage or format refuses, only the checkpoint is lost, not the training. Raises
        Stopped if the stack was asked to stop."""
        contiguous = {name: value.cpu().contiguous() for name, value in tensors.items()}
        try:
            metadata = {"header": json.dumps(header), ownership.OWNER: self.stack_id}
            content = safetensors.torch.save(contiguous, metadata=metadata)
            self.storage.write_once(self.name, content + hashlib.sha256(content).digest())
        except (OSError, safetensors.SafetensorError) as error:
            LOG.warning("no checkpoint of step %d: %s", header["step"], error)
        self.saved = time.monotonic()
        if self.should_stop():
            raise Stopped

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        try:
            return self.storage.read_as(self.name, self._parsed)
        except FileNotFoundError:
            return None
        except ValueError as error:
            self.set_aside(str(error))
            return None

    def _parsed(self, stored: bytes) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        content, checksum = stored[:-32], stored[-32:]
        if hashlib.sha256(content).digest() != checksum:
            raise ValueError("it differs from its checksum")
        try:
            tensors = safetensors.torch.load(content)  # also checks the header's size
            metadata = untrusted.safetensors_header(content, self.name).get("__metadata__")
            if not isinstance(metadata, dict):
                raise ValueError("it is no checkpoint: it has no metadata")
            if (owner := metadata.get(ownership.OWNER, self.stack_id)) != self.stack_id:
                raise ValueError(f"it is of the stack {str(owner)[:80]}")
            header = metadata["header"].encode()
            return tensors, untrusted.json_object(header, self.name, CHECKPOINT, infinite=True)
        except (safetensors.SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"it is no checkpoint: {error}") from error

    def set_aside(self, why: str) -> None:
        """Move away a file that is no checkpoint of this stack."""
        LOG.warning(
            "%s is no checkpoint of this stack (%s); it is set aside as %s, and the stack starts anew",
            self.name,
            why,
            self.storage.set_aside(self.name),
        )
