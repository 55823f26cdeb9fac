"""Memory of decoding from the backbone's config alone: neither weights nor torch are loaded."""

from __future__ import annotations

from typing import Any

# Of the keys and values of texts that are written at once. Results depend on it by rounding only
CACHE_BYTES = {"cpu": 2**30, "cuda": 2**33}


def token_bytes(config: dict[str, Any], size: int) -> int:
    """Of one token's keys and values in all layers, with numbers of `size` bytes."""
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    key_value = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or hidden // heads
    return 2 * config["num_hidden_layers"] * key_value * head_dim * size
