"""MC dropout (Gal and Ghahramani 2016, arXiv:1506.02142)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorae.draws.base import Draws

if TYPE_CHECKING:
    from lorae.methods import Method
    from lorae.regularizers import Regularizer
    from lorae.trial import Trial


@dataclass(frozen=True)
class MCDropout(Draws):
    """Predicts several times with dropout active; the passes are draws of the member's predictions.

    Needs `AdapterDropout` in the recipe. The same trained member also predicts without dropout.

    Args:
        passes: number of draws, >= 1.
    Source: Gal and Ghahramani 2016, arXiv:1506.02142.
    """

    kind = "mc"

    passes: int = 10

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise ValueError(f"passes={self.passes}: must be >= 1; write MCDropout(passes=10)")

    @property
    def title(self) -> str:
        return f"MC dropout x{self.passes}"

    @property
    def num_draws(self) -> int:
        return self.passes

    def check(self, trial: Trial) -> None:
        if self.unfit(trial.method, trial.regularizers):
            raise ValueError(
                f"draws={self} without AdapterDropout: its passes would be equal; write "
                "regularizers=(AdapterDropout(p=0.1),)"
            )

    def unfit(self, method: Method, regularizers: Iterable[Regularizer]) -> str | None:
        random = any(r.is_noise and not r.num_draws for r in regularizers)
        return None if random else "were trained without AdapterDropout"
