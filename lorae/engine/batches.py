"""Rows of members as one batch, and the class logits of a batch.

The scoring decides how its rows are laid out and read (`lorae.tasks.scoring`): one row per example of packed
texts, or an encoder's inputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lorae.backbone import encoders
from lorae.backbone.devices import to_device
from lorae.backbone.encoders import EncoderBatch
from lorae.backbone.loading import Backbone
from lorae.backbone.packing import Packing
from lorae.regularizers import Regularizer
from lorae.tasks.encoding import Row
from lorae.tasks.scoring import Scoring


@dataclass(frozen=True)
class Batch:
    """Rows of M members on the device, each member's in one packed row of S tokens, members first;
    `class_logits` turns it into logits (rows, C)."""

    scoring: Scoring
    input_ids: torch.Tensor  # (M, S)
    position_ids: torch.Tensor  # (M, S)
    packing: Packing
    class_mask: torch.Tensor  # (rows, C), True where the class exists
    answer_ids: torch.Tensor | None = None  # (rows, C)
    scored: tuple[torch.Tensor, ...] = ()  # K predictions: place in the packed (M * S), token, row, class
    norms: torch.Tensor | None = None  # (rows, C)

    @property
    def places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Row of each token, and its index in that row."""
        return self.packing.rows, self.packing.places

    def by_class(self, values: Sequence[Sequence[Any]], dtype: str, fill: Any) -> torch.Tensor:
        """Values of each row's classes (rows, C); `fill` where a row lacks the class."""
        padded = np.full(self.class_mask.shape, fill, dtype)
        for n, of_row in enumerate(values):
            padded[n, : len(of_row)] = of_row
        return to_device(padded, self.class_mask.device)

    def masked(self, logits: torch.Tensor) -> torch.Tensor:
        """Class logits (rows, C), -inf where a row lacks the class."""
        return logits.masked_fill(~self.class_mask, float("-inf"))


def collate(
    rows: Sequence[Row], num_classes: int, backbone: Backbone, num_members: int = 1, share: bool = True
) -> Batch | EncoderBatch:
    """Batch of rows, members first with equally many rows each, on the backbone's device; the common
    beginning of a member's rows is stored once, unless `share` is false."""
    return rows[0].scoring.collate(rows, num_classes, backbone, num_members, share)


def packed(rows: Sequence[Row], num_classes: int, backbone: Backbone, num_members: int, share: bool) -> Batch:
    """The rows' tokens as one batch; arguments as for `collate`."""
    noise = backbone.inserted and backbone.inserted.noise
    noisy = noise is not None and noise.of_rows is not None  # each row then has its own beginning
    shared = common_beginning(rows) if share and not noisy else 0
    packing = Packing.of([len(r.tokens) for r in rows], num_members, backbone.device, shared)
    exists = np.arange(num_classes) < np.array([[r.num_classes] for r in rows])
    return Batch(
        scoring=rows[0].scoring,
        input_ids=packing.pack([t for r in rows for t in r.tokens]),
        position_ids=packing.places,
        packing=packing,
        class_mask=to_device(exists, backbone.device),
    )


def common_beginning(rows: Sequence[Row]) -> int:
    """Number of tokens that all rows' prompts begin with, see `beginning`."""
    return beginning([r.tokens[: r.segments.count(-1)] if r.segments else r.tokens for r in rows])


def beginning(prompts: Sequence[tuple[int, ...]]) -> int:
    """Number of tokens that all prompts begin with, but never a whole prompt: each keeps its last token."""
    low, high = min(prompts), max(prompts)  # a prefix common to these two is common to all
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(low, high))
    return min(len(list(same)), min(map(len, prompts)) - 1)


def stack_logits(backbone: Backbone, rows: Sequence[Row], num_classes: int) -> torch.Tensor:
    """Class logits (rows, C) of the inserted stack, each member's rows together: one forward pass for all, or
    one per member if members have all weights of their own; only the heads if rows have features."""
    inserted = backbone.inserted
    if inserted and rows[0].features is not None:
        features_ND = to_device(np.array([row.features for row in rows]), backbone.device)
        return backbone.capped(inserted.head_logits(features_ND))
    if inserted is None or inserted.method.regime != "alone":
        return class_logits(backbone, collate(rows, num_classes, backbone, backbone.num_members))
    size = len(rows) // inserted.num_members
    parts = [collate(rows[n : n + size], num_classes, backbone) for n in range(0, len(rows), size)]
    return inserted.one_by_one(lambda batch: class_logits(backbone, batch), parts)


def stack_losses(
    backbone: Backbone,
    rows: Sequence[Row],
    num_classes: int,
    regularizers: Sequence[Regularizer] = (),
    reference: torch.Tensor | None = None,
) -> torch.Tensor:
    """`Scoring.losses` (rows, 3) of the inserted stack; rows and passes as for `stack_logits`."""
    inserted, scoring = backbone.inserted, rows[0].scoring
    labels = to_device(scoring.gold(rows), backbone.device)
    if inserted and rows[0].features is not None:
        outputs = stack_logits(backbone, rows, num_classes)
        return scoring.output_losses(outputs, labels, regularizers, reference)

    def losses(part: slice, num_members: int = 1) -> torch.Tensor:
        batch = collate(rows[part], num_classes, backbone, num_members)
        _locate(backbone, batch)
        of_part = None if reference is None else reference[part]
        return scoring.losses(backbone, batch, labels[part], regularizers, of_part)

    if inserted is None or inserted.method.regime != "alone":
        return losses(slice(None), backbone.num_members)
    size = len(rows) // inserted.num_members
    return inserted.one_by_one(losses, [slice(n, n + size) for n in range(0, len(rows), size)])


def features(backbone: Backbone, batch: Batch | EncoderBatch) -> torch.Tensor:
    """Features (rows, D) from which class logits are read: the hidden state of each row's last token, or an
    encoder's pooled features."""
    if isinstance(batch, EncoderBatch):
        return encoders.features(backbone, batch)
    return hidden(backbone, batch)[batch.packing.ends]


def hidden(backbone: Backbone, batch: Batch) -> torch.Tensor:
    """Last hidden states (M * S, D) of the packed tokens."""
    return backbone.hidden(batch.input_ids, batch.position_ids, batch.packing).flatten(0, 1)


def class_logits(backbone: Backbone, batch: Batch | EncoderBatch) -> torch.Tensor:
    """Class logits (rows, C) in fp32; -inf for classes that a row lacks."""
    _locate(backbone, batch)
    return batch.scoring.class_logits(backbone, batch)


def _locate(backbone: Backbone, batch: Batch | EncoderBatch) -> None:
    """Set the row and place of the batch's tokens in the members' noise."""
    if backbone.inserted and backbone.inserted.noise:
        backbone.inserted.noise.locate(*batch.places)
