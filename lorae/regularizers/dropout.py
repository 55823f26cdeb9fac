"""Dropout on the adapters, as in Wang, Aitchison and Rudolph 2023, arXiv:2310.00035."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorae import seeds
from lorae.noise import Noise, int32
from lorae.regularizers.base import Regularizer

if TYPE_CHECKING:
    import torch

    from lorae.trial import Trial


@dataclass(frozen=True)
class AdapterDropout(Regularizer):
    """Dropout during training on the inputs of a member's trained parts, from the member's own stream.

    These are the inputs of the adapter branches and of the head, if a head is trained; with `BatchEnsemble`
    the inputs of the adapted layers, with `Full` the inputs of all linear layers.

    Args:
        p: probability of dropping an input, in (0, 1).
    """

    streams: ClassVar[Mapping[str, str]] = {"dropout": "dropout"}
    is_noise: ClassVar[bool] = True

    p: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.p < 1:
            raise ValueError(f"p={self.p}: must be in (0, 1); write AdapterDropout(p=0.1), or leave it out")

    @property
    def label(self) -> str:
        return f"dropout-{self.p:g}"

    def check(self, trial: Trial) -> None:
        other = next((r for r in trial.regularizers if r.is_noise and r != self), None)
        if other:
            raise ValueError(f"{other} with {self}: masks take the place of dropout; write one of them")

    def make_noise(self, streams: Sequence[Mapping[str, seeds.Key]]) -> BranchDropout:
        return BranchDropout(self.p, [s["dropout"] for s in streams])


class BranchDropout(Noise):
    """Dropout with masks that are a pure function of a row's key.

    Args:
        p: probability of dropping an input.
        keys: the dropout stream of each member.
    """

    def __init__(self, p: float, keys: Sequence[seeds.Key]) -> None:
        super().__init__(keys)
        self.p = p

    def train(self, step: int, rows: Sequence[int]) -> None:
        """Set the noise of a training step on these rows of each member's batch."""
        self._set([seeds.key32(*key, step, b) for key in self.keys for b in rows])

    def predict(self, draw: int, example_ids: Sequence[str]) -> None:
        """Set the noise of one draw on examples that all members predict."""
        streams = [(*key[:-1], "mc", draw) for key in self.keys]
        self._set([seeds.key32(*stream, name) for stream in streams for name in example_ids])

    def __call__(self, x: torch.Tensor, layer: int | str) -> torch.Tensor:
        """x, tokens (M, S, D) or rows (rows, D), with the noise of a layer."""
        if self.of_rows is None:
            return x
        keys, places = self.of_tokens(x)
        keep = seeds.keep_mask(keys ^ seeds.key32("layer", layer), places, x.shape[-1], self.p)
        return x * keep / (1 - self.p)

    def _set(self, row_keys: list[int]) -> None:
        self.of_rows = int32(row_keys)
