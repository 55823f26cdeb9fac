"""BatchEnsemble on frozen pre-trained layers (Wen et al. 2020, arXiv:2002.06715)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from lorae import seeds
from lorae.methods.base import Adapter, check_not_negative

if TYPE_CHECKING:
    import torch

    from lorae.engine.adapters import Stacked


@dataclass(frozen=True)
class BatchEnsemble(Adapter):
    """y = (W (x * r)) * s + bias: W and bias are the backbone's and frozen; the vectors r and s are trained.

    Wen et al. 2020, arXiv:2002.06715, equation 5, applied to pre-trained layers. r = s = 1 is the backbone;
    any other start perturbs it.

    Args:
        targets: as for `Lora`.
        init: "signs" draws r and s as random signs, "normal" from N(1, std^2).
        std: standard deviation of "normal"; 0 starts every member as the backbone.
    """

    label = "batchensemble"
    names = ("single BatchEnsemble member", "BatchEnsemble")
    factors: ClassVar[tuple[str, ...]] = ("r", "s")
    scales_inputs: ClassVar[bool] = True

    targets: tuple[str, ...] = ("q_proj", "v_proj")
    init: Literal["signs", "normal"] = "normal"
    std: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init not in ("signs", "normal"):
            raise ValueError(f'init={self.init!r}: must be "signs" or "normal"')
        check_not_negative(self, "std")

    @property
    def starts_apart(self) -> bool:
        return self.init == "signs" or self.std > 0

    @property
    def init_label(self) -> str:
        return "signs" if self.init == "signs" else f"normal-{self.std:g}"

    def num_parameters(self, d_in: int, d_out: int) -> int:
        return d_in + d_out

    def draw(self, layer: str, d_in: int, d_out: int, key: seeds.Key) -> tuple[np.ndarray, ...]:
        """r (d_in,) and s (d_out,)."""
        r, s = (self._vector(seeds.stream(*key, layer, f), d) for f, d in zip("rs", (d_in, d_out)))
        return r, s

    def _vector(self, rng: np.random.Generator, size: int) -> np.ndarray:
        return rng.choice((-1.0, 1.0), size) if self.init == "signs" else rng.normal(1.0, self.std, size)

    def forward(self, layer: Stacked, x: torch.Tensor) -> torch.Tensor:
        r_MD, s_ME = self.vectors(layer)
        y = layer.base((layer.read(x) * r_MD.to(x.dtype)[:, None]).view_as(x))
        y_MSE, s_M1E = y.view(len(s_ME), -1, y.shape[-1]), s_ME.to(x.dtype)[:, None]
        if (bias := layer.base.bias) is None:
            return (y_MSE * s_M1E).view_as(y)
        with layer.adapters.backbone.gathered([bias]):
            return ((y_MSE - bias) * s_M1E + bias).view_as(y)

    def vectors(self, layer: Stacked) -> tuple[torch.Tensor, torch.Tensor]:
        """The members' r (M, D) and s (M, E)."""
        r_MD, s_ME = layer.factors()
        return r_MD, s_ME

    def kept_beside(self, d_in: int, d_out: int) -> int:
        """The outputs that s multiplies."""
        return d_out
