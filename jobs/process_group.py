"""The process group of a stack's Ray Train workers, on the single interface that Ray itself uses.

With Ray's `TorchConfig`, torch opens the store of rank 0, which listens on every interface of the machine.
Here rank 0 binds the socket itself and tells the other ranks its port through Ray. Neither the store nor gloo
or NCCL authenticates connections: see docs/threat_model.md.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

import psutil
import torch.distributed as dist
from ray.train.torch import TorchConfig


class Joining(TorchConfig):
    """Ray's settings for torch, except that the workers form their process group themselves, by `join`."""

    @property
    def backend_cls(self) -> Any:
        return _Joining


class _Joining(TorchConfig().backend_cls):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Nothing is opened."""


def join(device: str, timeout_s: float) -> None:
    """Form the process group of all workers; called by each of them.

    Args:
        device: "cpu" or "cuda".
        timeout_s: how long a rank waits for another one.
    Raises:
        ValueError: no interface has the address by which Ray knows this node.
    """
    import ray
    from ray.train import collective, get_context

    address, context = ray.util.get_node_ip_address(), get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(context.get_local_rank()))
    interface = interface_of(address)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")  # "=": this one, not all with this prefix
    listener = _listening(address) if rank == 0 else None
    where = collective.broadcast_from_rank_zero(listener and listener.getsockname()[:2])
    timeout = timedelta(seconds=timeout_s)
    listening = {"is_master": True, "master_listen_fd": listener.detach()} if listener else {}
    store = dist.TCPStore(*where, size, timeout=timeout, **listening)  # pyright: ignore
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def _listening(address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, 0), family=family)


def interface_of(address: str) -> str:
    """Name of the network interface with an address.

    Raises:
        ValueError: no interface has it.
    """
    interfaces = psutil.net_if_addrs().items()
    found = {a.address.partition("%")[0]: name for name, addresses in interfaces for a in addresses}
    if address not in found:
        raise ValueError(
            f"Ray knows this node as {address}, but its interfaces have {', '.join(sorted(found))}; start "
            "Ray here with --node-ip-address=ADDRESS"
        )
    return found[address]
