"""Terms and rules added to a member's training; any combination of them, at most one of a kind.

The protocol of Wang, Aitchison and Rudolph 2023, arXiv:2310.00035: KL to the pre-trained model, weight decay
on B only, early stopping, dropout on the adapters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class KL:
    """Adds beta times the KL divergence between the member's and the backbone's class distributions.

    Args:
        beta: weight, > 0, in nats of loss per nat of divergence.
        direction: "reverse" is KL(member || backbone), "forward" is KL(backbone || member).
    """

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


@dataclass(frozen=True)
class DecayB:
    """Decoupled weight decay on the zero-initialised factor only: B <- B - lr * strength * B - step.

    B = 0 is the backbone, so this pulls a member towards it without shrinking A, whose random directions make
    members differ. For VeRA the decayed factor is the vector b.

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


@dataclass(frozen=True)
class EarlyStopping:
    """Stops a member when its validation NLL has not improved for `patience` evaluations; its best step is
    kept.

    Args:
        patience: evaluations without improvement that are tolerated, >= 1.
        every: steps between evaluations; None = once per epoch.
    """

    patience: int = 2
    every: int | None = None

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"patience={self.patience}: must be >= 1; write EarlyStopping(patience=2)")
        if self.every is not None and self.every < 1:
            raise ValueError(f"every={self.every}: must be >= 1 step, or None for once per epoch")

    @property
    def label(self) -> str:
        return f"early-{self.patience}" + ("" if self.every is None else f"x{self.every}")


@dataclass(frozen=True)
class AdapterDropout:
    """Dropout on the input of each adapter branch during training, from the member's own stream.

    Args:
        p: probability of dropping an input, in (0, 1).
    """

    p: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.p < 1:
            raise ValueError(f"p={self.p}: must be in (0, 1); write AdapterDropout(p=0.1), or leave it out")

    @property
    def label(self) -> str:
        return f"dropout-{self.p:g}"


Regularizer = KL | DecayB | EarlyStopping | AdapterDropout
