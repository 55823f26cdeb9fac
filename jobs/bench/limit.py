"""A machine's limit: bare forward passes of the backbone, without output head, over the same tokens."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from jobs.bench.apart import Rounds
from jobs.bench.peft_side import ATTENTION, load_lm, padded, without_cudnn_attention
from jobs.bench.setting import environment, num_tokens, synchronize
from lorae.backbone.devices import to_device
from lorae.engine.prediction import length_batches
from lorae.tasks.encoding import Row
from lorae.trial import Trial

PADDED_TOKENS = {"cpu": (256, 512), "cuda": (512, 2048, 8192)}  # per batch of sentences, sorted by length
PACKED_TOKENS = (64, 256)  # per row, which holds parts of many sentences
PACKED_BATCH = {"cpu": 2048, "cuda": 16384}  # tokens per batch of such rows
SAMPLE = {"cpu": 2048, "cuda": 16384}  # tokens to try each way on
# Untimed batches of each way: on a GPU the first, which loads its kernels; on a CPU the smallest
WARM_UP = {"cpu": slice(-1, None), "cuda": slice(0, 1)}

Way = tuple[str, str, list[torch.Tensor]]  # in words, attention, batches of ids


@contextlib.contextmanager
def beside_limit(
    sides: dict[str, Callable[..., Iterator[Any]]], trial: Trial, device: str, encoded: Sequence[Row]
) -> Iterator[dict[str, Rounds]]:
    """The sides and, on these rows, the limit: each in its own process with the same environment. The sides
    load their models together; after that, the limit searches for its fastest way alone."""
    with contextlib.ExitStack() as processes:
        started = {
            name: processes.enter_context(Rounds(side, trial, device, environment=environment()))
            for name, side in sides.items()
        }
        for process in started.values():
            process.wait()
        limit = Rounds(bare_forwards, trial, device, encoded, environment=environment())
        yield started | {"limit": processes.enter_context(limit)}


def bare_forwards(trial: Trial, device: str, encoded: Sequence[Row]) -> Iterator[Any]:
    """Yields its description, then (seconds, tokens) for each pass over the rows."""
    without_cudnn_attention()
    lm = load_lm(trial, device).base_model  # without its output head
    name, attention, ids = fastest(lm, encoded, device)
    yield (
        "forward passes of transformers' model without output head, in the fastest of "
        f"{len(ATTENTION) * len(ways(device))} ways: {name}, {attention} attention"
    )
    lm.set_attn_implementation(attention)
    while True:
        yield _seconds(lm, ids, device), num_tokens(encoded)


def fastest(lm: Any, encoded: Sequence[Row], device: str) -> Way:
    """The way with the most real tokens per second, tried on a sample of the rows; a way is abandoned once it
    takes longer than the best."""
    size = max(1, SAMPLE[device] * len(encoded) // num_tokens(encoded))
    sample = [encoded[n * len(encoded) // size] for n in range(min(size, len(encoded)))]
    least, best = math.inf, None
    for attention in reversed(ATTENTION):
        lm.set_attn_implementation(attention)
        for name, cut in reversed(ways(device)):
            ids = cut(sample, device)
            _seconds(lm, ids[WARM_UP[device]], device)
            if (seconds := _seconds(lm, ids, device, least)) < least:
                least, best = seconds, (name, attention, cut)
    assert best
    name, attention, cut = best
    return name, attention, cut(encoded, device)


def ways(device: str) -> list[tuple[str, Callable[[Sequence[Row], str], list[torch.Tensor]]]]:
    """Ways to turn rows into batches: a description and the function."""
    by_padding = [
        (f"sentences sorted by length, padded, up to {most} tokens a batch", _sorted(most))
        for most in PADDED_TOKENS[device]
    ]
    by_packing = [
        (f"sentences packed into rows of {length} tokens, {PACKED_BATCH[device]} a batch", _packed(length))
        for length in PACKED_TOKENS
    ]
    return by_padding + by_packing


def _sorted(most: int) -> Callable[[Sequence[Row], str], list[torch.Tensor]]:
    def cut(encoded: Sequence[Row], device: str) -> list[torch.Tensor]:
        groups = length_batches([len(r.tokens) for r in encoded], most)
        return [padded([encoded[n] for n in group], device)[0] for group in groups]

    return cut


def _packed(length: int) -> Callable[[Sequence[Row], str], list[torch.Tensor]]:
    """Rows and positions ignore where a sentence begins: only the number of tokens counts here."""

    def cut(encoded: Sequence[Row], device: str) -> list[torch.Tensor]:
        ids = to_device([token for row in encoded for token in row.tokens], device)
        end = len(ids) // length * length
        batches = [*ids[:end].view(-1, length).split(max(1, PACKED_BATCH[device] // length)), ids[None, end:]]
        return [batch for batch in batches if batch.numel()]

    return cut


@torch.inference_mode()
def _seconds(lm: Any, ids: Sequence[torch.Tensor], device: str, most: float = math.inf) -> float:
    """Seconds of forward passes over the batches; stops once they take more than `most`."""
    synchronize(device)
    started = time.perf_counter()
    for batch in ids:
        lm(input_ids=batch, use_cache=False)
        if time.perf_counter() - started > most:
            break
    synchronize(device)
    return time.perf_counter() - started
