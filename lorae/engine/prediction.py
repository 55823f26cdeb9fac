"""Class logits of all members of a stack on a set of rows, in length-sorted batches."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from lorae import metrics
from lorae.backbone.devices import to_device
from lorae.backbone.loading import Backbone
from lorae.draws import Draws
from lorae.engine.batches import collate, features, stack_logits
from lorae.planning.memory import PREDICT_TOKENS
from lorae.tasks.encoding import Row

OnRows = Callable[[Sequence[Row]], None]


@torch.no_grad()
def predict(
    backbone: Backbone,
    rows: Sequence[Row],
    batch_tokens: int | None = None,
    set_noise: Callable[[Sequence[str]], None] | None = None,
    on_rows: OnRows = lambda rows: None,
) -> np.ndarray:
    """Logits (M, N, C) of the members inserted into the backbone, or of the backbone itself if there are
    none. For texts, N counts the tokens of their references, see `Scoring.predicted_rows`.

    Classes that a row lacks are -inf. Rows keep their order. Each rank predicts its share of a batch,
    `batch_tokens` at once, and has all logits at the end.

    Args:
        batch_tokens: tokens of one forward pass, over all members; None = PREDICT_TOKENS.
        set_noise: called before each forward pass with the ids of its examples.
        on_rows: called after each forward pass with its rows.
    """
    num_members = backbone.num_members
    num_classes = max(r.num_classes for r in rows)
    logits_MNC = torch.zeros(num_members, len(rows), num_classes, device=backbone.device)
    for indices, real in _batches(backbone, rows, num_members, batch_tokens):
        part = [rows[n] for n in indices]
        if set_noise:
            set_noise([row.id for row in part])
        logits = stack_logits(backbone, part * num_members, num_classes)
        own = logits.view(num_members, len(part), num_classes)[:, :real]
        logits_MNC.index_copy_(1, to_device(indices[:real], backbone.device), own)
        on_rows(part[:real])
    backbone.ranks.sum_([logits_MNC])
    return rows[0].scoring.predictions(logits_MNC.cpu().numpy(), rows)


def labels(rows: Sequence[Row]) -> np.ndarray:
    """Labels (N,) of the rows' predictions: classes, or numbers."""
    scoring = rows[0].scoring
    return scoring.gold(scoring.predicted_rows(rows))


def predict_draws(
    backbone: Backbone,
    rows: Sequence[Row],
    draws: Draws | None = None,
    on_rows: OnRows = lambda rows: None,
) -> np.ndarray:
    """Logits (M, K, N, C) of K draws of each member: a plain prediction, the passes of MC dropout, samples of
    its weights, or one for each mask.

    Args:
        on_rows: as for `predict`.
    """
    noise = backbone.inserted.noise if backbone.inserted else None
    passes = noise and (noise.num_draws or (draws and draws.num_draws))
    if noise is None or not passes:
        return predict(backbone, rows, on_rows=on_rows)[:, None]
    logits = [
        predict(backbone, rows, set_noise=functools.partial(noise.predict, k), on_rows=on_rows)
        for k in range(passes)
    ]
    noise.off()
    return np.stack(logits, axis=1)


def pooled_draws(logits_MKNC: np.ndarray) -> np.ndarray:
    """Logits (M, N, C) of each member: of its only draw, or the log of its draws' mean probability; NaN if a
    draw has no probabilities."""
    if logits_MKNC.shape[1] == 1:
        return logits_MKNC[:, 0]
    nothing = np.full(logits_MKNC.shape[2:], np.nan)
    return np.stack(
        [metrics.combine(draws, "probs") if have_probabilities(draws) else nothing for draws in logits_MKNC]
    )


def draws_nll(logits_KNC: np.ndarray, labels_N: np.ndarray) -> float:
    """NLL (nats) of the mean probability of some draws; NaN if a draw has no probabilities. For numbers see
    `metrics.pooled_nll`."""
    return metrics.pooled_nll(logits_KNC, labels_N) if have_probabilities(logits_KNC) else math.nan


def have_probabilities(logits: np.ndarray) -> bool:
    """Whether every example has probabilities: no logit (..., C) is NaN or +inf, and not all are -inf."""
    return bool(np.isfinite(logits.max(axis=-1)).all())


@torch.no_grad()
def with_features(backbone: Backbone, rows: Sequence[Row]) -> list[Row]:
    """The rows with the frozen backbone's features, computed once for all members that train on them.

    Raises:
        ValueError: two examples have different answer tokens; a head has the same classes for all examples.
    """
    if other := next((row for row in rows if row.answer_ids != rows[0].answer_ids), None):
        raise ValueError(
            f"{other.id} and {rows[0].id} have different answer tokens; LastLayer trains one head for all "
            "examples, so score by Letters() or LabelWords() with the same options everywhere"
        )
    found_ND = torch.zeros(len(rows), backbone.lm.config.hidden_size, device=backbone.device)
    for indices, real in _batches(backbone, rows):
        batch = collate([rows[n] for n in indices], rows[0].num_classes, backbone)
        own = to_device(indices[:real], backbone.device)
        found_ND.index_copy_(0, own, features(backbone, batch)[:real].float())
    backbone.ranks.sum_([found_ND])
    return [replace(row, features=value) for row, value in zip(rows, found_ND.cpu().numpy())]


def _batches(
    backbone: Backbone, rows: Sequence[Row], num_members: int = 1, batch_tokens: int | None = None
) -> Iterator[tuple[np.ndarray, int]]:
    """Indices of this rank's rows in each batch of all ranks, and how many of them count."""
    tokens = backbone.ranks.size * (batch_tokens or PREDICT_TOKENS[backbone.device.type]) // num_members
    for indices in length_batches([len(r.tokens) for r in rows], max(1, tokens)):
        for part, real in backbone.ranks.parts(len(indices)):
            yield indices[part], real


def length_batches(lengths: Sequence[int], batch_tokens: int) -> list[np.ndarray]:
    """Indices sorted by length, the longest first, and cut into batches of at most `batch_tokens` tokens."""
    longest_first = np.argsort(lengths, kind="stable")[::-1]  # memory peaks at the start, not at the end
    batches: list[list[int]] = []
    room = 0
    for n in longest_first:
        if not batches or lengths[n] > room:
            batches.append([])
            room = batch_tokens
        room -= lengths[n]
        batches[-1].append(int(n))
    return [np.array(b) for b in batches]
