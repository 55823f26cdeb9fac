"""Class weights that favour rare classes (Cui et al. 2019, arXiv:1901.05555)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lorae.regularizers.base import Regularizer

if TYPE_CHECKING:
    from lorae.trial import Trial


@dataclass(frozen=True)
class ClassWeights(Regularizer):
    """Weights a training example's loss by how rare its class is: w_c = (1 - beta) / (1 - beta^n_c) for n_c
    training examples, times a constant that makes the mean weight 1.

    Args:
        beta: in [0, 1); 0 weights all classes equally, near 1 the weight is inverse to n_c.
    Source: Cui et al. 2019, arXiv:1901.05555, equation 4.
    """

    beta: float = 0.9991

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta={self.beta}: must be in [0, 1); write ClassWeights(beta=0.9991)")

    @property
    def label(self) -> str:
        return f"class_weights-{self.beta:g}"

    def check(self, trial: Trial) -> None:
        if (answer := trial.task.scoring.answer) != "class":
            raise ValueError(
                f"ClassWeights with {trial.task.scoring}: a {answer} has no class that could be rare; leave "
                "them out"
            )

    def class_weights(self, labels: Sequence[int], num_classes: int) -> np.ndarray:
        """Weight (C,) of each class, from the training examples' labels; 0 for a class without examples."""
        counts_C = np.bincount(labels, minlength=num_classes)
        found = counts_C > 0
        weight_C = np.where(found, (1 - self.beta) / (1 - self.beta ** np.maximum(counts_C, 1)), 0.0)
        return weight_C * num_classes / weight_C.sum()
