"""Memory of decoding from the backbone's config alone: neither weights nor torch are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorae.planning.memory import BYTES, PREDICT_TOKENS, Memory, Saving, Shape, Texts, backbone_bytes
from lorae.shapes import linear_shapes
from lorae.trial import Trial

# Of the keys and values of texts that are written at once. Results depend on it by rounding only
CACHE_BYTES = {"cpu": 2**30, "cuda": 2**33}
LOGIT_BYTES = 2**26  # of the whole vocabulary's logits that are computed at once


def token_bytes(config: dict[str, Any], size: int) -> int:
    """Of one token's keys and values in all layers, with numbers of `size` bytes."""
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    key_value = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or hidden // heads
    return 2 * config["num_hidden_layers"] * key_value * head_dim * size


def decoding_memory(
    trial: Trial,
    config: dict[str, Any],
    num_members: int,
    lengths: Sequence[int],
    room: int,
    draws: int = 1,
    gpus: int = 0,
    saving: Saving = Saving(),
) -> Memory:
    """Peak bytes of writing texts with a stack; what it keeps of prompts and texts is among the activations.

    Args:
        lengths: tokens of each prompt.
        room: tokens that are written to each.
        draws: texts that are written to each at once.
        gpus: as for `lorae.planning.memory.stack_memory`.
    """
    size, layers = BYTES[trial.precision], linear_shapes(config)
    shape, device = Shape.of(config, size, fused=gpus > 0), "cuda" if gpus else "cpu"
    trained = trial.method.num_trained(config, trial.method.adapted_layers(layers, trial.backbone.label))
    adapters = num_members * (4 * trained + trial.method.frozen_bytes(layers, size))
    each, longest = num_members * token_bytes(config, size), max(lengths)
    num = max(1, min(len(lengths), CACHE_BYTES[device] // (each * (longest + room * draws))))
    own, new = (num * each * tokens for tokens in (longest, room * draws))
    cache = max(own + new, (3 * own + new) // 2)  # prompts are copied where half of them are dropped
    at_once = max(PREDICT_TOKENS[device], num_members * longest)
    reading = shape.forward_bytes(at_once, Texts(longest))
    texts = num_members * num * draws
    logits = min(LOGIT_BYTES, texts * config["vocab_size"] * size)
    writing = logits + shape.forward_bytes(texts, Texts(longest + room))
    backbone = backbone_bytes(trial, config, max(1, gpus), saving)
    return Memory(backbone, adapters, cache + max(reading, writing))
