"""The order in which a member sees its training examples, with length bucketing within that order."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lorae import seeds
from lorae.augmentation import Augment, Augmented
from lorae.media import Image
from lorae.tasks.encoding import Row

WINDOW = 8  # batches within which examples are sorted by length


class DataOrder:
    """Batches of one member: a function only of its order stream, the seed and the examples' lengths.

    An epoch is a permutation from the member's stream. Each window of 8 batches is sorted by length and cut
    into batches. The batches of a window are visited in an order of lengths that depends only on the seed
    (`pace`), so that the members of a stack have batches of similar length at the same step and little
    padding, without depending on each other. The epoch's last batch holds the remaining examples.

    Args:
        key: the member's order stream.
        seed: the trial's seed; names the stream of the order of lengths.
        lengths: tokens of each training example.
        batch_size: examples per step.
    """

    def __init__(self, key: seeds.Key, seed: int, lengths: np.ndarray, batch_size: int) -> None:
        self.key, self.seed, self.lengths, self.batch_size = key, seed, lengths, batch_size
        self.steps_per_epoch = -(-len(lengths) // batch_size)
        self._epoch = functools.lru_cache(maxsize=1)(self._batches_of)

    def batch(self, step: int) -> np.ndarray:
        """Indices of the examples of optimiser step `step` (from 0)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[position]

    def rows(
        self, train: Sequence[Row], step: int, part: Sequence[int], augment: Augment | None
    ) -> list[Row]:
        """Rows of a part of a step's batch. An image is changed by a stream of this order, the step and the
        example: members that share their order see the same image."""
        chosen = [train[n] for n in self.batch(step)[list(part)]]
        return [self._augmented(row, step, augment) for row in chosen] if augment else chosen

    def _augmented(self, row: Row, step: int, augment: Augment) -> Row:
        assert isinstance(row.media, Image), "only tasks of images have it"
        return replace(row, media=Augmented(row.media, augment, (*self.key, "augment", step, row.id)))

    def _batches_of(self, epoch: int) -> list[np.ndarray]:
        order = seeds.stream(*self.key, epoch).permutation(len(self.lengths))
        pace = seeds.stream(self.seed, "pace", epoch)
        size, full = self.batch_size, len(order) - len(order) % self.batch_size
        batches: list[np.ndarray] = []
        for start in range(0, full, WINDOW * size):
            window = order[start : min(start + WINDOW * size, full)]
            by_length = window[np.argsort(self.lengths[window], kind="stable")].reshape(-1, size)
            batches.extend(by_length[pace.permutation(len(by_length))])
        if full < len(order):
            batches.append(order[full:])
        return batches
