"""The processes that train one stack together: shares of rows, sums over all, what one does for
all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's place among `size` processes; every one of them makes the same calls in the same order.

    They hold one backbone together and split each member's batch by rows. Losses stay means over the
    member's whole batch, so a member does not depend on how many processes trained it. With one process
    nothing here does anything.
    """

    rank: int = 0
    size: int = 1

    def parts(self, num: int, most: int | None = None) -> Iterator[tuple[list[int], int]]:
        """This rank's share of `num` rows, every `size`-th, in parts of at most `most` rows.

        Yields positions and how many of them count. What follows those repeats the last row, so that every
        rank has the same parts: each forward pass gathers a partitioned backbone, and needs all ranks.
        """
        share = range(self.rank, self.size * -(-num // self.size), self.size)
        most = most or len(share)
        for begin in range(0, len(share), most):
            part = share[begin : begin + most]
            yield [min(n, num - 1) for n in part], sum(n < num for n in part)

    def sum_(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, to the same bits on all of them."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def once(self, work: Callable[..., T], *arguments: Any) -> T:
        """Let rank 0 do something; every rank gets its result."""
        if self.size == 1:
            return work(*arguments)
        box: list[Any] = [work(*arguments) if self.rank == 0 else None]
        dist.broadcast_object_list(box)
        return box[0]
