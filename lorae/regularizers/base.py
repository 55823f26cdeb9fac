"""What every regulariser says of itself; what it leaves out, it has from here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lorae import seeds

if TYPE_CHECKING:
    import torch

    from lorae.noise import Noise
    from lorae.trial import Trial


class Regularizer:
    """A term or rule added to a member's training.

    A regulariser is a frozen dataclass with a file of its own and a place in
    `lorae.regularizers.AnyRegularizer`. Its module needs numpy only; a hook that gets tensors imports torch
    itself, if it needs it.

    Attributes:
        streams: random streams that members have of their own for it: name in a member's record -> name of
            the stream.
        is_noise: it makes what the trained parts read random, or different from draw to draw.
        needs_reference: it needs the backbone's own class logits on the training examples.
        keeps_best: the parameters of a member's best step are kept beside the current ones.
    """

    streams: ClassVar[Mapping[str, str]] = {}
    is_noise: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False
    keeps_best: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """Its name in tables, with its setting."""
        raise NotImplementedError  # abstract: every regulariser defines it

    @property
    def num_draws(self) -> int | None:
        """Predictions that a member trained with it makes of each example; None = one."""
        return None

    @property
    def decay_zero_factor(self) -> float:
        """Decoupled weight decay on the zero-initialised factor."""
        return 0.0

    def check(self, trial: Trial) -> None:
        """Refuse a trial that it makes no sense in; ValueError says what to write."""

    def check_widths(self, widths: Collection[int]) -> None:
        """Refuse widths of what trained parts read that it cannot work on; ValueError says what to write."""

    def class_weights(self, labels: Sequence[int], num_classes: int) -> np.ndarray | None:
        """Weight (C,) of the examples of each class in the loss; None = 1.

        Args:
            labels: of the training examples.
        """
        return None

    def penalty(self, logits: torch.Tensor, reference: torch.Tensor | None) -> torch.Tensor | None:
        """What is added to the loss of each row (rows,), in nats; None = nothing.

        Args:
            logits: (rows, C) of the members' rows.
            reference: (rows, C) of the backbone, if some regulariser `needs_reference`.
        """
        return None

    def make_noise(self, streams: Sequence[Mapping[str, seeds.Key]]) -> Noise | None:
        """Noise on what the members' trained parts read.

        Args:
            streams: each member's named random streams.
        """
        return None
