"""What every regulariser declares, and the defaults."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lorae import seeds

if TYPE_CHECKING:
    import torch

    from lorae.noise import Noise
    from lorae.trial import Trial


class Regularizer:
    """A term or rule added to a member's training.

    A regulariser is a frozen dataclass in its own file, listed in `lorae.regularizers.AnyRegularizer`. Its
    module needs only numpy; a hook that uses torch imports it itself.

    Attributes:
        streams: each member's own random streams for the regulariser: name in a member's record -> name of
            the stream.
        is_noise: it makes the input of the trained parts random, or different from draw to draw.
        needs_reference: it needs the backbone's own class logits on the training examples.
        keeps_best: the parameters of a member's best step are kept beside the current ones.
    """

    streams: ClassVar[Mapping[str, str]] = {}
    is_noise: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False
    keeps_best: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """Name in tables, with its setting."""
        raise NotImplementedError  # abstract: every regulariser defines it

    @property
    def num_draws(self) -> int | None:
        """Number of predictions that a member trained with it makes for each example; None = one."""
        return None

    @property
    def decay_zero_factor(self) -> float:
        """Decoupled weight decay on the zero-initialised factor."""
        return 0.0

    def check(self, trial: Trial) -> None:
        """Refuse a trial in which the regulariser makes no sense; ValueError says what to write."""

    def check_widths(self, widths: Collection[int]) -> None:
        """Refuse input widths of trained parts that it cannot handle; ValueError says what to write."""

    def teacher(self, trial: Trial) -> Trial | None:
        """The ensemble whose stored predictions on the training examples are the `reference` of `penalty`;
        None = the regulariser learns from no other members.

        Args:
            trial: the trial that has the regulariser.
        """
        return None

    def taught(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """What a sweep that tunes sets in a trial, by dotted path, when its teacher's values are chosen.

        Args:
            chosen: the teacher's tuned values by dotted path.
        Raises:
            ValueError: a tuned value that the trial cannot name.
        """
        return {}

    def class_weights(self, labels: Sequence[int], num_classes: int) -> np.ndarray | None:
        """Weight (C,) of the examples of each class in the loss; None = 1.

        Args:
            labels: labels of the training examples.
        """
        return None

    def penalty(self, logits: torch.Tensor, reference: torch.Tensor | None) -> torch.Tensor | None:
        """Term added to the loss of each row (rows,), in nats; None = nothing.

        Args:
            logits: (rows, C) class logits of the members.
            reference: (rows, C) class logits of the backbone, if any regulariser `needs_reference`, or log-
                probabilities of the `teacher`.
        """
        return None

    def make_noise(self, streams: Sequence[Mapping[str, seeds.Key]]) -> Noise | None:
        """Noise on the inputs of the members' trained parts.

        Args:
            streams: each member's named random streams.
        """
        return None
