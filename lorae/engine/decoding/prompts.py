"""Prompts that the members of a stack have read, from which they write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lorae.backbone.loading import Backbone
from lorae.backbone.past import Reading
from lorae.engine.batches import beginning
from lorae.planning.decoding import CACHE_BYTES, token_bytes
from lorae.planning.memory import PREDICT_TOKENS
from lorae.shapes import most_tokens


@dataclass(frozen=True, eq=False)
class Prompts:
    """N prompts as M members have read them.

    Attributes:
        longest: tokens of the longest one.
        readings: one of all members; one of each where all weights are its own.
        hidden_MND: last hidden state of each prompt's last token.
    """

    backbone: Backbone
    longest: int
    readings: tuple[Reading, ...]
    hidden_MND: torch.Tensor


@torch.no_grad()
def read_prompts(backbone: Backbone, prompts: Sequence[Sequence[int]]) -> Prompts:
    """Let the inserted stack, or else the backbone itself, read prompts in one packed row of each member;
    what all prompts begin with is computed and kept once.

    Every rank reads and writes the same texts: each step needs all ranks where they hold a backbone together.

    Raises:
        ValueError: the members cannot write (see `check_decodes`), or a prompt is empty.
    """
    check_decodes(backbone)
    if empty := [n for n, prompt in enumerate(prompts) if not len(prompt)]:
        raise ValueError(f"prompt {empty[0]} has no token; every prompt needs one")
    lengths, shared = [len(p) for p in prompts], beginning([*map(tuple, prompts)])
    at_once = max(shared, PREDICT_TOKENS[backbone.device.type] // backbone.num_members)
    readings: list[Reading] = []

    def last_hidden(num_members: int) -> torch.Tensor:
        reading, found = Reading(lengths, num_members, shared, backbone.device), []
        readings.append(reading)
        for begin, end in _parts([length - shared for length in lengths], at_once):
            packing = reading.read_next(begin, lengths[begin:end])
            tokens = packing.pack([token for p in prompts[begin:end] for token in p] * num_members)
            hidden = backbone.hidden(tokens, packing.places, reading).flatten(0, 1)
            found.append(hidden[packing.ends].view(num_members, end - begin, -1))
        return torch.cat(found, 1)

    num = backbone.num_members
    hidden_MND = by_weights(backbone, last_hidden, [1] * num if has_own_weights(backbone) else [num])
    return Prompts(backbone, max(map(len, prompts)), tuple(readings), hidden_MND)


def _parts(lengths: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Begin and end of parts, in order, of which none is longer than `most` unless it is one."""
    begin = total = 0
    for n, length in enumerate(lengths):
        if n > begin and total + length > most:
            yield begin, n
            begin, total = n, 0
        total += length
    yield begin, len(lengths)


def has_own_weights(backbone: Backbone) -> bool:
    """Whether the inserted members share no weight, so that each is run by itself."""
    return bool(backbone.inserted and backbone.inserted.method.regime == "alone")


def by_weights(
    backbone: Backbone, function: Callable[[Any], torch.Tensor], parts: Sequence[Any]
) -> torch.Tensor:
    """`function` of the one part of all members, or of every member's part with its own weights."""
    inserted = backbone.inserted
    if inserted and has_own_weights(backbone):
        return inserted.one_by_one(function, parts)
    (part,) = parts
    return function(part)


def check_decodes(backbone: Backbone) -> None:
    """Refuse what cannot write texts.

    Raises:
        ValueError: an encoder, members of a method without logits of the whole vocabulary, or with masks.
    """
    if backbone.is_encoder:
        raise ValueError(f"{backbone.name} is an encoder, which cannot write texts; take a causal LM")
    inserted = backbone.inserted
    if inserted and inserted.method.regime == "features":
        raise ValueError(
            f"{inserted.method} trains logits of its classes alone, so it cannot write texts; write Lora()"
        )
    if inserted and inserted.noise and inserted.noise.num_draws:
        raise ValueError(
            f"members that predict by {inserted.noise.num_draws} masks each cannot write one text; leave the "
            "masks out"
        )


def check_length(backbone: Backbone, longest: int, max_new_tokens: int) -> None:
    """Refuse prompts that leave no room for so many tokens in what the backbone reads.

    Raises:
        ValueError: both numbers, and what to do.
    """
    most = most_tokens(backbone.lm.config.to_dict())
    if most and longest + max_new_tokens > most:
        raise ValueError(
            f"{backbone.name} reads {most} tokens; a prompt has {longest}, max_new_tokens={max_new_tokens}; "
            "shorten the prompts or write fewer tokens"
        )


def prompt_batches(
    backbone: Backbone, prompts: Sequence[Sequence[int]], room: int, draws: int = 1
) -> Iterator[np.ndarray]:
    """Indices of prompts of similar lengths that the inserted members can read at once, the longest first.

    Args:
        room: tokens that are written to each.
        draws: texts that are written to each at once.
    """
    each = token_bytes(backbone.lm.config.to_dict(), backbone.dtype.itemsize) * backbone.num_members
    longest_first, begin = np.argsort([-len(prompt) for prompt in prompts], kind="stable"), 0
    while begin < len(prompts):
        tokens = len(prompts[longest_first[begin]]) + room * draws  # shorter ones are kept as if as long
        end = begin + max(1, CACHE_BYTES[backbone.device.type] // (each * tokens))
        yield longest_first[begin:end]
        begin = end
