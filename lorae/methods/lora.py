"""LoRA: a low-rank update of each adapted layer (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from lorae import seeds
from lorae.identity import check_kind
from lorae.methods.base import (
    Adapter,
    Factors,
    Linears,
    check_not_negative,
    check_positive,
    check_rank,
)
from lorae.methods.inits import Init, Kaiming

if TYPE_CHECKING:
    import torch

    from lorae.engine.adapters import Stacked
    from lorae.trial import Trial


@dataclass(frozen=True)
class Lora(Adapter):
    """h = W0 x + (alpha / rank) B A x, with A (rank x d_in) random and B (d_out x rank) zero.

    Args:
        rank: >= 1 and at most the smaller side of every adapted layer.
        alpha: scaling numerator, > 0; None = h = W0 x + B A x, as in LoRA-Ensemble (arXiv:2405.14438).
        targets: names of the adapted linear layers, matched against the last part(s) of the module path; "q",
            "k", "v" and "o" are the projections of attention, whatever an architecture calls them.
        init: distribution of A.
        b_std: standard deviation of a random B; 0 keeps B = 0, so that every member starts as the backbone.
    """

    label = "lora"
    names = ("single LoRA", "LoRA ensemble")
    factors: ClassVar[tuple[str, ...]] = ("A", "B")
    zero_factor: ClassVar[str | None] = "B"
    is_low_rank: ClassVar[bool] = True
    has_update: ClassVar[bool] = True
    peft_type = "LORA"
    peft_names: ClassVar[Mapping[str, str]] = {"A": "lora_A.weight", "B": "lora_B.weight"}

    rank: int = 8
    alpha: float | None = 16.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    init: Init = Kaiming()
    b_std: float = 0.0

    def __post_init__(self) -> None:
        check_rank(self)
        super().__post_init__()
        if self.alpha is not None:
            check_positive(self, "alpha")
        check_not_negative(self, "b_std")

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @property
    def effective_alpha(self) -> float:
        return self.scale * self.rank

    @property
    def init_label(self) -> str:
        return self.init.label + (f"+b-{self.b_std:g}" if self.b_std else "")

    def check(self, trial: Trial) -> None:
        check_kind("method.init", self.init, Init)

    def times(self, factor: int) -> Self:
        """`factor` times as many parameters: `factor` times the rank, with equal scaling."""
        return replace(self, rank=factor * self.rank, alpha=self.alpha and factor * self.alpha)

    def adapted_layers(self, linears: Linears, backbone: str) -> dict[str, tuple[int, int]]:
        layers = super().adapted_layers(linears, backbone)
        smallest = min(min(shape) for shape in layers.values())
        if self.rank > smallest:
            raise ValueError(
                f"rank={self.rank} exceeds the smaller side ({smallest}) of an adapted layer of {backbone}; "
                f"write Lora(rank={min(8, smallest)})"
            )
        return layers

    def num_parameters(self, d_in: int, d_out: int) -> int:
        return self.rank * (d_in + d_out)

    def draw(self, layer: str, d_in: int, d_out: int, key: seeds.Key) -> tuple[np.ndarray, ...]:
        """A (rank, d_in) and B (d_out, rank)."""
        a = self.init.draw(seeds.stream(*key, layer, "A"), self.rank, d_in)
        b = seeds.stream(*key, layer, "B").normal(0.0, self.b_std, (d_out, self.rank)) if self.b_std else None
        return a, np.zeros((d_out, self.rank)) if b is None else b

    def forward(self, layer: Stacked, x: torch.Tensor) -> torch.Tensor:
        _, B_MER, *_ = layer.factors()
        y = layer.base(x)
        h_MSR, B_MRE = self.lowered(layer, layer.read(x)), B_MER.to(x.dtype).transpose(1, 2)
        return y.view(len(B_MER), -1, y.shape[-1]).baddbmm(h_MSR, B_MRE, alpha=self.scale).view_as(y)

    def lowered(self, layer: Stacked, x: torch.Tensor) -> torch.Tensor:
        """A_m x of each member: (M, S, D) -> (M, S, R)."""
        A_MRD, *_ = layer.factors()
        return x.bmm(A_MRD.to(x.dtype).transpose(1, 2))

    def branch_flops(self, d_in: int, d_out: int) -> int:
        return 2 * self.rank * (d_in + d_out)

    def branch_backward_flops(self, d_in: int, d_out: int, reads: bool) -> int:
        forward = self.branch_flops(d_in, d_out)
        return 2 * forward - (0 if reads else forward - 2 * self.rank * d_out)

    def peft_settings(self) -> dict[str, Any]:
        return {"lora_alpha": self.alpha or self.rank, "lora_dropout": 0.0}

    @classmethod
    def update_reader(
        cls,
        settings: Mapping[str, Any],
        tensors: Mapping[str, np.ndarray],
        parameters: Mapping[str, np.ndarray],
        d_in: Callable[[str], int] | None,
    ) -> Callable[[str], Factors]:
        scale = settings["lora_alpha"] / settings["r"]
        return lambda layer: (scale * parameters[f"{layer}.B"], parameters[f"{layer}.A"])
