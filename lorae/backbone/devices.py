"""Copying tensors to a device and back without waiting for its pending work.

A host that waits for a GPU in every step leaves it idle until the next work arrives.
"""

from __future__ import annotations

from typing import Any

import torch


def to_device(values: Any, device: torch.device | str) -> torch.Tensor:
    """Numbers, an array or a tensor as a tensor on the device, without waiting for the device."""
    return torch.as_tensor(values).to(device, non_blocking=True)


class ToHost:
    """A small tensor being copied to the CPU.

    Args:
        values: tensor to read later; must not be written to before.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values.to("cpu", non_blocking=True)
        self._arrived = torch.cuda.Event() if values.is_cuda else None
        if self._arrived:
            self._arrived.record()

    def tolist(self) -> list[Any]:
        """The values, once they have arrived; does not wait for later work of the device."""
        if self._arrived:
            self._arrived.synchronize()
        return self._values.tolist()
