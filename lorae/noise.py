"""Noise on what the trained parts of a stack's members read, dropout or the masks of Masksembles, or on their
weights, where these are Gaussians.

It is off unless rows are set. A row's noise depends on its member and on itself, never on the other rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from lorae import seeds
from lorae.methods import Bayesian, Blob, Method
from lorae.regularizers import AdapterDropout, Masksembles, Regularizer
from lorae.transfer import to_device


class _Located:
    """Where the rows that noise is set for lie in a batch.

    Args:
        keys: a random stream of each member.

    Attributes:
        of_rows: what each row (M*B,) has, the key of its noise or the number of its mask; None = rows have no
            noise of their own.
        only: the one member whose rows are computed now; None = all, members first.
        tokens: row and place of each token of the batch, (M, S) each, see `lorae.packing.Packing`.
    """

    def __init__(self, keys: Sequence[seeds.Key]) -> None:
        self.keys = list(keys)
        self.of_rows: torch.Tensor | None = None
        self.only: int | None = None
        self.tokens: tuple[torch.Tensor, torch.Tensor] | None = None

    def locate(self, rows: torch.Tensor, places: torch.Tensor) -> None:
        """Tell where the tokens of the batch belong that is computed next."""
        self.tokens = rows, places

    def off(self) -> None:
        """No noise."""
        self.of_rows = None

    def keep(self, members: Sequence[int]) -> None:
        """Drop all other members."""
        self.keys = [self.keys[m] for m in members]

    def _of_tokens(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What each row has, for each token of x (M, S, D), or for each row of x (rows, D); and its place."""
        assert self.of_rows is not None
        of_rows = self.of_rows = to_device(self.of_rows, x.device)
        if self.only is not None:
            of_rows = of_rows.view(len(self.keys), -1)[self.only]
        if x.dim() == 2:
            return of_rows, torch.zeros_like(of_rows)
        assert self.tokens is not None, "locate() comes first"
        rows, places = self.tokens
        return of_rows[rows], places


class BranchDropout(_Located):
    """Dropout by masks that are a pure function of a row's key.

    Args:
        p: probability of dropping an input.
        keys: the dropout stream of each member.
    """

    def __init__(self, p: float, keys: Sequence[seeds.Key]) -> None:
        super().__init__(keys)
        self.p = p

    def train(self, step: int, rows: Sequence[int]) -> None:
        """Noise of a training step on these rows of each member's batch."""
        self._set([seeds.key32(*key, step, b) for key in self.keys for b in rows])

    def predict(self, draw: int, example_ids: Sequence[str]) -> None:
        """Noise of one draw on examples that all members predict."""
        streams = [(*key[:-1], "mc", draw) for key in self.keys]
        self._set([seeds.key32(*stream, name) for stream in streams for name in example_ids])

    def __call__(self, x: torch.Tensor, layer: int | str) -> torch.Tensor:
        """x (M, S, D) of tokens, or (rows, D), with noise that is a layer's own."""
        if self.of_rows is None:
            return x
        keys, places = self._of_tokens(x)
        keep = seeds.keep_mask(keys ^ seeds.key32("layer", layer), places, x.shape[-1], self.p)
        return x * keep / (1 - self.p)

    def _set(self, row_keys: list[int]) -> None:
        self.of_rows = _int32(row_keys)


class BranchMasks(_Located):
    """The fixed masks of Masksembles, drawn for each member and layer when they are first used.

    Args:
        spec: number of masks, and their scale.
        keys: the mask stream of each member.
    """

    def __init__(self, spec: Masksembles, keys: Sequence[seeds.Key]) -> None:
        super().__init__(keys)
        self.spec = spec
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
        numbers, _ = self._of_tokens(x)
        return x * self._drawn(layer, x.shape[-1], x.device)[numbers]

    def _set(self, masks: list[int]) -> None:
        """Each member's rows have these of its own masks."""
        self.of_rows = torch.tensor([m * self.spec.masks + k for m in range(len(self.keys)) for k in masks])

    def _drawn(self, layer: int | str, width: int, device: torch.device) -> torch.Tensor:
        if (layer, width) not in self._masks:
            masks = [self.spec.generate(width, seeds.stream(*key, layer)) for key in self.keys]
            self._masks[layer, width] = torch.from_numpy(np.concatenate(masks)).to(device)
        return self._masks[layer, width]


class WeightNoise(_Located):
    """Samples of Gaussian weights: one of each member for a training step, and one for a draw.

    Args:
        keys: the posterior stream of each member.
        flipout: every row of a training step has a sample of its own, by random signs of the step's (Wen et
            al. 2018, arXiv:1803.04386).
    """

    def __init__(self, keys: Sequence[seeds.Key], flipout: bool) -> None:
        super().__init__(keys)
        self.flipout = flipout
        self.sample_keys: torch.Tensor | None = None  # int32 (M,); None = the means

    def train(self, step: int, rows: Sequence[int]) -> None:
        """A sample for a training step, and signs of these rows of each member's batch."""
        self.sample_keys = _int32([seeds.key32(*key, step) for key in self.keys])
        if self.flipout:
            self.of_rows = _int32([seeds.key32(*key, step, b) for key in self.keys for b in rows])

    def predict(self, draw: int, example_ids: Sequence[str]) -> None:
        """The sample of one draw, which all examples have."""
        self.sample_keys, self.of_rows = _int32([seeds.key32(*key, "draw", draw) for key in self.keys]), None

    def off(self) -> None:
        super().off()
        self.sample_keys = None

    def __call__(self, x: torch.Tensor, layer: int | str) -> torch.Tensor:
        """x: what is read stays as it is."""
        return x

    def sample(self, std_M: torch.Tensor, *name: int | str) -> torch.Tensor:
        """Noise on the weights of this name, of these standard deviations (M, D) or (M, R, D)."""
        if self.sample_keys is None:
            return torch.zeros_like(std_M)
        self.sample_keys, width = to_device(self.sample_keys, std_M.device), std_M.shape[-1]
        keys = self.sample_keys ^ seeds.key32(*name)
        return std_M * seeds.normals(keys, std_M[0].numel() // width, width).view_as(std_M)

    def added(self, x: torch.Tensor, std_MRD: torch.Tensor, layer: int) -> torch.Tensor:
        """What a sample of a layer's weights adds to their means' product with x: (M, S, D) -> (M, S, R)."""
        if self.sample_keys is None:
            return x.new_zeros(())
        noise_MDR = self.sample(std_MRD, "layer", layer).to(x.dtype).transpose(1, 2)
        if self.of_rows is None:
            return torch.bmm(x, noise_MDR)
        keys = (seeds.key32("layer", layer, side) for side in ("in", "out"))
        ins, outs = (self._signs(x, width, key) for width, key in zip(noise_MDR.shape[1:], keys))
        return torch.bmm(x * ins, noise_MDR) * outs

    def _signs(self, x: torch.Tensor, width: int, key: int) -> torch.Tensor:
        """Random signs (M, S, width) of each token of x: its row's."""
        assert self.of_rows is not None and self.tokens is not None, "locate() comes first"
        self.of_rows = to_device(self.of_rows, x.device)
        keys = self.of_rows ^ key
        signs = seeds.keep_mask(keys, torch.zeros_like(keys), width, 0.5).to(x.dtype) * 2 - 1
        return signs[self.tokens[0].reshape(x.shape[:2])]


def _int32(keys: Sequence[int]) -> torch.Tensor:
    return torch.tensor(keys, dtype=torch.int32)


Noise = BranchDropout | BranchMasks | WeightNoise


def make_noise(
    method: Method, regularizers: Sequence[Regularizer], streams: Sequence[Mapping[str, seeds.Key]]
) -> Noise | None:
    """The noise that a recipe trains with, of the members with these named streams."""
    if isinstance(method, Bayesian):
        return WeightNoise([s["posterior"] for s in streams], flipout=isinstance(method, Blob))
    for spec in regularizers:
        if isinstance(spec, AdapterDropout):
            return BranchDropout(spec.p, [s["dropout"] for s in streams])
        if isinstance(spec, Masksembles):
            return BranchMasks(spec, [s["masks"] for s in streams])
    return None
