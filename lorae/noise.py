"""Noise on what the trained parts of a stack's members read, or on their weights: what all kinds share.

It is off unless rows are set. A row's noise depends on its member and on itself, never on the other rows.
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
    """Where the rows that noise is set for lie in a batch; without more, no noise.

    Args:
        keys: a random stream of each member.

    Attributes:
        num_draws: predictions of a member, each with its own noise, whatever a trial's draws; None = as many
            as those have.
        of_rows: what each row (M*B,) has, the key of its noise or the number of its mask; None = rows have no
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
        """Noise of a training step on these rows of each member's batch."""
        raise NotImplementedError  # abstract: every kind defines it

    def predict(self, draw: int, example_ids: Sequence[str]) -> None:
        """Noise of one draw on examples that all members predict."""
        raise NotImplementedError  # abstract: every kind defines it

    def __call__(self, x: torch.Tensor, layer: int | str) -> torch.Tensor:
        """x (M, S, D) of tokens, or (rows, D), as the trained parts of a layer read it."""
        return x

    def locate(self, rows: torch.Tensor, places: torch.Tensor) -> None:
        """Tell where the tokens of the batch belong that is computed next."""
        self.tokens = rows, places

    def off(self) -> None:
        """No noise."""
        self.of_rows = None

    def keep(self, members: Sequence[int]) -> None:
        """Drop all other members."""
        self.keys = [self.keys[m] for m in members]

    def of_tokens(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What each row has, for each token of x (M, S, D), or for each row of x (rows, D); and its place."""
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
    """The noise that a recipe trains with, of the members with these named streams."""
    made = (kind.make_noise(streams) for kind in (method, *regularizers))
    return next((noise for noise in made if noise), None)


def int32(keys: Sequence[int]) -> torch.Tensor:
    """Keys of `lorae.seeds.key32` as a tensor."""
    import torch

    return torch.tensor(keys, dtype=torch.int32)
