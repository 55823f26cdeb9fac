"""Numbers on their way to a device and back, without waiting for what it still computes.

A host that waits for a GPU in every step leaves it idle until it has work again.
"""

from __future__ import annotations

from typing import Any

import torch


def to_device(values: Any, device: torch.device | str) -> torch.Tensor:
    """Numbers, an array or a tensor as a tensor on the device, which need not be free for it."""
    return torch.as_tensor(values).to(device, non_blocking=True)


class ToHost:
    """A small tensor on its way to the CPU.

    Args:
        values: what is read later, and not written to before.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values.to("cpu", non_blocking=True)
        self._arrived = torch.cuda.Event() if values.is_cuda else None
        if self._arrived:
            self._arrived.record()

    def tolist(self) -> list[Any]:
        """The values as soon as they are there; work that the device was given later goes on."""
        if self._arrived:
            self._arrived.synchronize()
        return self._values.tolist()
