"""Base of all noise on the inputs, or the weights, of the trained parts of a stack's members.

Noise is off unless rows are set. A row's noise depends only on its member and on the row itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from lorae import seeds

if TYPE_CHECKING:
    import torch

    from lorae.methods import Method
    from lorae.regularizers import Regularizer


class Noise:
    """Tracks where the rows with noise are in a batch; this base class itself adds no noise.

    Args:
        keys: one random stream for each member.

    Attributes:
        num_draws: predictions of a member, each with its own noise, whatever the trial's draws; None = as
            many as the trial's draws.
        of_rows: the key of the noise, or the number of the mask, of each row (M*B,); None = rows have no
            noise of their own.
        only: the one member whose rows are computed now; None = all, members first.
        tokens: row and place of each token of the batch, (M, S) each, see `lorae.backbone.packing.Packing`.
    """

    num_draws: int | None = None

    def __init__(self, keys: Sequence[seeds.Key]) -> None:
        self.keys = list(keys)
        self.of_rows: torch.Tensor | None = None
        self.only: int | None = None
        self.tokens: tuple[torch.Tensor, torch.Tensor] | None = None

    def train(self, step: int, rows: Sequence[int]) -> None:
        """Set the noise of a training step on these rows of each member's batch."""
        raise NotImplementedError  # abstract: every kind defines it

    def predict(self, draw: int, example_ids: Sequence[str]) -> None:
        """Set the noise of one draw on examples that all members predict."""
        raise NotImplementedError  # abstract: every kind defines it

    def __call__(self, x: torch.Tensor, layer: int | str) -> torch.Tensor:
        """x, tokens (M, S, D) or rows (rows, D), with the noise for the trained parts of a layer."""
        return x

    def locate(self, rows: torch.Tensor, places: torch.Tensor) -> None:
        """Set the row and place of each token of the next batch."""
        self.tokens = rows, places

    def off(self) -> None:
        """Turn noise off."""
        self.of_rows = None

    def keep(self, members: Sequence[int]) -> None:
        """Drop all other members."""
        self.keys = [self.keys[m] for m in members]

    def of_tokens(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`of_rows`, and the place, for each token of x (M, S, D) or each row of x (rows, D)."""
        assert self.of_rows is not None
        of_rows = self.of_rows = self.of_rows.to(x.device, non_blocking=True)
        if self.only is not None:
            of_rows = of_rows.view(len(self.keys), -1)[self.only]
        if x.dim() == 2:
            return of_rows, of_rows.new_zeros(of_rows.shape)
        assert self.tokens is not None, "locate() comes first"
        rows, places = self.tokens
        return of_rows[rows], places


def make_noise(
    method: Method, regularizers: Iterable[Regularizer], streams: Sequence[Mapping[str, seeds.Key]]
) -> Noise | None:
    """The noise that a recipe trains with, for members with these named streams."""
    made = (kind.make_noise(streams) for kind in (method, *regularizers))
    return next((noise for noise in made if noise), None)


def int32(keys: Sequence[int]) -> torch.Tensor:
    """Keys of `lorae.seeds.key32` as a tensor."""
    import torch

    return torch.tensor(keys, dtype=torch.int32)
