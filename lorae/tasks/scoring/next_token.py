"""Base of `Letters` and `LabelWords`: a class logit is the logit of the first token of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lorae.tasks.encoding import Asked, Row
from lorae.tasks.scoring.base import Scoring

if TYPE_CHECKING:
    import torch

    from lorae.backbone.loading import Backbone
    from lorae.engine.batches import Batch


class NextToken(Scoring):
    """One row per example; class logits are read at the prompt's end, where the next token is predicted."""

    def row(self, asked: Asked) -> Row:
        first = tuple(answer[0] for answer in asked.answers)
        if len(set(first)) < len(first):
            raise ValueError(
                f"{asked.where}: two answers of {asked.prompt.answers} start with the same "
                "token of this tokenizer; score by OptionLikelihood() or choose other label words"
            )
        return replace(asked.shortened(), answer_ids=first)

    def collate(
        self, rows: Sequence[Row], num_classes: int, backbone: Backbone, num_members: int, share: bool
    ) -> Batch:
        from lorae.engine.batches import packed

        batch = packed(rows, num_classes, backbone, num_members, share)
        return replace(batch, answer_ids=batch.by_class([r.answer_ids for r in rows], "int64", 0))

    def class_logits(self, backbone: Backbone, batch: Batch) -> torch.Tensor:
        from lorae.engine.batches import features

        assert batch.answer_ids is not None
        read, inserted = features(backbone, batch), backbone.inserted
        if inserted and inserted.has_head:
            return batch.masked(backbone.capped(inserted.head_logits(read)))
        return batch.masked(backbone.answer_logits(read, batch.answer_ids))
