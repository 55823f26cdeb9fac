"""Random streams by name: what a member draws depends on its own key only, never on who else exists or drew
before.

A stream is addressed by a key such as (seed, member, "init", "model.layers.0.self_attn.q_proj").
Initialisation and data order use NumPy's Philox generator seeded by the key's hash. Dropout needs a mask
that depends neither on the device nor on padding nor on the other rows of a batch, so it is a pure hash of
(key, step, row, position, channel).
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

Key = tuple[int | str, ...]


def stream(*key: int | str) -> np.random.Generator:
    """Counter-based generator of the stream named by `key`; equal keys give equal numbers on every
    machine."""
    return np.random.Generator(np.random.Philox(int.from_bytes(_hash(key), "little")))


def key32(*key: int | str) -> int:
    """The key as a signed 32-bit integer, the seed of `uniform_grid`."""
    return int.from_bytes(_hash(key)[:4], "little", signed=True)


def _hash(key: Key) -> bytes:
    return hashlib.sha256("\0".join(f"{type(k).__name__}:{k}" for k in key).encode()).digest()[:16]


def keep_mask(row_keys: torch.Tensor, places: torch.Tensor, width: int, drop: float) -> torch.Tensor:
    """Dropout mask (*tokens, width), True where kept, as a pure function of row key, place and channel.

    Each element is the 32-bit finaliser of MurmurHash3 over (row key, place, channel), so the mask of a row
    is the same wherever it lies, whatever the other rows of the batch, the micro-batch or the device.

    Args:
        row_keys: int32 (*tokens,), of the row that each token belongs to, see `key32`.
        places: (*tokens,) index of the token in its row.
        width: channels D.
        drop: probability in [0, 1) that an element is dropped.
    """
    return _bits(row_keys, places, width) >= int(drop * 2**31)


def uniforms(keys: torch.Tensor, place: int) -> torch.Tensor:
    """Uniform numbers (*keys,) in (0, 1), fp64, as a pure function of key and place.

    Args:
        keys: int32, see `key32`.
    """
    import torch

    return (_bits(keys, torch.full_like(keys, place), 1)[..., 0].double() + 0.5) / 2**31


def normals(keys: torch.Tensor, num: int, width: int) -> torch.Tensor:
    """Standard normal numbers (*keys, num, width), fp32, as a pure function of key, row and channel.

    Args:
        keys: int32, see `key32`.
    """
    import torch

    places = torch.arange(num, device=keys.device).expand(*keys.shape, num)
    return normals_at(keys[..., None].expand_as(places), places, width)


def normals_at(row_keys: torch.Tensor, places: torch.Tensor, width: int) -> torch.Tensor:
    """Standard normal numbers (*tokens, width), fp32, as a pure function of row key, place and channel.

    By Box and Muller from two hashes like that of `keep_mask`, with its arguments; devices differ by
    rounding.
    """
    radius, angle = (
        (_bits(keys, places, width) + 1.0) / 2**31  # in (0, 1]
        for keys in (row_keys, _mix(row_keys ^ 0x2545F491))
    )
    return (-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()


def _bits(row_keys: torch.Tensor, places: torch.Tensor, width: int) -> torch.Tensor:
    """Hashes (*tokens, width) in [0, 2^31) of row key, place and channel."""
    import torch

    token_keys = _mix(row_keys ^ _mix(places.to(torch.int32) + 1))
    channel = _mix(torch.arange(width, dtype=torch.int32, device=row_keys.device) + 0x5BD1E995)
    return _mix(token_keys[..., None] ^ channel) & 0x7FFFFFFF


def _mix(x: torch.Tensor) -> torch.Tensor:
    """MurmurHash3's 32-bit finaliser on int32 (multiplication wraps; shifts are made logical by a mask)."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * -2048144789  # 0x85EBCA6B
    x = (x ^ ((x >> 13) & 0x7FFFF)) * -1028477387  # 0xC2B2AE35
    return x ^ ((x >> 16) & 0xFFFF)
