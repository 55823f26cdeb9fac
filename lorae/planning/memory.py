"""Peak memory of a stack from the backbone's config alone: neither weights nor torch are loaded.

Counted tensor by tensor for a Llama-like decoder, and for GPT-2 or an encoder with LayerNorm and GELU, with
frozen weights: autograd keeps no input of a frozen linear layer, and nothing below the first adapted layer.
Other decoders are counted as if they were Llama-like.
The attention is the one of `lorae.backbone.packing`: written out on a CPU, scaled_dot_product_attention on a
GPU.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lorae.draws import Fitted, Sizes
from lorae.shapes import kind_of, linear_shapes, num_backbone_parameters
from lorae.trial import Trial

BYTES = {"fp32": 4, "bf16": 2}
QK_NORM = ("qwen3", "gemma3_text", "olmo2")
# Tokens of one forward pass of `predict`, over all members; on a CPU as many as suit its caches (measured: a
# tenth faster than 4096). Results depend on it only by rounding
PREDICT_TOKENS = {"cpu": 2048, "cuda": 4096}


@dataclass(frozen=True)
class Memory:
    """Peak bytes on one device, by use.

    Attributes:
        backbone: its weights; under ZeRO-3 a shard, and the gathered layers.
        adapters: parameters, gradients and two moments in fp32.
        activations: what autograd keeps, and the largest temporaries, in training or in prediction.
    """

    backbone: int
    adapters: int
    activations: int

    @property
    def total(self) -> int:
        return self.backbone + self.adapters + self.activations


@dataclass(frozen=True)
class Saving:
    """How a run trades GPU memory for time.

    Attributes:
        recompute: keep only each layer's input for the backward pass.
        offload: keep ZeRO-3's parts of the backbone in host memory.
        hpz: number of GPUs that together hold a second copy of the backbone, to send less; None = no copy.
    """

    recompute: bool = False
    offload: bool = False
    hpz: int | None = None


@dataclass(frozen=True)
class Texts:
    """Sizes of the longest example, and of the largest set.

    Attributes:
        longest: tokens of the row; patches for an image or audio clip.
        answers: tokens of the answers that are scored over the full vocabulary; 0 except for option
            likelihood and texts.
        classes: classes of a head.
        options: classes of an example.
        at_once: answer tokens whose logits are in memory at once; None = all.
        predicted: rows of the largest set that is predicted. The logits of a head with many classes matter:
            all of a set are in memory until they are stored.
    """

    longest: int
    answers: int = 0
    classes: int = 0
    options: int = 2
    at_once: int | None = None
    predicted: int = 0

    def scored(self, rows: int) -> int:
        """Answer tokens of some rows whose logits are in memory at once."""
        return min(rows * self.answers, self.at_once or sys.maxsize)


def stack_memory(
    trial: Trial,
    config: dict[str, Any],
    num_members: int,
    rows: int,
    texts: Texts,
    gpus: int = 0,
    saving: Saving = Saving(),
    draws: Iterable[Fitted] = (),
) -> Memory:
    """Peak bytes of training and predicting with a stack.

    Args:
        rows: examples per member in one forward pass on one device.
        gpus: 0 = on a CPU; with 2 or more, ZeRO-3 partitions the frozen weights over them, not the adapters.
        draws: fitted draws that the members also predict with.
    """
    method, shape = trial.method, Shape.of(config, BYTES[trial.precision], fused=gpus > 0)
    together = num_members if method.trains else 1
    predicted = max(PREDICT_TOKENS["cuda" if gpus else "cpu"], together * texts.longest)
    prediction = shape.forward_bytes(predicted, texts)
    prediction += BYTES["fp32"] * max(1, num_members) * texts.predicted * texts.classes
    backbone = backbone_bytes(trial, config, max(1, gpus), saving)
    if not (num_members and method.trains):
        return Memory(backbone, 0, prediction)
    layers = method.adapted_layers(linear_shapes(config), trial.backbone.label)
    head = texts.classes * (config["hidden_size"] + 1)
    adapters = _adapter_bytes(trial, config, layers, head, num_members, on_cpu=not gpus)
    if method.regime == "features":  # trained on features, which only prediction computes
        return Memory(backbone, adapters, prediction)
    if method.regime == "alone":
        layers = linear_shapes(config)
    first = min(int(found[0]) if (found := re.findall(r"\.(\d+)\.", name)) else 0 for name in layers)
    num_layers = config["num_hidden_layers"] - first
    noisy = any(regularizer.is_noise for regularizer in trial.regularizers)
    branch_bytes = method.kept_bytes(layers, BYTES[trial.precision], noisy)

    def pass_bytes(rows: int) -> int:
        """Bytes of a forward and backward pass."""
        tokens = num_members * rows * texts.longest
        kept = num_layers * shape.kept_bytes(tokens, texts.longest) + tokens * branch_bytes
        if saving.recompute:  # one layer at a time, and every layer's input
            kept = kept // num_layers + num_layers * tokens * shape.hidden * shape.size
        return kept + shape.backward_bytes(tokens, num_members * rows, texts)

    needed = max(pass_bytes(rows), prediction)
    sizes = Sizes(BYTES[trial.precision], texts.longest, texts.options)
    for spec in draws:
        if (beside := spec.fitting_bytes(method, layers, num_members, rows, sizes)) is not None:
            needed = max(needed, pass_bytes(spec.fitted_at_once(rows, texts.options)) + beside)
    return Memory(backbone, adapters, needed)


@dataclass(frozen=True)
class Shape:
    """Sizes of a model that its activations depend on."""

    size: int  # bytes per number
    fused: bool  # attention scores are never in memory
    hidden: int
    inner: int
    gated: bool
    heads: int
    key_value_heads: int
    head_dim: int
    qk_norm: bool
    layer_norm: bool  # and GELU, not RMS norm and SiLU
    vocabulary: int

    @classmethod
    def of(cls, config: dict[str, Any], size: int, fused: bool) -> Shape:
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        return cls(
            size=size,
            fused=fused,
            hidden=hidden,
            inner=config.get("intermediate_size") or 4 * hidden,
            gated=any("gate" in name for name in linear_shapes(config)),
            heads=heads,
            key_value_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            qk_norm=config["model_type"] in QK_NORM,
            layer_norm=kind_of(config) != "causal" or config["model_type"] == "gpt2",
            vocabulary=config.get("vocab_size", 0),
        )

    def kept_bytes(self, tokens: int, length: int) -> int:
        """Bytes that autograd keeps for one layer: two norms' inputs, in fp32 for an RMS norm; queries, keys
        and values; softmax of the scores in fp32 (and its cast), or the fused attention's output; the inner
        activations (gate, its SiLU, up; or GELU's input)."""
        attention, key_value = self.heads * self.head_dim, self.key_value_heads * self.head_dim
        norms = (self.size if self.layer_norm else 4) * (2 * self.hidden + 2 * self.qk_norm * attention)
        scores = attention * self.size if self.fused else self.heads * length * (4 + 2 * (self.size == 2))
        inner = (3 if self.gated else 1 if self.layer_norm else 2) * self.inner * self.size
        return tokens * (norms + (attention + 2 * key_value) * self.size + scores + inner)

    def backward_bytes(self, tokens: int, rows: int, texts: Texts) -> int:
        """Largest temporaries at the start of the backward pass: gradients of the inner activations, of the
        scores (after the inner gradients are freed), or of the answers' logits."""
        inner = (2 if self.layer_norm else 3) * tokens * self.inner * self.size
        scores = 0 if self.fused else 8 * tokens * self.heads * texts.longest - inner
        logits = 12 * texts.scored(rows) * self.vocabulary
        return max(inner, scores, logits)

    def forward_bytes(self, tokens: int, texts: Texts) -> int:
        """Temporaries of a forward pass without gradients, in its largest part."""
        residual = tokens * self.hidden * (self.size + 4)
        inner = 3 * tokens * self.inner * self.size
        scores = 0 if self.fused else tokens * self.heads * texts.longest * (self.size + 8)
        scores += 4 * tokens * self.heads * self.head_dim * self.size
        logits = 8 * texts.scored(tokens // texts.longest) * self.vocabulary
        return residual + max(inner, scores, logits)


def backbone_bytes(trial: Trial, config: dict[str, Any], shards: int, saving: Saving) -> int:
    """Bytes of all weights; or of one shard (unless offloaded) and one shard of a second copy, plus the
    current and the next layer, or the embedding while it is in use."""
    whole = num_backbone_parameters(config) * BYTES[trial.precision]
    if shards == 1:
        return whole
    linears = sum(d_in * d_out for d_in, d_out in linear_shapes(config).values())
    layer = linears // config["num_hidden_layers"]
    embedding = config.get("vocab_size", 0) * config["hidden_size"]
    parts = (0 if saving.offload else -(-whole // shards)) + (-(-whole // saving.hpz) if saving.hpz else 0)
    return parts + max(2 * layer, embedding) * BYTES[trial.precision]


def _adapter_bytes(
    trial: Trial,
    config: dict[str, Any],
    layers: dict[str, tuple[int, int]],
    head: int,
    num_members: int,
    *,
    on_cpu: bool,
) -> int:
    """Bytes of parameters, gradients and two moments; early stopping's best state (in host memory), a
    method's further tensors, and the cast to bf16. A classification head has `head` parameters; `LastLayer`'s
    few rows are not counted."""
    size, trained = BYTES[trial.precision], trial.method.num_trained(config, layers)
    copies = 4 + (on_cpu and any(regularizer.keeps_best for regularizer in trial.regularizers))
    casts = size * trained * (size < 4)
    return num_members * (4 * copies * (trained + head) + casts + trial.method.frozen_bytes(layers, size))
