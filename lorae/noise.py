"""Noise on what the trained parts of a stack's members read: dropout, or the masks of Masksembles.

It is off unless rows are set. A row's noise depends on its member and on itself, never on the other rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from lorae import seeds
from lorae.regularizers import AdapterDropout, Masksembles, Regularizer


class BranchDropout:
    """Dropout by masks that are a pure function of a row's key.

    Args:
        p: probability of dropping an input.
        keys: the dropout stream of each member.
    """

    def __init__(self, p: float, keys: Sequence[seeds.Key]) -> None:
        self.p, self.keys = p, list(keys)
        self.row_keys: torch.Tensor | None = None  # int32 (M*B,)
        self.only: int | None = None  # the one member whose rows are computed now

    def train(self, step: int, rows: Sequence[int]) -> None:
        """Noise of a training step on these rows of each member's batch."""
        self._set([seeds.key32(*key, step, b) for key in self.keys for b in rows])

    def predict(self, draw: int, example_ids: Sequence[str]) -> None:
        """Noise of one draw on examples that all members predict."""
        streams = [(*key[:-1], "mc", draw) for key in self.keys]
        self._set([seeds.key32(*stream, name) for stream in streams for name in example_ids])

    def off(self) -> None:
        self.row_keys = None

    def keep(self, members: Sequence[int]) -> None:
        """Drop all other members."""
        self.keys = [self.keys[m] for m in members]

    def __call__(self, x: torch.Tensor, layer: int | str) -> torch.Tensor:
        """x (rows, T, D), or (rows, D), with noise that is a layer's own."""
        if self.row_keys is None:
            return x
        keys = _of(self.row_keys, self.only, len(self.keys)).to(x.device) ^ seeds.key32("layer", layer)
        keep = seeds.keep_mask(keys, x.shape[1] if x.dim() > 2 else 1, x.shape[-1], self.p)
        return x * keep.view_as(x) / (1 - self.p)

    def _set(self, row_keys: list[int]) -> None:
        self.row_keys = torch.tensor(row_keys, dtype=torch.int32)


class BranchMasks:
    """The fixed masks of Masksembles, drawn for each member and layer when they are first used.

    Args:
        spec: number of masks, and their scale.
        keys: the mask stream of each member.
    """

    def __init__(self, spec: Masksembles, keys: Sequence[seeds.Key]) -> None:
        self.spec, self.keys = spec, list(keys)
        self.row_masks: torch.Tensor | None = None  # (M*B,) number of each row's mask
        self.only: int | None = None
        self._masks: dict[tuple[int | str, int], torch.Tensor] = {}  # layer, width -> (M, K, D)

    def train(self, step: int, rows: Sequence[int]) -> None:
        """Masks of a training step on these rows of each member's batch."""
        self.row_masks = torch.tensor([b % self.spec.masks for _ in self.keys for b in rows])

    def predict(self, draw: int, example_ids: Sequence[str]) -> None:
        """The mask of one draw on examples that all members predict."""
        self.row_masks = torch.full((len(self.keys) * len(example_ids),), draw)

    def off(self) -> None:
        self.row_masks = None

    def keep(self, members: Sequence[int]) -> None:
        """Drop all other members."""
        self.keys = [self.keys[m] for m in members]
        self._masks = {place: masks[list(members)] for place, masks in self._masks.items()}

    def __call__(self, x: torch.Tensor, layer: int | str) -> torch.Tensor:
        """x (rows, T, D), or (rows, D), with each row's mask of a layer."""
        if self.row_masks is None:
            return x
        masks_MKD = self._drawn(layer, x.shape[-1], x.device)
        members = torch.arange(len(self.keys)).repeat_interleave(len(self.row_masks) // len(self.keys))
        members, numbers = (_of(rows, self.only, len(self.keys)) for rows in (members, self.row_masks))
        keep = masks_MKD[members.to(x.device), numbers.to(x.device)]  # (rows, D)
        return x * keep.view(len(x), *[1] * (x.dim() - 2), -1)

    def _drawn(self, layer: int | str, width: int, device: torch.device) -> torch.Tensor:
        if (layer, width) not in self._masks:
            masks = [self.spec.generate(width, seeds.stream(*key, layer)) for key in self.keys]
            self._masks[layer, width] = torch.stack([torch.from_numpy(m) for m in masks]).to(device)
        return self._masks[layer, width]


Noise = BranchDropout | BranchMasks


def make_noise(
    regularizers: Sequence[Regularizer], streams: Sequence[Mapping[str, seeds.Key]]
) -> Noise | None:
    """The noise that a recipe trains with, of the members with these named streams."""
    for spec in regularizers:
        if isinstance(spec, AdapterDropout):
            return BranchDropout(spec.p, [s["dropout"] for s in streams])
        if isinstance(spec, Masksembles):
            return BranchMasks(spec, [s["masks"] for s in streams])
    return None


def _of(rows: torch.Tensor, only: int | None, num_members: int) -> torch.Tensor:
    """The entries of one member's rows, or all."""
    return rows if only is None else rows.view(num_members, -1)[only]
