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
    """Fixed binary masks, instead of random ones, on what `AdapterDropout` acts on.

    Row b of the batch of step t is trained with mask (t + b) mod `masks`; a member predicts once with each
    mask, which gives that many draws. Kept inputs are not rescaled: every mask keeps as many.

    Args:
        masks: number of masks K, >= 2.
        scale: S >= 1, how little they overlap: 1 keeps every input in every mask, a large one makes masks
            that share almost nothing.
    """

    # Another name than "masks", whose members trained each mask on fixed rows of every batch
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

        K times m of floor(m S) positions are chosen, and positions that no mask has are dropped. That leaves
        m S (1 - (1 - 1/S)^K) of them on average, from which m follows; it is repeated until `width` are left.

        Raises:
            ValueError: there are no such masks, or they are too rare.
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
    """The fixed masks of Masksembles, drawn for each member and layer when they are first used.

    Args:
        spec: number of masks, and their scale.
        keys: the mask stream of each member.
    """

    def __init__(self, spec: Masksembles, keys: Sequence[seeds.Key]) -> None:
        super().__init__(keys)
        self.spec, self.num_draws = spec, spec.masks
        self._masks: dict[tuple[int | str, int], torch.Tensor] = {}  # layer, width -> (M * K, D)

    def train(self, step: int, rows: Sequence[int]) -> None:
        """Masks of a training step on these rows of each member's batch: each is used as often as the others,
        however few the rows, and on short texts as on long ones, which rows are ordered by."""
        self._set([(step + b) % self.spec.masks for b in rows])

    def predict(self, draw: int, example_ids: Sequence[str]) -> None:
        """The mask of one draw on examples that all members predict."""
        self._set([draw] * len(example_ids))

    def keep(self, members: Sequence[int]) -> None:
        super().keep(members)
        self._masks = {}  # drawn again

    def __call__(self, x: torch.Tensor, layer: int | str) -> torch.Tensor:
        """x (M, S, D) of tokens, or (rows, D), with each row's mask of a layer."""
        if self.of_rows is None:
            return x
        numbers, _ = self.of_tokens(x)
        return x * self._drawn(layer, x.shape[-1], x.device)[numbers]

    def _set(self, masks: list[int]) -> None:
        """Each member's rows have these of its own masks."""
        import torch

        self.of_rows = torch.tensor([m * self.spec.masks + k for m in range(len(self.keys)) for k in masks])

    def _drawn(self, layer: int | str, width: int, device: torch.device) -> torch.Tensor:
        import torch

        if (layer, width) not in self._masks:
            masks = [self.spec.generate(width, seeds.stream(*key, layer)) for key in self.keys]
            self._masks[layer, width] = torch.from_numpy(np.concatenate(masks)).to(device)
        return self._masks[layer, width]
