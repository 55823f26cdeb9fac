"""Keys and values of tokens that were read, so that further tokens are computed alone.

A further token attends to three kinds of columns: the common beginning of a member's prompts, kept once for
each member; the rest of its own prompt, kept once however many texts continue that prompt; and the tokens
written since, which each text has for itself. The first two are read in packed rows and never change, so
many decodings can start from one reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from lorae.backbone import packing
from lorae.backbone.devices import to_device
from lorae.backbone.packing import Packing


class Kept(NamedTuple):
    """Keys, or values, of one layer with H heads of them.

    Attributes:
        shared: (M, H, P, d) of the common beginning.
        own: (M * N, H, T, d) of the rest of every prompt, zero where a prompt is filled up.
    """

    shared: torch.Tensor
    own: torch.Tensor


class Layer(NamedTuple):
    """What one layer's attention keeps."""

    keys: Kept
    values: Kept


class Reading:
    """Attention within packed prompts that keeps their keys and values; some prompts after others.

    Args:
        lengths: tokens of each of N prompts.
        num_members: M members that read them.
        shared: tokens that all prompts begin with, and go on.

    Attributes:
        layers: what each module of attention keeps.
        lengths: (M * N,) tokens of each prompt.
        packing: of the prompts that are read next, those from the `first`-th on.
    """

    def __init__(self, lengths: Sequence[int], num_members: int, shared: int, device: torch.device) -> None:
        self.num_members, self.shared = num_members, shared
        self.lengths = to_device([*lengths] * num_members, device)
        self.longest, self.layers = max(lengths), dict[torch.nn.Module, Layer]()
        self.first = 0
        self.packing: Packing | None = None

    def read_next(self, first: int, lengths: Sequence[int]) -> Packing:
        """How the prompts from the `first`-th on are packed that are read next."""
        of_all = [*lengths] * self.num_members
        self.first = first
        self.packing = Packing.of(of_all, self.num_members, self.lengths.device, self.shared)
        return self.packing

    def attend(
        self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **how: Any
    ) -> torch.Tensor:
        """As `lorae.backbone.packing.attention`, with its arguments."""
        assert self.packing, "read_next() comes first"
        if module not in self.layers:
            self.layers[module] = Layer(self._room(key), self._room(value))
        for x, kept in zip((key, value), (self.layers[module].keys, self.layers[module].values)):
            self._keep(x, kept, self.packing)
        return packing.attention(module, query, key, value, None, packing=self.packing, **how)[0]

    def _room(self, x: torch.Tensor) -> Kept:
        """For keys or values like the packed ones (M, H, S, d)."""
        num_members, heads, _, width = x.shape
        own = x.new_zeros(len(self.lengths), heads, self.longest - self.shared, width)
        return Kept(x.new_empty(num_members, heads, self.shared, width), own)

    def _keep(self, x: torch.Tensor, kept: Kept, packing: Packing) -> None:
        """Packed keys or values (M, H, S, d)."""
        num_members, heads, _, width = x.shape
        padded = packing.padded(x.transpose(1, 2).flatten(2))  # (M * N', P + T', H * d)
        padded = padded.view(num_members, -1, packing.shape[1], heads, width).transpose(2, 3)
        num, rest = padded.shape[1], packing.shape[1] - self.shared
        kept.shared.copy_(padded[:, 0, :, : self.shared])
        own = kept.own.unflatten(0, (num_members, -1))
        own[:, self.first : self.first + num, :, :rest] = padded[:, :, :, self.shared :]


class Continuation:
    """Attention of the next token of every text to all tokens before it.

    Args:
        reading: of N prompts of each of M members.
        draws: K texts that continue each prompt.
        room: tokens that each text may get.

    Attributes:
        written: tokens that each text has before those that are computed next.
    """

    def __init__(self, reading: Reading, draws: int, room: int) -> None:
        self.draws, self.room, self.written = draws, room, 0
        self.num_shared, self.lengths = reading.shared, reading.lengths
        self.layers = dict(reading.layers)
        # Keys and values (M * N * K, H, room, d) of each layer
        self.new = dict[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]]()
        self._hidden = dict[int | None, torch.Tensor]()

    @property
    def positions(self) -> torch.Tensor:
        """(M * N * K,) of the tokens that are computed next."""
        return (self.lengths + self.written).repeat_interleave(self.draws)

    def advance(self) -> None:
        """Every text has one more token."""
        self.written += 1
        self._hidden.clear()

    def keep(self, prompts: torch.Tensor) -> None:
        """Go on with the texts of some of the M * N prompts, as many of each member."""
        draws = torch.arange(self.draws, device=prompts.device)
        texts = (prompts[:, None] * self.draws + draws).flatten()
        self.lengths = self.lengths[prompts]
        for module, layer in self.layers.items():
            self.layers[module] = Layer(*(Kept(kept.shared, kept.own[prompts]) for kept in layer))
        for module, (keys, values) in self.new.items():
            self.new[module] = keys[texts], values[texts]
        self._hidden.clear()

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """Attention (M, S, heads, d) of queries (M, heads, S, d), one for each of the S = N * K texts."""
        (num_members, heads, _, width), num_heads = query.shape, key.shape[1]
        split = num_members, num_heads, heads // num_heads, -1, self.draws, width  # (M, H, G, N, K, d)
        q = query.reshape(split).permute(0, 3, 1, 4, 2, 5).flatten(3, 4).flatten(0, 1)  # (M * N, H, K * G, d)
        (shared_k, own_k), (shared_v, own_v) = self.layers[module]
        new_k, new_v = self._with(module, key, value)
        before = self._by_member(q, num_members) @ shared_k.mT
        scores = torch.cat(
            [self._by_prompt(before, len(q)), q @ own_k.mT, self._of_texts(self._by_text(q) @ new_k.mT)], -1
        )
        scores *= scaling
        if softcap:
            scores = torch.tanh(scores / softcap) * softcap
        scores.masked_fill_(self._out_of_sight(sliding_window, own_k.shape[2]), torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
        shared, own, new = weights.split([k.shape[2] for k in (shared_k, own_k, new_k)], -1)
        out = own @ own_v + self._of_texts(self._by_text(new) @ new_v)
        out += self._by_prompt(self._by_member(shared, num_members) @ shared_v, len(q))
        out = out.view(num_members, -1, num_heads, self.draws, heads // num_heads, out.shape[-1])
        return out.transpose(2, 3).reshape(num_members, -1, heads, out.shape[-1])

    def _with(self, module: Any, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (S', H, written + 1, d) of all texts' own tokens, those computed now included."""
        now = [x.transpose(1, 2).flatten(0, 1) for x in (key, value)]  # (M * N * K, H, d)
        if module not in self.new:
            keys, values = (x.new_empty(*x.shape[:2], self.room, x.shape[2]) for x in now)
            self.new[module] = keys, values
        for kept, x in zip(self.new[module], now):
            kept[:, :, self.written] = x
        keys, values = (kept[:, :, : self.written + 1] for kept in self.new[module])
        return keys, values

    def _out_of_sight(self, window: int | None, num_own: int) -> torch.Tensor:
        """(M * N, 1, 1, P + T + written + 1) which columns a prompt's texts do not attend to: those that are
        filled up, and those `window` positions away."""
        if window not in self._hidden:
            lengths = self.lengths[:, None]
            columns = torch.arange(self.num_shared + num_own, device=lengths.device).expand(len(lengths), -1)
            own = lengths + torch.arange(self.written + 1, device=lengths.device)
            positions = torch.cat([columns, own], 1)
            hidden = torch.cat([columns >= lengths, torch.zeros_like(own, dtype=torch.bool)], 1)
            if window is not None:
                hidden |= lengths + self.written - positions >= window
            self._hidden[window] = hidden[:, None, None]
        return self._hidden[window]

    # Rows are prompts, (M * N, H, K * G, C); what columns are common to decides how they are multiplied

    def _by_member(self, x: torch.Tensor, num_members: int) -> torch.Tensor:  # (M, H, N * K * G, C)
        return x.unflatten(0, (num_members, -1)).transpose(1, 2).flatten(2, 3)

    def _by_prompt(self, x: torch.Tensor, num: int) -> torch.Tensor:  # from (M, H, N * K * G, C)
        return x.unflatten(2, (num // len(x), -1)).transpose(1, 2).flatten(0, 1)

    def _by_text(self, x: torch.Tensor) -> torch.Tensor:  # (M * N * K, H, G, C)
        return x.unflatten(2, (self.draws, -1)).transpose(1, 2).flatten(0, 1)

    def _of_texts(self, x: torch.Tensor) -> torch.Tensor:  # from (M * N * K, H, G, C)
        return x.unflatten(0, (-1, self.draws)).transpose(1, 2).flatten(2, 3)


Past = Reading | Continuation
