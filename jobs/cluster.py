"""Several nodes as one: what they and the autoscaler's can run, and whether they agree."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import platform
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jobs
import lorae
from lorae.planning.stack import Stack
from lorae.sources import Files
from lorae.store.storage import Storage

LOG = logging.getLogger("lorae")
WAIT_SECONDS = 600.0
Resources = dict[str, float]  # as Ray counts them: "CPU", "GPU", "accelerator_type:L40S", ...


def cluster_nodes() -> list[Resources]:
    """Resources of each node of the connected cluster; on its head, also of nodes that may be autoscaled."""
    config = _autoscaler_config()
    if config is None:
        return [record["Resources"] for record in _alive()]
    _await_workers(sum(kind.get("min_workers", 0) for kind in config["available_node_types"].values()))
    alive, startable = _alive(), startable_workers(config)
    if len(alive) > len(startable):
        return [record["Resources"] for record in alive]
    return [_head()["Resources"], *startable]


def startable_workers(config: dict[str, Any]) -> list[Resources]:
    """Workers of a cluster.yaml at its largest, without workers whose size is unknown before they start."""
    types = [
        (kind["resources"], kind["max_workers"])
        for name, kind in config["available_node_types"].items()
        if name != config["head_node_type"] and kind.get("resources")
    ]
    return [resources for resources, most in types for _ in range(most)][: config["max_workers"]]


def _autoscaler_config() -> dict[str, Any] | None:
    """The cluster.yaml of this cluster's autoscaler if it runs on this node, as under `ray submit`."""
    import psutil
    import ray
    import yaml

    cluster, option = f"--gcs-address={ray.get_runtime_context().gcs_address}", "--autoscaling-config="
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        for word in words:
            if word.startswith(option) and cluster in words:
                return yaml.safe_load(Path(word.removeprefix(option)).expanduser().read_text())
    return None


def _alive() -> list[dict[str, Any]]:
    """Ray's records of the running nodes."""
    import ray

    return [record for record in ray.nodes() if record["Alive"]]


def _head() -> dict[str, Any]:
    return next(record for record in _alive() if "node:__internal_head__" in record["Resources"])


def gpus_of_nodes(gpus: Callable[[], list[Any]]) -> list[Any]:
    """What a function finds on each running node with GPUs; nothing where lorae cannot be imported, which the
    agreement reports."""
    import ray
    from ray.exceptions import RayError

    found = []
    for _, answer in _asked([r for r in _alive() if r["Resources"].get("GPU", 0) >= 1], gpus):
        with contextlib.suppress(RayError):
            found += ray.get(answer)
    return found


def _await_workers(num: int) -> None:
    """Wait for the permanent workers: `ray up` returns as soon as the head is up."""
    deadline, said = time.monotonic() + WAIT_SECONDS, None
    while (there := len(_alive()) - 1) < num:
        if time.monotonic() > deadline:
            LOG.warning("%d of %d workers came up; going on with these. See `ray status`", there, num)
            return
        if said != there:
            LOG.info("waiting for the cluster's workers: %d of %d are up", there, num)
            said = there
        time.sleep(1.0)


@dataclass(frozen=True)
class Agreement:
    """What every node must share with the driver: the storage, where it wrote `token`; the software; and the
    local copies of models and datasets."""

    storage: str
    name: str
    token: str
    software: dict[str, str]
    folders: tuple[str, ...] = ()

    def broken(self, retry_seconds: float = 0.0) -> str | None:
        """What this node does not share, one per line, or None.

        Args:
            retry_seconds: how long to ask a storage that refuses.
        """
        where, own = platform.node(), software()
        different = [
            f"node {where} has {package} {own[package]}, the driver {wanted}; install the same on every node "
            "(setup_commands of cluster.yaml, with constraints.txt) and `ray up` again; where the code has "
            "changed since the sweep began, repeat the command"
            for package, wanted in self.software.items()
            if own[package] != wanted
        ]
        missing = [
            f"node {where} has no folder {folder}, which the driver reads; put it on a disk that all nodes "
            "mount, or name a Hub or Wheel source, which each node fetches"
            for folder in self.folders
            if not Path(folder).is_dir()
        ]
        return "\n".join([*different, *missing, *self._storage_broken(where, retry_seconds)]) or None

    def _storage_broken(self, where: str, retry_seconds: float) -> list[str]:
        storage = Storage(self.storage)
        storage.retry_seconds = retry_seconds
        try:
            found = storage.read(self.name).decode()
        except FileNotFoundError:
            found = None
        except OSError as error:
            return [f"node {where} cannot read the driver's storage ({error})"]
        if found == self.token:
            return []
        return [
            f"node {where} does not see the driver's storage {storage.uri}; give a folder that all "
            "nodes mount (NFS) or an object store, as in --storage s3://bucket/folder"
        ]


def software() -> dict[str, str]:
    """Versions that affect results; lorae's with a checksum of its source."""
    files = [f for package in (lorae, jobs) for f in sorted(Path(package.__path__[0]).rglob("*.py"))]
    source = hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()
    return {
        "python": platform.python_version(),
        "lorae": f"{lorae.__version__} (source {source[:8]})",
        **{package: version(package) for package in ("ray", "torch", "transformers")},
    }


@contextlib.contextmanager
def agreement(storage_uri: str, stacks: Sequence[Stack]) -> Iterator[Agreement]:
    """Write a token into the storage, which nodes look for, and ask every running node.

    Raises:
        ValueError: a node sees another storage, has other software, or lacks a folder that the stacks read.
    """
    storage, name = Storage(storage_uri), f"locks/driver-{secrets.token_hex(8)}"
    agreed = Agreement(storage_uri, name, secrets.token_hex(16), software(), _folders(stacks))
    storage.write(name, agreed.token.encode())
    try:
        with storage.lock(name.removeprefix("locks/")):  # else it is removed as a dead driver's
            if broken := [answer for answer in _answers(agreed) if answer]:
                raise ValueError("\n".join(broken))
            yield agreed
    finally:
        storage.delete(name)


def _folders(stacks: Sequence[Stack]) -> tuple[str, ...]:
    """Local copies of models and datasets that the stacks read."""
    sources = [
        x
        for stack in stacks
        for s in stack.parts
        for x in (s.trial.backbone, s.trial.task.source, *(t.source for t in s.eval_tasks))
    ]
    return tuple(sorted({source.path for source in sources if isinstance(source, Files)}))


def _answers(agreed: Agreement) -> list[str | None]:
    """`Agreement.broken` of every other node."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    others = [record for record in _alive() if record["NodeID"] != here]
    return [_answer(node["NodeName"], answer) for node, answer in _asked(others, Agreement.broken, agreed)]


def _asked(
    nodes: Sequence[dict[str, Any]], function: Callable[..., Any], *arguments: Any
) -> list[tuple[dict[str, Any], Any]]:
    """Ray's record of each node, and its reference to what the function returns there."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = []
    for record in nodes:
        there = NodeAffinitySchedulingStrategy(record["NodeID"], soft=False)
        options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": there}
        asked.append((record, ray.remote(**options)(function).remote(*arguments)))
    return asked


def _answer(node: str, answer: Any) -> str | None:
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(answer)
    except RayTaskError as error:  # lorae cannot be imported there
        reason = str(error).strip().splitlines()[-1]
        return f"node {node} cannot run lorae ({reason}); install it on every node, as cluster.yaml does"
    except RayError:
        return None  # the node is gone; its replacement is asked when a stack starts there
