"""KL divergence to the pre-trained model, as in Wang, Aitchison and Rudolph 2023, arXiv:2310.00035."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from lorae.regularizers.base import Regularizer

if TYPE_CHECKING:
    import torch

    from lorae.trial import Trial


@dataclass(frozen=True)
class KL(Regularizer):
    """Adds beta times the KL divergence between the member's and the backbone's class distributions.

    Args:
        beta: weight, > 0, in nats of loss per nat of divergence.
        direction: "reverse" is KL(member || backbone), "forward" is KL(backbone || member).
    """

    needs_reference: ClassVar[bool] = True

    beta: float = 0.1
    direction: Literal["forward", "reverse"] = "reverse"

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta={self.beta}: must be > 0; write KL(beta=0.1), or leave KL out")
        if self.direction not in ("forward", "reverse"):
            raise ValueError(f'direction={self.direction!r}: must be "forward" or "reverse"')

    @property
    def label(self) -> str:
        return f"kl-{self.beta:g}" + ("" if self.direction == "reverse" else "-forward")

    def check(self, trial: Trial) -> None:
        if not trial.task.scoring.backbone_has_classes:
            raise ValueError(
                f"KL with {trial.task.scoring}: the backbone has no class distribution to stay close to, as "
                "every member has a head of its own; leave KL out, or score by LabelWords() on a causal LM"
            )

    def penalty(self, logits: torch.Tensor, reference: torch.Tensor | None) -> torch.Tensor:
        assert reference is not None
        return self.beta * kl_divergence(logits, reference, self.direction)


def kl_divergence(logits: torch.Tensor, reference: torch.Tensor, direction: str) -> torch.Tensor:
    """KL (rows,) between class distributions: "reverse" is KL(member || backbone), "forward" KL(backbone ||
    member).

    Classes that a row lacks are -inf in both and contribute nothing.
    """
    log_p, log_q = logits.log_softmax(1), reference.log_softmax(1)
    if direction == "forward":
        log_p, log_q = log_q, log_p
    exists = logits.isfinite()
    log_p, log_q = log_p.masked_fill(~exists, 0.0), log_q.masked_fill(~exists, 0.0)
    return (log_p.exp() * exists * (log_p - log_q)).sum(1)
