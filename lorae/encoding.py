"""Examples as token rows, batches of rows, and the class logits of a batch.

Answer letters and label words: one row per example, class logits from the last real token. Option
likelihood: one row per example that packs the question and all its options; every option attends to the
question and to itself only and its positions continue the question's, so the question is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from lorae import encoders
from lorae.backbones import Backbone
from lorae.encoders import EncoderBatch
from lorae.media import Audio, Image
from lorae.tasks.base import Example, Head, OptionLikelihood, Task


@dataclass(frozen=True)
class Row:
    """One encoded example.

    Args:
        tokens: the prompt, for option likelihood followed by the options.
        answer_ids: token of each class (letters, label words); empty for option likelihood.
        segments: option number of each token, -1 for the question; only for option likelihood.
        norms: what each option's log-probability is divided by; only for option likelihood.
        truncated: tokens of the prompt's beginning that were cut off; for a head of the end.
        media: image or sound; only for a head.
        pool: which tokens' features the head reads; only for a head.
    """

    id: str
    label: int
    num_classes: int
    tokens: tuple[int, ...]
    answer_ids: tuple[int, ...] = ()
    segments: tuple[int, ...] = ()
    norms: tuple[float, ...] = ()
    truncated: int = 0
    media: Image | Audio | None = None
    pool: Literal["cls", "mean"] | None = None


def encode(
    tokenizer: Any,
    task: Task,
    examples: Sequence[Example],
    max_tokens: int,
    classes: tuple[str, ...] | None = None,
) -> list[Row]:
    """Rows of the examples; a prompt longer than `max_tokens` loses its beginning.

    Args:
        tokenizer: of a causal LM, or the `Inputs` of an encoder.
        classes: names of the head's classes, which every row then has; an example with other classes has no
            label. None: the examples' own.
    Raises:
        ValueError: two classes of an example start with the same token, or an answer does not fit
        `max_tokens`; a damaged image or sound.
    """
    if isinstance(task.scoring, Head):
        pool, rows = task.scoring.pool, []
        for e, (tokens, cut) in zip(examples, tokenizer.tokens(task, examples, max_tokens)):
            label = -1 if e.label is None or classes not in (None, e.options) else e.label
            num_classes = len(classes or e.options)
            rows.append(Row(e.id, label, num_classes, tokens, truncated=cut, media=e.media, pool=pool))
        return rows
    prompts = [task.prompt(e) for e in examples]
    # An answer's tokens are what follows the prompt's in the tokenisation of both together.
    heads = tokenizer([p.text for p in prompts])["input_ids"]
    whole = iter(tokenizer([p.text + answer for p in prompts for answer in p.answers])["input_ids"])
    rows = []
    for example, prompt, head in zip(examples, prompts, heads):
        tails = [_answer_tokens(head, next(whole), example.id) for _ in prompt.answers]
        label = -1 if example.label is None else example.label
        row = Row(example.id, label, len(tails), tuple(head))
        if isinstance(task.scoring, OptionLikelihood):
            chars = task.scoring.norm == "chars"
            norms = tuple(float(len(a.strip())) if chars else 1.0 for a in prompt.answers)
            rows.append(_pack_options(replace(row, norms=norms), tails, max_tokens))
        else:
            first = tuple(tail[0] for tail in tails)
            if len(set(first)) < len(first):
                raise ValueError(
                    f"{task.name} {example.id}: two answers of {prompt.answers} start with the same "
                    "token of this tokenizer; score by OptionLikelihood() or choose other label words"
                )
            rows.append(_truncate(replace(row, answer_ids=first), max_tokens))
    return rows


def head_classes(task: Task) -> tuple[str, ...] | None:
    """Names of the classes of heads that are trained on a task; None for other scorings."""
    return task.examples("train")[0].options if isinstance(task.scoring, Head) else None


def _answer_tokens(head: list[int], whole: list[int], example_id: str) -> list[int]:
    if whole[: len(head)] != head or len(whole) <= len(head):
        raise ValueError(
            f"{example_id}: this tokenizer joins the prompt's end with the answer; it is not supported"
        )
    return whole[len(head) :]


def _truncate(row: Row, max_tokens: int) -> Row:
    excess = max(0, len(row.tokens) - max_tokens)
    return replace(row, tokens=row.tokens[excess:], segments=row.segments[excess:], truncated=excess)


def _pack_options(row: Row, tails: list[list[int]], max_tokens: int) -> Row:
    longest = max(map(len, tails))
    if longest >= max_tokens:
        raise ValueError(
            f"{row.id}: an option has {longest} tokens, max_tokens={max_tokens}; raise Budget(max_tokens=...)"
        )
    row = _truncate(row, max_tokens - longest)
    segments = (-1,) * len(row.tokens)
    for k, tail in enumerate(tails):
        segments += (k,) * len(tail)
    return replace(row, tokens=row.tokens + tuple(t for tail in tails for t in tail), segments=segments)


@dataclass(frozen=True)
class Batch:
    """Rows on the device, right-padded to T tokens; `class_logits` turns it into logits (rows, C)."""

    input_ids: torch.Tensor  # (rows, T)
    labels: torch.Tensor  # (rows,)
    class_mask: torch.Tensor  # (rows, C), True where the class exists
    last: torch.Tensor  # (rows,) index of the last real token
    answer_ids: torch.Tensor | None = None  # (rows, C)
    position_ids: torch.Tensor | None = None  # (rows, T)
    attention: torch.Tensor | None = None  # (rows, 1, T, T), additive
    scored: tuple[torch.Tensor, ...] = ()  # K positions: row, predicting position, token, class
    norms: torch.Tensor | None = None  # (rows, C)


def collate(rows: Sequence[Row], num_classes: int, backbone: Backbone) -> Batch | EncoderBatch:
    """Rows as one right-padded batch on the backbone's device."""
    if backbone.is_encoder:
        return encoders.collate(rows, backbone)
    length = max(len(r.tokens) for r in rows)
    num = len(rows)
    input_ids = np.zeros((num, length), np.int64)
    answer_ids = np.zeros((num, num_classes), np.int64)
    class_mask = np.zeros((num, num_classes), bool)
    for n, row in enumerate(rows):
        input_ids[n, : len(row.tokens)] = row.tokens
        answer_ids[n, : len(row.answer_ids)] = row.answer_ids
        class_mask[n, : row.num_classes] = True

    def on_device(values: Any) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values)).to(backbone.device, non_blocking=True)

    batch = Batch(
        input_ids=on_device(input_ids),
        labels=on_device([r.label for r in rows]),
        class_mask=on_device(class_mask),
        last=on_device([len(r.tokens) - 1 for r in rows]),
        answer_ids=on_device(answer_ids),
    )
    if not rows[0].segments:
        return batch
    packed = [_packed_layout(r, length) for r in rows]
    visible = np.stack([p[1] for p in packed])[:, None]
    floor = torch.finfo(backbone.dtype).min
    scored = [(n, *entry) for n, (_, _, entries) in enumerate(packed) for entry in entries]
    norms = np.ones((num, num_classes), np.float32)
    for n, row in enumerate(rows):
        norms[n, : row.num_classes] = row.norms
    return replace(
        batch,
        answer_ids=None,
        position_ids=on_device([p[0] for p in packed]),
        attention=on_device(np.where(visible, 0.0, floor)).to(backbone.dtype),
        scored=tuple(on_device(np.array(column)) for column in zip(*scored)),
        norms=on_device(norms),
    )


def _packed_layout(row: Row, length: int) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int, int]]]:
    """Positions (T,), visibility (T, T) and scored entries (predicting position, token, class) of a packed
    row."""
    segments = np.full(length, -2)
    segments[: len(row.segments)] = row.segments
    question = int((segments == -1).sum())
    positions = np.arange(length)
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


def class_logits(backbone: Backbone, batch: Batch | EncoderBatch) -> torch.Tensor:
    """Class logits (rows, C) in fp32; -inf for classes that a row does not have."""
    if isinstance(batch, EncoderBatch):
        return encoders.class_logits(backbone, batch)
    hidden = backbone.hidden(batch.input_ids, batch.position_ids, batch.attention)
    if batch.answer_ids is not None:
        rows = torch.arange(len(hidden), device=hidden.device)
        logits = backbone.answer_logits(hidden[rows, batch.last], batch.answer_ids)
    else:
        assert batch.norms is not None
        row, place, token, option = batch.scored
        log_probs_K = backbone.token_log_probs(hidden[row, place], token)
        logits = (
            torch.zeros_like(batch.norms).index_put((row, option), log_probs_K, accumulate=True) / batch.norms
        )
    return logits.masked_fill(~batch.class_mask, float("-inf"))
