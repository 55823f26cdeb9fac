"""Class logits of all members of a stack on a set of rows, in length-sorted batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lorae.backbones import Backbone
from lorae.encoding import Row, class_logits, collate
from lorae.memory import PREDICT_TOKENS


@torch.no_grad()
def predict(backbone: Backbone, rows: Sequence[Row], batch_tokens: int = PREDICT_TOKENS) -> np.ndarray:
    """Logits (M, N, C) of the members whose adapters are in the backbone; of the backbone itself if there are
    none.

    Classes that a row does not have are -inf. Rows keep their order. Each rank predicts its share of a batch,
    `batch_tokens` of it at once, and has all logits in the end.
    """
    ranks, num_members = backbone.ranks, backbone.num_members
    num_classes = max(r.num_classes for r in rows)
    logits_MNC = torch.zeros(num_members, len(rows), num_classes, device=backbone.device)
    most = max(1, ranks.size * batch_tokens // num_members)
    for indices in length_batches([len(r.tokens) for r in rows], most):
        for part, real in ranks.parts(len(indices)):
            batch = collate([rows[n] for n in indices[part]] * num_members, num_classes, backbone)
            logits = class_logits(backbone, batch).view(num_members, len(part), num_classes)
            logits_MNC[:, indices[part[:real]]] = logits[:, :real]
    ranks.sum_([logits_MNC])
    return logits_MNC.cpu().numpy()


def length_batches(lengths: Sequence[int], batch_tokens: int) -> list[np.ndarray]:
    """Indices sorted by length and cut so that no batch has more than `batch_tokens`."""
    longest_first = np.argsort(lengths, kind="stable")[::-1]  # memory peaks at once, not at the end
    batches: list[list[int]] = []
    room = 0
    for n in longest_first:
        if not batches or lengths[n] > room:
            batches.append([])
            room = batch_tokens
        room -= lengths[n]
        batches[-1].append(int(n))
    return [np.array(b) for b in batches]
