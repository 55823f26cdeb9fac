"""Scoring by the likelihood of an option's text.

A row packs the question and all its options: every option attends only to the question and to itself, and its
positions continue the question's, so the question is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from lorae.tasks.encoding import Asked, Row
from lorae.tasks.scoring.base import Scoring

if TYPE_CHECKING:
    import numpy as np
    import torch

    from lorae.backbone.loading import Backbone
    from lorae.engine.batches import Batch


@dataclass(frozen=True)
class OptionLikelihood(Scoring):
    """Score by option likelihood: a class logit is the log-probability of the option given the question.

    Args:
        norm: "sum" of the tokens' log-probabilities, or "chars", the sum over the number of characters.
    """

    norm: Literal["sum", "chars"] = "sum"

    scores_texts = True

    def __post_init__(self) -> None:
        if self.norm not in ("sum", "chars"):
            raise ValueError(
                f'norm={self.norm!r}: must be "sum" or "chars"; write OptionLikelihood(norm="sum")'
            )

    @property
    def label(self) -> str:
        return f"likelihood-{self.norm}"

    def row(self, asked: Asked) -> Row:
        longest = max(map(len, asked.answers))
        if longest >= asked.max_tokens:
            raise ValueError(
                f"{asked.row.id}: an option has {longest} tokens, max_tokens={asked.max_tokens}; raise "
                "Budget(max_tokens=...)"
            )
        row, chars = asked.shortened(longest), self.norm == "chars"
        tokens, segments = row.tokens, (-1,) * len(row.tokens)
        for k, answer in enumerate(asked.answers):
            tokens, segments = (*tokens, *answer), segments + (k,) * len(answer)
        norms = tuple(float(len(a.strip())) if chars else 1.0 for a in asked.prompt.answers)
        return replace(row, tokens=tokens, segments=segments, norms=norms)

    def collate(
        self, rows: Sequence[Row], num_classes: int, backbone: Backbone, num_members: int, share: bool
    ) -> Batch:
        import numpy as np

        from lorae.backbone.devices import to_device
        from lorae.engine.batches import packed

        batch = packed(rows, num_classes, backbone, num_members, share)
        packing, device = batch.packing, backbone.device
        positions, visible, entries = zip(*(_layout(r, packing.shape[1]) for r in rows))
        padded = np.stack([np.pad(p, (0, packing.shape[1] - len(p))) for p in positions])
        first = np.cumsum([0, *(len(r.tokens) for r in rows)])  # first token's index in packing.order
        scored = [
            (packing.order[first[n] + place], token, n, option)
            for n, of_row in enumerate(entries)
            for place, token, option in of_row
        ]
        return replace(
            batch,
            position_ids=packing.pack([p for of_row in positions for p in of_row]),
            packing=replace(
                packing, visible=to_device(np.stack(visible), device), positions=to_device(padded, device)
            ),
            scored=tuple(to_device(column, device) for column in zip(*scored)),
            norms=batch.by_class([r.norms for r in rows], "float32", 1.0),
        )

    def class_logits(self, backbone: Backbone, batch: Batch) -> torch.Tensor:
        import torch

        from lorae.engine.batches import hidden

        assert batch.norms is not None
        place, token, row, option = batch.scored
        log_probs_K = backbone.token_log_probs(hidden(backbone, batch)[place], token)
        sums = torch.zeros_like(batch.norms).index_put((row, option), log_probs_K, accumulate=True)
        return batch.masked(sums / batch.norms)


def _layout(row: Row, length: int) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int, int]]]:
    """Positions of a row's tokens, visibility (T, T), and scored entries (predicting place, token, class)."""
    import numpy as np

    segments = np.full(length, -2)
    segments[: len(row.segments)] = row.segments
    question = int((segments == -1).sum())
    positions = np.arange(len(row.tokens))
    for k in range(row.num_classes):
        where = np.flatnonzero(segments == k)
        positions[where] = question + np.arange(len(where))
    same = segments[:, None] == segments[None]
    visible = np.tril(same | (segments == -1)[None])
    entries = []
    for place in range(question, len(row.tokens)):
        starts_option = row.segments[place - 1] != row.segments[place]
        entries.append((question - 1 if starts_option else place - 1, row.tokens[place], row.segments[place]))
    return positions, visible, entries
