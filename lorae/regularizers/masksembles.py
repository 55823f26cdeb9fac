"""Masksembles: fixed masks on the adapters' inputs (Durasov et al. 2021, arXiv:2012.08334)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lorae import seeds
from lorae.noise import Noise
from lorae.regularizers.base import Regularizer

if TYPE_CHECKING:
    import torch

MASK_ATTEMPTS = 1000


@dataclass(frozen=True)
class Masksembles(Regularizer):
    """Fixed binary masks, instead of random masks, on the inputs that `AdapterDropout` acts on.

    Row b of the batch of step t is trained with mask (t + b) mod `masks`; a member predicts once with each
    mask, which gives `masks` draws. Kept inputs are not rescaled: every mask keeps the same number.

    Args:
        masks: number of masks K, >= 2.
        scale: S >= 1, how little the masks overlap: 1 keeps every input in every mask, with a large S masks
            share almost nothing.
    """

    # Not "masks": members with that stream trained each mask on fixed rows of every batch
    streams: ClassVar[Mapping[str, str]] = {"masks": "rotated-masks"}
    is_noise: ClassVar[bool] = True

    masks: int = 4
    scale: float = 2.0

    def __post_init__(self) -> None:
        if self.masks < 2:
            raise ValueError(f"masks={self.masks}: must be >= 2; write Masksembles(masks=4)")
        if not self.scale >= 1:
            raise ValueError(f"scale={self.scale}: must be >= 1; write Masksembles(scale=2.0)")

    @property
    def label(self) -> str:
        return f"masks-{self.masks}x{self.scale:g}"

    @property
    def num_draws(self) -> int:
        return self.masks

    def check_widths(self, widths: Collection[int]) -> None:
        for width in widths:
            self.generate(width, seeds.stream("masks", width))

    def make_noise(self, streams: Sequence[Mapping[str, seeds.Key]]) -> BranchMasks:
        return BranchMasks(self, [s["masks"] for s in streams])

    def generate(self, width: int, rng: np.random.Generator) -> np.ndarray:
        """Masks (K, width), True where kept, each with the same number of ones.

        Each of the K masks chooses m of floor(m S) positions, and positions that no mask chose are dropped.
        That leaves m S (1 - (1 - 1/S)^K) positions on average, which determines m; masks are redrawn until
        exactly `width` positions are left.

        Raises:
            ValueError: such masks do not exist, or are too rare.
        Source: arXiv:2012.08334, section 3.2, and its code's `generate_masks`.
        """
        ones = width / (self.scale * (1 - (1 - 1 / self.scale) ** self.masks))
        for attempt in range(MASK_ATTEMPTS):
            kept = int(ones) + attempt % 2
            positions = np.arange(int(kept * self.scale))
            masks = np.zeros((self.masks, len(positions)), bool)
            for mask in masks:
                mask[rng.permutation(positions)[:kept]] = True
            if (used := masks.any(axis=0)).sum() == width:
                return masks[:, used]
        raise ValueError(
            f"masks={self.masks}, scale={self.scale:g}: no such masks of {width} inputs were found; lower "
            f"the scale, for example write Masksembles(masks={self.masks}, scale=2.0)"
        )


class BranchMasks(Noise):
    """The fixed masks of Masksembles, drawn for each member and layer at first use.

    Args:
        spec: number of masks and their scale.
        keys: the mask stream of each member.
    """

    def __init__(self, spec: Masksembles, keys: Sequence[seeds.Key]) -> None:
        super().__init__(keys)
        self.spec, self.num_draws = spec, spec.masks
        self._masks: dict[tuple[int | str, int], torch.Tensor] = {}  # layer, width -> (M * K, D)

    def train(self, step: int, rows: Sequence[int]) -> None:
        """Set the masks of a training step on these rows of each member's batch. Over the steps all masks are
        used equally often, even with few rows, and on long and short texts (rows are ordered by length)."""
        self._set([(step + b) % self.spec.masks for b in rows])

    def predict(self, draw: int, example_ids: Sequence[str]) -> None:
        """Set the mask of one draw on examples that all members predict."""
        self._set([draw] * len(example_ids))

    def keep(self, members: Sequence[int]) -> None:
        super().keep(members)
        self._masks = {}  # drawn again

    def __call__(self, x: torch.Tensor, layer: int | str) -> torch.Tensor:
        """x, tokens (M, S, D) or rows (rows, D), with each row's mask of a layer."""
        if self.of_rows is None:
            return x
        numbers, _ = self.of_tokens(x)
        return x * self._drawn(layer, x.shape[-1], x.device)[numbers]

    def _set(self, masks: list[int]) -> None:
        """Set the mask numbers of each member's rows; every member has its own masks."""
        import torch

        self.of_rows = torch.tensor([m * self.spec.masks + k for m in range(len(self.keys)) for k in masks])

    def _drawn(self, layer: int | str, width: int, device: torch.device) -> torch.Tensor:
        import torch

        if (layer, width) not in self._masks:
            masks = [self.spec.generate(width, seeds.stream(*key, layer)) for key in self.keys]
            self._masks[layer, width] = torch.from_numpy(np.concatenate(masks)).to(device)
        return self._masks[layer, width]
