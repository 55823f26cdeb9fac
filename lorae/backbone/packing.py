"""Rows without padding: the sequences of each member follow one another in one packed row of tokens, and what
they begin with in common is there once.

Everything in a transformer but attention treats tokens one by one, so only attention sees sequences: it puts
its queries, keys and values into padded rows, and the result back. transformers knows it by the name
`ATTENTION`; models that go through its attention interface run packed as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lorae.backbone.devices import to_device

if TYPE_CHECKING:
    from lorae.backbone.past import Past

ATTENTION = "lorae_packed"
# Not cuDNN's, which plans anew for every shape: 100 ms of each step, on an H200
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True)
class Packing:
    """Where the tokens of R sequences lie in the packed rows of M members, and in rows padded to T.

    Attributes:
        to_padded, to_packed: the two reorderings, between (M * S, ...) and (R * T, ...).
        rows, places: (M, S) sequence of each token, and its index in that sequence; of shared ones the last.
        order: place in the packed (M * S) of every token, sequence after sequence.
        ends: (R,) place of each sequence's last token in the packed (M * S).
        shape: R and T.
        shared: tokens that all sequences begin with, once in the row of each member.
        visible: (R, T or 1, T) which tokens a token attends to; None = all before it, and itself.
        positions: (R, T) of padded tokens, from which a sliding window counts; None = their index.
    """

    to_padded: Reordering
    to_packed: Reordering
    rows: torch.Tensor
    places: torch.Tensor
    order: np.ndarray
    ends: torch.Tensor
    shape: tuple[int, int]
    shared: int = 0
    visible: torch.Tensor | None = None
    positions: torch.Tensor | None = None

    @classmethod
    def of(cls, lengths: Sequence[int], num_members: int, device: torch.device, shared: int = 0) -> Packing:
        """Sequences of these lengths in order, as many of each member, members first; all of them begin with
        the same `shared` tokens, and go on."""
        length_MB = np.asarray(lengths).reshape(num_members, -1)
        own_MB, longest = length_MB - shared, int(length_MB.max())
        width = shared + int(own_MB.sum(1).max())
        first_MB = np.zeros_like(own_MB) + width * np.arange(num_members)[:, None]  # of each member
        begin_MB = first_MB + np.cumsum(own_MB, axis=1) - own_MB  # of each sequence, were its beginning there
        row, place = np.nonzero(np.arange(longest) < length_MB.reshape(-1, 1))  # of each token
        packed = place + np.where(place < shared, first_MB.ravel()[row], begin_MB.ravel()[row])
        padded = row * longest + place
        rows, places = np.zeros((2, num_members * width), np.int64)
        rows[packed], places[packed] = row, place

        def reordering(size: int, target: np.ndarray, source: np.ndarray) -> Reordering:
            index = np.full(size, -1)
            index[target] = source
            empty = np.flatnonzero(index < 0)
            return Reordering(to_device(np.maximum(index, 0), device), to_device(empty, device))

        return cls(
            reordering(length_MB.size * longest, padded, packed),
            reordering(num_members * width, packed, padded),
            to_device(rows, device).view(num_members, width),
            to_device(places, device).view(num_members, width),
            packed,
            to_device((begin_MB + length_MB - 1).ravel(), device),
            (length_MB.size, longest),
            shared,
        )

    def bidirectional(self) -> Packing:
        """The same sequences, where a token attends to its whole sequence."""
        real = torch.ones(self.shape, dtype=torch.bool, device=self.ends.device)
        real.view(-1).index_fill_(0, self.to_padded.empty, False)
        return replace(self, visible=real[:, None])

    def padded(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (M, S, D) as sequences (R, T, D), zero where these are filled up."""
        return _Pad.apply(x.flatten(0, 1), self).view(*self.shape, -1)

    def shared_of_packed(self, x: torch.Tensor) -> torch.Tensor:
        """View (M, shared, D) of the shared tokens in packed ones."""
        return x.view(*self.places.shape, -1)[:, : self.shared]

    def shared_of_others(self, x: torch.Tensor) -> torch.Tensor:
        """View (M, R / M - 1, shared, D) of the shared tokens in padded ones, without each member's last
        sequence, from which packed ones come."""
        return x.view(len(self.places), -1, self.shape[1], x.shape[-1])[:, :-1, : self.shared]

    def pack(self, values: Sequence[int]) -> torch.Tensor:
        """(M, S) values of the tokens, given sequence after sequence; zero where a row is filled up."""
        packed = np.zeros(self.places.numel(), np.int64)
        packed[self.order] = values
        return to_device(packed, self.places.device).view_as(self.places)


@dataclass(frozen=True)
class Reordering:
    """Where each place of the result comes from, and the places that nothing comes to: they are zero."""

    index: torch.Tensor
    empty: torch.Tensor

    def of(self, x: torch.Tensor) -> torch.Tensor:
        return x.index_select(0, self.index).index_fill_(0, self.empty, 0)


class _Pad(torch.autograd.Function):
    """Packed tokens (M * S, D) to padded ones (R * T, D): a shared beginning to every sequence, which sends
    it a gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, packing: Packing) -> torch.Tensor:
        ctx.packing = packing
        return packing.to_padded.of(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        packing: Packing = ctx.packing
        grad = packing.to_packed.of(grads[0])
        if packing.shared:
            packing.shared_of_packed(grad).add_(packing.shared_of_others(grads[0]).sum(1))
        return grad, None


class _Pack(torch.autograd.Function):
    """Padded tokens (R * T, D) to packed ones (M * S, D): a shared beginning from one sequence of each
    member."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, packing: Packing) -> torch.Tensor:
        ctx.packing = packing
        return packing.to_packed.of(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        packing: Packing = ctx.packing
        grad = packing.to_padded.of(grads[0])
        if packing.shared:
            packing.shared_of_others(grad).zero_()
        return grad, None


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    packing: Packing | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    past: Past | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in each sequence, (M, S, heads, d), of packed queries, keys, values (M, heads, S, d); a
    `past` attends by itself, as it keeps keys and values for further tokens.

    On a GPU by scaled_dot_product_attention; on a CPU written out, as the backward pass of flash attention is
    slower there for the short sequences of classification. Without a packing every row is a sequence.
    """
    if past is not None:
        how = {"scaling": scaling, "sliding_window": sliding_window, "softcap": softcap}
        return past.attend(module, query, key, value, **how), None
    num, heads, length = query.shape[:3]
    x = [tensor.transpose(1, 2) for tensor in (query, key, value)]  # (M, S, heads, d)
    if packing:
        padded = [_Pad.apply(t.flatten(0, 1).flatten(1), packing) for t in x]
        x = [p.view(*packing.shape, *t.shape[2:]) for p, t in zip(padded, x)]  # (R, T, heads, d)
    q, k, v = (t.transpose(1, 2) for t in x)
    visible = packing.visible[:, None] if packing and packing.visible is not None else None
    if sliding_window is not None and sliding_window < q.shape[2]:
        visible = (_causal(q) if visible is None else visible) & _near(q, packing, sliding_window)
    if q.is_cuda and not softcap:
        if visible is not None:  # the kernel for masks knows no shared key heads
            k, v = (t.repeat_interleave(heads // t.shape[1], dim=1) for t in (k, v))
        shared = q.shape[1] != k.shape[1]
        with sdpa_kernel(KERNELS):
            out = F.scaled_dot_product_attention(
                q, k, v, visible, is_causal=visible is None, scale=scaling, enable_gqa=shared
            ).transpose(1, 2)
    else:
        out = _written_out(q, k, v, _causal(q) if visible is None else visible, scaling, softcap)
    if packing:
        out = _Pack.apply(out.flatten(0, 1).flatten(1), packing)
    return out.reshape(num, length, heads, -1), None


def _causal(q: torch.Tensor) -> torch.Tensor:
    length = q.shape[2]
    return torch.ones(length, length, dtype=torch.bool, device=q.device).tril()


def _near(q: torch.Tensor, packing: Packing | None, window: int) -> torch.Tensor:
    """Whether a token is less than `window` positions away, (R or 1, 1, T, T)."""
    positions = packing.positions if packing else None
    if positions is None:
        positions = torch.arange(q.shape[2], device=q.device)[None]
    return (positions[:, :, None] - positions[:, None] < window)[:, None]


def _written_out(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    visible: torch.Tensor,
    scaling: float,
    softcap: float | None,
) -> torch.Tensor:
    """softmax(q k^T) v, (R, T, heads, d); queries that share a key head are one product."""
    num, heads, length, width = q.shape
    shared = k.shape[1]
    q = q.reshape(num, shared, -1, width)  # (R, key heads, queries * T, d)
    scores = (q @ k.transpose(2, 3) * scaling).view(num, shared, -1, length, length)
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~visible[..., None, :, :], torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype)
    out = weights.view(num, shared, -1, length) @ v  # (R, key heads, queries * T, d)
    return out.view(num, heads, length, -1).transpose(1, 2)


def register_attention() -> None:
    """Make `ATTENTION` known to transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, attention)
