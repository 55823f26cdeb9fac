"""The linearised Laplace approximation around LoRA members (Yang et al. 2023, arXiv:2308.13111)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lorae.draws.base import Fitted, Sizes
from lorae.untrusted import count, number

if TYPE_CHECKING:
    from lorae.draws.laplace.linearised import Linearised
    from lorae.methods import Method


@dataclass(frozen=True)
class Laplace(Fitted):
    """Linearised Laplace approximation around a trained LoRA member ("Laplace-LoRA"): the weights are
    Gaussian, with the curvature of the training NLL (generalised Gauss-Newton, Kronecker-factored) plus a
    prior as precision; the logits are drawn from the Gaussian that results from linearising them in the
    weights.

    The prior precision is one number for all layers of a member, and maximises the marginal likelihood of the
    training examples. A draw takes no further pass of the backbone: one backward pass per class gives the
    covariance of the logits. A classification head is not sampled.

    Both Kronecker factors are sums over tokens, as in the authors' code, which treats tokens as separate
    examples. The trace of the curvature exceeds the trace of the exact Gauss-Newton matrix by about the
    number of tokens of a row (on a tiny Llama 5 times for 5 tokens, 9 for 10, 35 for 60), so variances are
    too small by that factor where the data, not the prior, determine them; the prior precision is fitted with
    the same matrix.

    Args:
        samples: number of draws, >= 1.
        rank: number of eigenvalues to keep of the factors that are as wide as a layer, >= 1.
    Source: Yang et al. 2023, arXiv:2308.13111.
    """

    kind = "laplace"
    record: ClassVar[Mapping[str, Any]] = {"prior_precision": number, "passes": count}
    note: ClassVar[str | None] = (
        "Laplace treats tokens as examples of their own, as its authors' code does: its curvature's trace "
        "exceeds the exact Gauss-Newton matrix's about as many times as a prompt has tokens."
    )

    samples: int = 100
    rank: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise ValueError(f"rank={self.rank}: must be >= 1; write Laplace(rank=10)")

    @property
    def label(self) -> str:
        return f"{self.kind}-{self.samples}x{self.rank}"

    @property
    def title(self) -> str:
        return f"Laplace x{self.samples}, rank {self.rank}"

    @classmethod
    def from_label(cls, size: str) -> Laplace:
        samples, rank = size.split("x")
        return cls(int(samples), int(rank))

    @property
    def columns(self) -> int:
        """Columns of the random matrix whose products give the kept eigenvalues."""
        return 4 * self.rank

    def num_passes(self, num_classes: int) -> int:
        return 1 + num_classes

    def passes_to_fit(self, num_classes: int) -> int:
        return self.num_passes(num_classes)

    def fitted_at_once(self, rows: int, num_classes: int) -> int:
        """Fewer rows, as the graph is kept for the Jacobian of every class."""
        return max(1, rows // num_classes)

    def fitting_bytes(
        self, method: Method, layers: Mapping[str, tuple[int, int]], num_members: int, rows: int, sizes: Sizes
    ) -> int:
        """The members' products with a random matrix, and the matrix, in fp64; the inputs of the adapted
        layers, in fp32, their outputs and output gradients; and the Jacobians of the classes."""
        rows, shapes = num_members * self.fitted_at_once(rows, sizes.classes), layers.values()
        curvature = 2 * 8 * self.columns * sum(sum(shape) for shape in shapes)
        of_token = sum(4 * (d_in + method.rank) + 2 * sizes.number * d_out for d_in, d_out in shapes)
        jacobians = 4 * sizes.classes * sum(method.num_parameters(*shape) for shape in shapes)
        return num_members * curvature + rows * (sizes.tokens * of_token + jacobians)

    def sampler(self) -> type[Linearised]:
        from lorae.draws.laplace.linearised import Linearised

        return Linearised
