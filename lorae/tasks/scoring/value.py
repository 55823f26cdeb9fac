"""Scoring of numbers by a trained head: a mean, or a mean and a variance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lorae.tasks.encoding import Row
from lorae.tasks.example import Example
from lorae.tasks.scoring.base import penalties
from lorae.tasks.scoring.head import Head

if TYPE_CHECKING:
    import numpy as np
    import torch

    from lorae.regularizers import Regularizer
    from lorae.tasks.base import Task
    from lorae.trial import Trial


@dataclass(frozen=True)
class Value(Head):
    """Members predict a number with a trained head on the encoder's pooled features, and an ensemble is the
    mixture of their Gaussians.

    An example has a `value` and one option, which names what is measured ("similarity"). Stored are each
    member's outputs, so that every ensemble is computed from them.

    Args:
        pool: as of `Head`.
        variance: the head has a second output, the logarithm of a variance, and members are trained by the
            Gaussian NLL (Nix and Weigend 1994); False = a mean alone, by the squared error, which then stands
            wherever an NLL does in training and tuning.
    """

    variance: bool = False

    num_options = (1, 1)
    answer = "value"

    @property
    def label(self) -> str:
        return super().label.replace("head", "value-variance" if self.variance else "value")

    @property
    def num_outputs(self) -> int:
        return 2 if self.variance else 1

    def check_trial(self, trial: Trial) -> None:
        if trial.combine == "logits":
            raise ValueError(
                f'combine="logits" with {self}: an ensemble of numbers is a mixture; write combine="probs"'
            )
        if trial.draws and trial.draws.reads_classes:
            raise ValueError(f"draws={trial.draws} with {self}: they are fitted to classes; leave them out")

    def check_task(self, task: Task) -> None:
        if task.option_seed is not None:
            raise ValueError(f"option_seed={task.option_seed}: a number has no options; leave it out")

    def check_alike(self, example: Example, first: Example) -> None:
        if example.options != first.options:
            raise ValueError(f"it measures {example.options}, the first row {first.options}; write one name")

    def encode(
        self,
        tokenizer: Any,
        task: Task,
        examples: Sequence[Example],
        max_tokens: int,
        classes: tuple[str, ...] | None,
        context: str,
    ) -> list[Row]:
        rows = super().encode(tokenizer, task, examples, max_tokens, classes, context)
        outputs = tuple(range(self.num_outputs))
        known = [row.label >= 0 and e.value is not None for row, e in zip(rows, examples)]
        return [
            replace(row, num_classes=len(outputs), answer_ids=outputs, value=e.value if k else math.nan)
            for row, e, k in zip(rows, examples, known)
        ]

    def gold(self, rows: Sequence[Row]) -> np.ndarray:
        import numpy as np

        return np.array([row.value for row in rows], np.float64)

    def output_losses(
        self,
        outputs: torch.Tensor,
        labels: torch.Tensor,
        regularizers: Sequence[Regularizer],
        reference: torch.Tensor | None,
    ) -> torch.Tensor:
        """Squared error, or Gaussian NLL in nats, with the penalties; the last column is NaN."""
        import torch

        loss = (labels.to(outputs.dtype) - outputs[:, 0]) ** 2
        if self.variance:
            log_variance = outputs[:, 1]
            loss = 0.5 * (math.log(2 * math.pi) + log_variance + loss * torch.exp(-log_variance))
        added = penalties(outputs, regularizers, reference)
        return torch.stack((loss, added, torch.full_like(loss, torch.nan)), 1)
