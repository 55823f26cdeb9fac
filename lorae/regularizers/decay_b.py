"""Weight decay on B alone, as in Wang, Aitchison and Rudolph 2023, arXiv:2310.00035."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorae.regularizers.base import Regularizer

if TYPE_CHECKING:
    from lorae.trial import Trial


@dataclass(frozen=True)
class DecayB(Regularizer):
    """Decoupled weight decay on the zero-initialised factor only: B <- B - lr * strength * B - step.

    B = 0 is the backbone, so the decay pulls a member towards the backbone without shrinking A, whose random
    directions make members differ. For VeRA the decayed factor is the vector b.

    Args:
        strength: > 0; the literature sweeps 1 to 1000. lr * strength must stay below 1.
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        if not self.strength > 0:
            raise ValueError(
                f"strength={self.strength}: must be > 0; write DecayB(strength=1.0), or leave DecayB out"
            )

    @property
    def label(self) -> str:
        return f"decay_b-{self.strength:g}"

    @property
    def decay_zero_factor(self) -> float:
        return self.strength

    def check(self, trial: Trial) -> None:
        if not trial.method.zero_factor:
            raise ValueError(
                f"DecayB with {type(trial.method).__name__}: it has no zero-initialised factor; write "
                "AdamW(weight_decay=...), or Lora() or Vera()"
            )
        if self.strength * trial.optimizer.lr >= 1:
            raise ValueError(
                f"DecayB(strength={self.strength:g}) with lr={trial.optimizer.lr:g}: "
                "lr * strength must be < 1, or B oscillates; write "
                f"DecayB(strength={0.1 / trial.optimizer.lr:g}) or less"
            )
