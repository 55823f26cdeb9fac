"""VeRA: two trained vectors for each adapted layer around frozen random matrices (Kopiczko et al. 2023,
arXiv:2310.11454)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from lorae import seeds
from lorae.methods.base import Adapter, Factors, Linears, check_positive, check_rank

if TYPE_CHECKING:
    import torch

    from lorae.engine.adapters import Stacked

_SAME_WIDTH = {"q_proj", "k_proj", "v_proj", "query", "key", "value"}  # of an attention block


@dataclass(frozen=True)
class Vera(Adapter):
    """h = W0 x + Lb B Ld A x: A and B are random and frozen, and as a rule shared by all layers; vectors d, b
    are trained.

    Args:
        rank: rows of A; VeRA uses large ranks (256 to 1024), as only rank + d_out numbers per layer are
            trained.
        targets: as for `Lora`.
        d_init: initial value of d; b starts at zero.
        projection: "per_member" draws A and B from each member's init stream; "shared" gives all members
            the same, so that only their data order differs; "per_layer" draws them from each member's init
            stream for each layer, as the paper's ablation does. A member's files then hold no matrices, and
            PEFT, which knows shared ones only, cannot load them.
    """

    label = "vera"
    names = ("single VeRA", "VeRA ensemble")
    factors: ClassVar[tuple[str, ...]] = ("d", "b")
    zero_factor: ClassVar[str | None] = "b"
    has_update: ClassVar[bool] = True
    peft_type = "VERA"
    peft_names: ClassVar[Mapping[str, str]] = {"d": "vera_lambda_d", "b": "vera_lambda_b"}
    peft_frozen: ClassVar[tuple[str, ...]] = ("base_model.vera_A", "base_model.vera_B")

    rank: int = 256
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    d_init: float = 0.1
    projection: Literal["per_member", "shared", "per_layer"] = "per_member"

    def __post_init__(self) -> None:
        check_rank(self)
        super().__post_init__()
        check_positive(self, "d_init")
        if self.projection not in ("per_member", "shared", "per_layer"):
            raise ValueError(f'projection={self.projection!r}: must be "per_member", "shared" or "per_layer"')

    @property
    def starts_apart(self) -> bool:
        return self.projection != "shared"

    @property
    def is_peft(self) -> bool:
        return self.projection != "per_layer"

    @property
    def init_label(self) -> str:
        return f"d-{self.d_init:g}+{self.projection}"

    @property
    def width(self) -> int:
        """Rows of A, and length of d."""
        return self.rank

    def num_parameters(self, d_in: int, d_out: int) -> int:
        return self.width + d_out

    def draw(self, layer: str, d_in: int, d_out: int, key: seeds.Key) -> tuple[np.ndarray, ...]:
        """d (width,) and b (d_out,), equal for all members."""
        return np.full(self.width, self.d_init), np.zeros(d_out)

    def draw_frozen(self, layers: Linears, key: seeds.Key) -> tuple[np.ndarray, ...]:
        """A (width, largest d_in) and B (largest d_out, rank), Kaiming-uniform as in PEFT; layers use leading
        blocks. With "per_layer" A and B of each layer, of its own size, in the order of the layers."""
        if self.projection == "per_layer":
            drawn = (self._matrices(*shape, (*key, layer)) for layer, shape in layers.items())
            return tuple(itertools.chain.from_iterable(drawn))
        d_ins, d_outs = zip(*layers.values())
        key = ("vera-shared",) if self.projection == "shared" else key
        return self._matrices(max(d_ins), max(d_outs), key)

    def _matrices(self, d_in: int, d_out: int, key: seeds.Key) -> Factors:
        a_bound, b_bound = math.sqrt(6 / d_in), math.sqrt(6 / self.rank)
        a = seeds.stream(*key, "vera_A").uniform(-a_bound, a_bound, (self.width, d_in))
        b = seeds.stream(*key, "vera_B").uniform(-b_bound, b_bound, (d_out, self.rank))
        return a, b

    def forward(self, layer: Stacked, x: torch.Tensor) -> torch.Tensor:
        d_MW, b_ME = layer.factors()
        own = 2 * layer.number if self.projection == "per_layer" else 0
        A_MWD, B_MER = layer.frozen[own : own + 2]
        y = layer.base(x)
        A_MWD, B_MER = A_MWD[:, :, : x.shape[-1]], B_MER[:, : y.shape[-1]]
        h_MSW = layer.read(x).bmm(A_MWD.transpose(1, 2)) * d_MW.to(x.dtype)[:, None]
        branch_MSE = self.latent(layer, h_MSW).bmm(B_MER.transpose(1, 2)) * b_ME.to(x.dtype)[:, None]
        return y + branch_MSE.view_as(y)

    def latent(self, layer: Stacked, h: torch.Tensor) -> torch.Tensor:
        """Input of B from h = Ld A x: (M, S, W) -> (M, S, R)."""
        return h

    def frozen_bytes(self, layers: Linears, size: int) -> int:
        kept = sum if self.projection == "per_layer" else max
        d_ins, d_outs = zip(*layers.values())
        return size * (self.width * kept(d_ins) + self.rank * kept(d_outs))

    def kept_bytes(self, layers: Linears, size: int, noisy: bool) -> int:
        """The two products; not the input, as A is not trained."""
        return size * sum(self.width + d_out for _, d_out in layers.values())

    def branch_flops(self, d_in: int, d_out: int) -> int:
        return 2 * (self.width * d_in + self.rank * d_out)

    def branch_backward_flops(self, d_in: int, d_out: int, reads: bool) -> int:
        """Gradients of the products' inputs only, as A and B are not trained."""
        return 2 * (self.rank * d_out + self.width * d_in * reads)

    def peft_settings(self) -> dict[str, Any]:
        return {
            "projection_prng_key": 0,
            "save_projection": True,
            "d_initial": self.d_init,
            "vera_dropout": 0.0,
        }

    @classmethod
    def update_reader(
        cls,
        settings: Mapping[str, Any],
        tensors: Mapping[str, np.ndarray],
        parameters: Mapping[str, np.ndarray],
        d_in: Callable[[str], int] | None,
    ) -> Callable[[str], Factors]:
        """All layers share one A, which has the largest input width, and no layer stores its own width;
        without `d_in` every layer is assumed to have the largest width."""
        leaves = {name.rpartition(".")[0].rpartition(".")[2] for name in parameters}
        if d_in is None and len(leaves) > 1 and not leaves <= _SAME_WIDTH:
            raise ValueError(
                f"VeRA on {', '.join(sorted(leaves))} stores no layer's width; give the backbone's weights"
            )
        A_RD, B_ER = (tensors[name] for name in cls.peft_frozen)

        def factors(layer: str) -> Factors:
            d_R, b_E = parameters[f"{layer}.d"], parameters[f"{layer}.b"]
            width = A_RD.shape[1] if d_in is None else d_in(layer)
            return b_E[:, None] * B_ER[: len(b_E)], d_R[:, None] * A_RD[:, :width]

        return factors

    def drawn_update(
        self, parameters: Mapping[str, np.ndarray], layers: Linears, key: seeds.Key
    ) -> Callable[[str], Factors]:
        """Draws a layer's matrices when they are asked for; of PVeRA's, those of the mean."""

        def factors(layer: str) -> Factors:
            A_WD, B_ER = self._matrices(*layers[layer], (*key, layer))
            d_R, b_E = parameters[f"{layer}.d"][: self.rank], parameters[f"{layer}.b"]
            return b_E[:, None] * B_ER.astype(np.float32), d_R[:, None] * A_WD[: self.rank].astype(np.float32)

        return factors
