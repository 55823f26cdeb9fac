"""The processes that train one stack together: shares of rows, sums over ranks, and work that one rank does
for all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's rank among `size` processes; all of them make the same calls in the same order.

    They hold one backbone together and split each member's batch by rows. Losses stay means over the member's
    whole batch, so a member does not depend on how many processes trained it. With one process there is
    nothing to share or send.
    """

    rank: int = 0
    size: int = 1

    def parts(self, num: int, most: int | None = None) -> Iterator[tuple[list[int], int]]:
        """This rank's share of `num` rows, every `size`-th, in parts of at most `most` rows.

        Yields positions and how many of them count. The remaining positions repeat the last row, so that all
        ranks have the same parts: each forward pass gathers a partitioned backbone and needs all ranks.
        """
        share = range(self.rank, self.size * -(-num // self.size), self.size)
        most = most or len(share)
        for begin in range(0, len(share), most):
            part = share[begin : begin + most]
            yield [min(n, num - 1) for n in part], sum(n < num for n in part)

    def sum_(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, with the same bits on all ranks."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def once(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run `work` on rank 0; every rank gets its result.

        Results are sent as JSON and tensors, never as a pickle, so that nobody with access to the connection
        can make a rank run code. A result may consist of None, booleans, numbers, text, lists, dicts with
        text keys, and tensors on the CPU; a tuple becomes a list on the other ranks.

        Raises:
            TypeError: the result contains something else.
        """
        if self.size == 1:
            return work(*arguments)
        if self.rank == 0:
            result = work(*arguments)
            _send(result)
            return result
        return _receive()


TENSOR = "tensor of dtype, shape"  # key of a tensor's placeholder in JSON; the tensors follow in order


def _send(value: Any) -> None:
    tensors: list[torch.Tensor] = []

    def described(tensor: Any) -> dict[str, Any]:
        """Placeholder of a tensor, which JSON does not know."""
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(
                f"a {type(tensor).__name__} cannot be sent to other ranks; send lists and tensors"
            )
        tensors.append(tensor)
        return {TENSOR: [str(tensor.dtype).removeprefix("torch."), *tensor.shape]}

    _check_keys(value)
    text = torch.frombuffer(bytearray(json.dumps(value, default=described).encode()), dtype=torch.uint8)
    _broadcast(torch.tensor([len(text)]))
    for tensor in (text, *tensors):
        _broadcast(tensor)


def _receive() -> Any:
    def tensor_or_dict(found: dict[str, Any]) -> Any:
        if TENSOR not in found:
            return found
        dtype, *shape = found[TENSOR]
        return _broadcast(torch.empty(shape, dtype=getattr(torch, dtype)))

    length = int(_broadcast(torch.empty(1, dtype=torch.int64)))
    text = _broadcast(torch.empty(length, dtype=torch.uint8))
    return json.loads(text.numpy().tobytes(), object_hook=tensor_or_dict)  # hooks run in text order


def _broadcast(tensor: torch.Tensor) -> torch.Tensor:
    """Rank 0's tensor on all ranks; the others' values are overwritten."""
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    sent = tensor.to(device).contiguous()
    dist.broadcast(sent.view(-1).view(torch.uint8), 0)
    return sent.to(tensor.device)


def _check_keys(value: Any) -> None:
    """Refuse keys that JSON would turn into text."""
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"keys of a dict that is sent to other ranks must be text, not {[*value][:3]}")
        value = [*value.values()]
    for part in value if isinstance(value, (list, tuple)) else ():
        _check_keys(part)
