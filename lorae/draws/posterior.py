"""Samples from learned weight distributions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorae.draws.base import Sampled

if TYPE_CHECKING:
    from lorae.methods import Method
    from lorae.regularizers import Regularizer
    from lorae.trial import Trial


@dataclass(frozen=True)
class Posterior(Sampled):
    """Samples from the weight distribution that a Bayesian member (`Blob`, `Rank1BNN`) has learned. The same
    trained member also predicts with the mean.

    Args:
        samples: number of draws, >= 1.
    """

    kind = "posterior"

    @property
    def title(self) -> str:
        return f"x{self.samples}"

    def check(self, trial: Trial) -> None:
        if not trial.method.is_bayesian:
            raise ValueError(
                f"draws={self} with {trial.method}: no distribution of its weights is learned; write "
                "Blob() or Rank1BNN(), or draws=TFB() or Laplace() for samples around LoRA"
            )

    def unfit(self, method: Method, regularizers: Iterable[Regularizer]) -> str | None:
        return None if method.is_bayesian else "learned no distribution of weights"
