"""Which library multiplies fp32 matrices on a CPU: the one that torch takes, MKL, or oneDNN, which is twice
as fast with AVX-512."""

from __future__ import annotations

import functools
from typing import Any

import torch

SHAPES = ((512, 576, 1536), (512, 1536, 576), (256, 576, 192))  # rows, inputs and outputs of products
SETTING: Any = getattr(torch.backends.mkldnn, "matmul", None)  # since torch 2.9
EXACT = 1e-5  # of the largest number: fp32 differs by 1e-6, bf16 by 1e-3


def use_onednn(wanted: bool) -> None:
    """Multiply fp32 matrices by oneDNN from now on, or by what torch takes.

    torch hands them to oneDNN only where a product may be computed in bf16. oneDNN does that with AMX alone;
    `onednn_is_better` makes sure that it does not.
    """
    if SETTING is not None:
        SETTING.fp32_precision = "bf16" if wanted else "none"


def onednn_is_used() -> bool:
    """Whether oneDNN multiplies fp32 matrices now."""
    return SETTING is not None and SETTING.fp32_precision == "bf16"


@functools.cache
def onednn_is_better() -> bool:
    """Whether oneDNN multiplies faster here, and in fp32: AVX-512 without AMX, and exact products.

    A machine always gives the same answer: a resumed training ends with the same bytes.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or torch.cpu._is_amx_tile_supported():
        return False
    before = onednn_is_used()
    try:
        use_onednn(True)
        return onednn_is_used() and torch.backends.mkldnn.is_available() and all(map(is_exact, SHAPES))
    finally:
        use_onednn(before)


def is_exact(shape: tuple[int, int, int]) -> bool:
    """Whether products of matrices, and of batches of them, are computed in fp32."""
    x, w = _matrices(shape)
    expected = x.double() @ w.double()
    error = max((found - expected).abs().max() for found in (x @ w, torch.bmm(x[None], w[None])[0]))
    return bool(error < EXACT * expected.abs().max())


def _matrices(shape: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    rows, inputs, outputs = shape
    random = torch.Generator().manual_seed(0)
    return torch.randn(rows, inputs, generator=random), torch.randn(outputs, inputs, generator=random).T
