"""Which library multiplies fp32 matrices on a CPU: torch's default, MKL, or oneDNN, which is twice as fast
with AVX-512."""

from __future__ import annotations

import functools
from typing import Any

import torch

SHAPES = ((512, 576, 1536), (512, 1536, 576), (256, 576, 192))  # rows, inputs and outputs of products
SETTING: Any = getattr(torch.backends.mkldnn, "matmul", None)  # since torch 2.9
EXACT = 1e-5  # tolerance relative to the largest number: fp32 differs by 1e-6, bf16 by 1e-3


def use_onednn(wanted: bool) -> None:
    """Multiply fp32 matrices with oneDNN from now on, or with torch's default.

    torch uses oneDNN only if a product may be computed in bf16. oneDNN computes in bf16 only with AMX;
    `onednn_is_better` checks that it does not.
    """
    if SETTING is not None:
        SETTING.fp32_precision = "bf16" if wanted else "none"


def onednn_is_used() -> bool:
    """Whether oneDNN is currently used for fp32 matrices."""
    return SETTING is not None and SETTING.fp32_precision == "bf16"


@functools.cache
def onednn_is_better() -> bool:
    """Whether oneDNN is faster on this machine, and in fp32: AVX-512 without AMX, and exact products.

    A machine always gives the same answer, so that a resumed training ends with the same bytes.
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
    """Whether products of matrices and of batched matrices are computed in fp32."""
    x, w = _matrices(shape)
    expected = x.double() @ w.double()
    error = max((found - expected).abs().max() for found in (x @ w, torch.bmm(x[None], w[None])[0]))
    return bool(error < EXACT * expected.abs().max())


def _matrices(shape: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    rows, inputs, outputs = shape
    random = torch.Generator().manual_seed(0)
    return torch.randn(rows, inputs, generator=random), torch.randn(outputs, inputs, generator=random).T
