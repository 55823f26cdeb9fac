"""Regularisers of members that are trained together but regularised differently."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorae.regularizers.base import Regularizer
from lorae.tasks.scoring.base import penalties

if TYPE_CHECKING:
    import torch


def together(regularizers_M: Sequence[tuple[Regularizer, ...]]) -> Sequence[Regularizer]:
    """Regularisers for rows of all members: their own if all have the same, else one that gives each member's
    rows to the member's own."""
    return regularizers_M[0] if len({*regularizers_M}) == 1 else (_EachItsOwn(regularizers_M),)


class _EachItsOwn(Regularizer):
    """Penalties of rows that are equally many for each member, members first."""

    def __init__(self, regularizers_M: Sequence[tuple[Regularizer, ...]]) -> None:
        self.regularizers_M = regularizers_M

    def penalty(self, logits: torch.Tensor, reference: torch.Tensor | None) -> torch.Tensor:
        import torch

        total, start, each = [], 0, len(logits) // len(self.regularizers_M)
        for regularizers, same in itertools.groupby(self.regularizers_M):
            part = slice(start, start + each * len([*same]))
            total.append(
                penalties(logits[part], regularizers, None if reference is None else reference[part])
            )
            start = part.stop
        return torch.cat(total)
