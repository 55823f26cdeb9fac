"""Examples as token rows, batches of rows, and the class logits of a batch.

Answer letters and label words: one row per example, class logits from the last real token. Option
likelihood: one row per example that packs the question and all its options; every option attends to the
question and to itself only and its positions continue the question's, so the question is computed once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from lorae import encoders
from lorae.backbones import Backbone
from lorae.encoders import EncoderBatch
from lorae.media import Audio, Image
from lorae.methods import Method
from lorae.packing import Packing
from lorae.prompts import Own, check_first_token, own_text, own_tokens, without_middle
from lorae.tasks.base import Example, Head, OptionLikelihood, Task
from lorae.transfer import to_device


@dataclass(frozen=True)
class Row:
    """One encoded example.

    Args:
        tokens: the prompt, for option likelihood followed by the options.
        answer_ids: token of each class (letters, label words), or its place in a head; empty for option
            likelihood.
        segments: option number of each token, -1 for the question; only for option likelihood.
        norms: what each option's log-probability is divided by; only for option likelihood.
        truncated: tokens in the middle of the example's own text that were cut out; for a head of the end.
        media: image or sound; only for a head.
        pool: which tokens' features the head reads; only for a head.
        features: hidden state (D,) that class logits are read from, where the backbone is not run again
            (`lorae.prediction.with_features`).
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
    features: np.ndarray | None = field(default=None, compare=False, repr=False)


def encode(
    tokenizer: Any,
    task: Task,
    examples: Sequence[Example],
    max_tokens: int,
    classes: tuple[str, ...] | None = None,
    context: str = "",
) -> list[Row]:
    """Rows of the examples; one longer than `max_tokens` loses the middle of the example's own text, with an
    encoder its end.

    Args:
        tokenizer: of a causal LM, or the `Inputs` of an encoder.
        classes: names of the head's classes, which every row then has; an example with other classes has no
            label. None: the examples' own.
        context: text before every prompt, which is whole and has further tokens.
    Raises:
        ValueError: two classes of an example start with the same token, an answer or the template does not
            fit `max_tokens`, the first token is there twice; a damaged image or sound.
    """
    if isinstance(task.scoring, Head):
        pool, rows = task.scoring.pool, []
        numbers = tuple(range(len(classes or examples[0].options)))
        for e, (tokens, cut) in zip(examples, tokenizer.tokens(task, examples, max_tokens)):
            if e.media is None:
                _check_first_token(tokenizer.processor, task, e, tokens)
            label = -1 if e.label is None or classes not in (None, e.options) else e.label
            row = Row(e.id, label, len(numbers), tokens, numbers, truncated=cut, media=e.media, pool=pool)
            rows.append(row)
        return rows
    prompts = [task.prompt(e) for e in examples]
    # An answer's tokens are what follows the prompt's in the tokenisation of both together.
    texts = [context + p.text for p in prompts]
    heads = tokenizer(texts, return_offsets_mapping=bool(context))
    answered = [text + answer for text, p in zip(texts, prompts) for answer in p.answers]
    whole = iter(tokenizer(answered)["input_ids"])
    rows = []
    for n, (example, prompt, head) in enumerate(zip(examples, prompts, heads["input_ids"])):
        _check_first_token(tokenizer, task, example, head)
        tails = [_answer_tokens(head, next(whole), example.id) for _ in prompt.answers]
        label = -1 if example.label is None else example.label
        row = Row(example.id, label, len(tails), tuple(head))
        kept = _context_tokens(heads["offset_mapping"][n], context) if context else 0
        limit = max_tokens + kept
        if isinstance(task.scoring, OptionLikelihood):
            chars = task.scoring.norm == "chars"
            norms = tuple(float(len(a.strip())) if chars else 1.0 for a in prompt.answers)
            row, longest = replace(row, norms=norms), max(map(len, tails))
            if longest >= max_tokens:
                raise ValueError(
                    f"{row.id}: an option has {longest} tokens, max_tokens={max_tokens}; raise "
                    "Budget(max_tokens=...)"
                )
            row = _shortened(tokenizer, task, example, row, limit - longest, context)
            rows.append(_pack_options(row, tails))
        else:
            first = tuple(tail[0] for tail in tails)
            if len(set(first)) < len(first):
                raise ValueError(
                    f"{task.name} {example.id}: two answers of {prompt.answers} start with the same "
                    "token of this tokenizer; score by OptionLikelihood() or choose other label words"
                )
            row = replace(row, answer_ids=first)
            rows.append(_shortened(tokenizer, task, example, row, limit, context))
    return rows


def head_classes(task: Task) -> tuple[str, ...] | None:
    """Names of the classes of heads that are trained on a task; None for other scorings."""
    return task.examples("train")[0].options if isinstance(task.scoring, Head) else None


def head_answers(method: Method, task: Task) -> tuple[str, ...] | None:
    """Answers whose rows of the language model's head are trained on a task; None where none are."""
    if method.regime != "features" or isinstance(task.scoring, Head):
        return None
    return task.prompt(task.examples("train")[0]).answers


def _answer_tokens(head: list[int], whole: list[int], example_id: str) -> list[int]:
    if whole[: len(head)] != head or len(whole) <= len(head):
        raise ValueError(
            f"{example_id}: this tokenizer joins the prompt's end with the answer; it is not supported"
        )
    return whole[len(head) :]


def _context_tokens(spans: Sequence[tuple[int, int]], context: str) -> int:
    """Tokens of the context that a text begins with, from the characters of each token. (What a tokenizer
    makes of the context alone may end otherwise: GPT-2's joins newlines where nothing follows.)"""
    return sum(1 for _ in itertools.takewhile(lambda span: span[1] <= len(context), spans))


def _check_first_token(tokenizer: Any, task: Task, example: Example, tokens: Sequence[int]) -> None:
    try:
        check_first_token(tokenizer, task, tokens)
    except ValueError as error:
        raise ValueError(f"{task.name} {example.id}: {error}") from error


def _shortened(tokenizer: Any, task: Task, example: Example, row: Row, limit: int, context: str) -> Row:
    """The row with at most `limit` tokens of context and prompt."""
    excess = len(row.tokens) - limit
    if excess <= 0:
        return row
    own, text = own_text(task, example), context + task.prompt(example).text
    own = Own(*(len(context) + place for place in (own.begin, own.question_end, own.end)))
    try:
        tokens = without_middle(row.tokens, own_tokens(tokenizer, text, row.tokens, own), excess)
    except ValueError as error:
        raise ValueError(f"{task.name} {row.id}: {error}") from error
    return replace(row, tokens=tokens, truncated=excess)


def _pack_options(row: Row, tails: list[list[int]]) -> Row:
    segments = (-1,) * len(row.tokens)
    for k, tail in enumerate(tails):
        segments += (k,) * len(tail)
    return replace(row, tokens=row.tokens + tuple(t for tail in tails for t in tail), segments=segments)


@dataclass(frozen=True)
class Batch:
    """Rows of M members on the device, each member's in one packed row of S tokens, members first;
    `class_logits` turns it into logits (rows, C)."""

    input_ids: torch.Tensor  # (M, S)
    position_ids: torch.Tensor  # (M, S)
    packing: Packing
    class_mask: torch.Tensor  # (rows, C), True where the class exists
    answer_ids: torch.Tensor | None = None  # (rows, C)
    scored: tuple[torch.Tensor, ...] = ()  # K predictions: place in the packed (M * S), token, row, class
    norms: torch.Tensor | None = None  # (rows, C)


def collate(
    rows: Sequence[Row], num_classes: int, backbone: Backbone, num_members: int = 1, share: bool = True
) -> Batch | EncoderBatch:
    """Rows of so many members, members first and as many of each, on the backbone's device; what a member's
    rows begin with in common is there once, unless `share` is false."""
    if backbone.is_encoder:
        return encoders.collate(rows, backbone, num_members)

    def by_class(values: Sequence[Sequence[Any]], dtype: Any, fill: Any) -> torch.Tensor:
        padded = np.full((len(rows), num_classes), fill, dtype)
        for n, of_row in enumerate(values):
            padded[n, : len(of_row)] = of_row
        return to_device(padded, backbone.device)

    noise = backbone.inserted and backbone.inserted.noise
    noisy = noise is not None and noise.of_rows is not None  # then what a row begins with is its own
    shared = common_beginning(rows) if share and not noisy else 0
    packing = Packing.of([len(r.tokens) for r in rows], num_members, backbone.device, shared)
    batch = Batch(
        input_ids=packing.pack([t for r in rows for t in r.tokens]),
        position_ids=packing.places,
        packing=packing,
        class_mask=by_class([[True] * r.num_classes for r in rows], bool, False),
    )
    if not rows[0].segments:
        return replace(batch, answer_ids=by_class([r.answer_ids for r in rows], np.int64, 0))
    positions, visible, entries = zip(*(_options_layout(r, packing.shape[1]) for r in rows))
    padded = np.stack([np.pad(p, (0, packing.shape[1] - len(p))) for p in positions])
    first = np.cumsum([0, *(len(r.tokens) for r in rows)])  # of each row's tokens in packing.order
    scored = [
        (packing.order[first[n] + place], token, n, option)
        for n, of_row in enumerate(entries)
        for place, token, option in of_row
    ]
    return replace(
        batch,
        position_ids=packing.pack([p for of_row in positions for p in of_row]),
        packing=replace(
            packing,
            visible=to_device(np.stack(visible), backbone.device),
            positions=to_device(padded, backbone.device),
        ),
        scored=tuple(to_device(column, backbone.device) for column in zip(*scored)),
        norms=by_class([r.norms for r in rows], np.float32, 1.0),
    )


def common_beginning(rows: Sequence[Row]) -> int:
    """Tokens that all prompts begin with, the last one of each left out: every row goes on by itself."""
    prompts = [r.tokens[: r.segments.count(-1)] if r.segments else r.tokens for r in rows]
    low, high = min(prompts), max(prompts)  # what these two have in common, all have
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(low, high))
    return min(len(list(same)), min(map(len, prompts)) - 1)


def _options_layout(row: Row, length: int) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int, int]]]:
    """Positions of a row's tokens, visibility (T, T), and scored entries (predicting place, token, class)."""
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


def stack_logits(backbone: Backbone, rows: Sequence[Row], num_classes: int) -> torch.Tensor:
    """Class logits (rows, C) of the inserted stack, each member's rows together; one forward pass of all, or
    of each member where all weights are its own; of the heads alone where rows have features."""
    inserted = backbone.inserted
    if inserted and rows[0].features is not None:
        features_ND = to_device(np.array([row.features for row in rows]), backbone.device)
        return backbone.capped(inserted.head_logits(features_ND))
    if inserted is None or inserted.method.regime != "alone":
        return class_logits(backbone, collate(rows, num_classes, backbone, backbone.num_members))
    size = len(rows) // inserted.num_members
    parts = [collate(rows[n : n + size], num_classes, backbone) for n in range(0, len(rows), size)]
    return inserted.one_by_one(lambda batch: class_logits(backbone, batch), parts)


def features(backbone: Backbone, batch: Batch | EncoderBatch) -> torch.Tensor:
    """Hidden state (rows, D) of each row's last token, or of an encoder's pooled ones, from which its class
    logits are read."""
    if isinstance(batch, EncoderBatch):
        return encoders.features(backbone, batch)
    return _hidden(backbone, batch)[batch.packing.ends]


def _hidden(backbone: Backbone, batch: Batch) -> torch.Tensor:
    """Last hidden states (M * S, D) of the packed tokens."""
    return backbone.hidden(batch.input_ids, batch.position_ids, batch.packing).flatten(0, 1)


def class_logits(backbone: Backbone, batch: Batch | EncoderBatch) -> torch.Tensor:
    """Class logits (rows, C) in fp32; -inf for classes that a row does not have."""
    if isinstance(batch, EncoderBatch):
        return encoders.class_logits(backbone, batch)
    inserted = backbone.inserted
    if inserted and inserted.noise:
        inserted.noise.locate(batch.packing.rows, batch.packing.places)
    if batch.answer_ids is not None:
        read = features(backbone, batch)
        if inserted and inserted.has_head:
            logits = backbone.capped(inserted.head_logits(read))
        else:
            logits = backbone.answer_logits(read, batch.answer_ids)
    else:
        assert batch.norms is not None
        place, token, row, option = batch.scored
        log_probs_K = backbone.token_log_probs(_hidden(backbone, batch)[place], token)
        logits = (
            torch.zeros_like(batch.norms).index_put((row, option), log_probs_K, accumulate=True) / batch.norms
        )
    return logits.masked_fill(~batch.class_mask, float("-inf"))
