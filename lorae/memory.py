"""Peak memory of a stack from the backbone's config alone: neither weights nor torch are loaded.

Counted tensor by tensor for a Llama-like decoder, and for GPT-2 or an encoder with LayerNorm and GELU, frozen
weights, in which autograd keeps no input of a frozen linear layer and nothing below the first adapted one.
Other decoders are counted as if they were Llama-like.
The attention is that of `lorae.packing`: written out on a CPU, scaled_dot_product_attention on a GPU.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from lorae.draws import Laplace
from lorae.methods import Adapter, BatchEnsemble, Blob, Full, InContext, LastLayer, Vera, adapted_layers
from lorae.regularizers import AdapterDropout, EarlyStopping, Masksembles
from lorae.shapes import kind_of, linear_shapes, num_backbone_parameters
from lorae.trial import Trial

BYTES = {"fp32": 4, "bf16": 2}
QK_NORM = ("qwen3", "gemma3_text", "olmo2")
SAME_INPUT = {  # layers that read one tensor
    **dict.fromkeys(("k_proj", "v_proj"), "q_proj"),
    **dict.fromkeys(("key", "value"), "query"),
    **dict.fromkeys(("k_lin", "v_lin"), "q_lin"),
    "up_proj": "gate_proj",
}
# Tokens of one forward pass of `predict`, members included; on a CPU as many as its caches like (measured, a
# tenth faster than 4096). Results depend on it by rounding only
PREDICT_TOKENS = {"cpu": 2048, "cuda": 4096}


@dataclass(frozen=True)
class Memory:
    """Peak bytes on one device, by what takes them.

    Attributes:
        backbone: its weights; under ZeRO-3 a shard, and the layers that are gathered.
        adapters: parameters, gradients and two moments in fp32.
        activations: what autograd keeps and the largest temporaries, in training or in prediction.
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
        recompute: of each layer only its input is kept for the backward pass.
        offload: ZeRO-3's parts of the backbone are in the memory of the machines.
        hpz: GPUs that hold a second copy of the backbone together, so that less is sent; None = no copy.
    """

    recompute: bool = False
    offload: bool = False
    hpz: int | None = None


@dataclass(frozen=True)
class Texts:
    """Sizes of the longest example in tokens: the whole row (of an image or sound its patches), and of it the
    answers that are scored by the full vocabulary (0 but for option likelihood); the classes of a head, and
    those of an example."""

    longest: int
    answers: int = 0
    classes: int = 0
    options: int = 2


def stack_memory(
    trial: Trial,
    config: dict[str, Any],
    num_members: int,
    rows: int,
    texts: Texts,
    gpus: int = 0,
    saving: Saving = Saving(),
    laplace: Laplace | None = None,
) -> Memory:
    """Peak bytes of training and predicting with a stack.

    Args:
        rows: examples of each member in one forward pass on one device.
        gpus: 0 = on a CPU; from 2 on ZeRO-3 partitions the frozen weights over them, adapters stay whole.
        laplace: the members draw so, too.
    """
    shape = _Shape.of(config, BYTES[trial.precision], fused=gpus > 0)
    together = 1 if isinstance(trial.method, InContext) else num_members
    predicted = max(PREDICT_TOKENS["cuda" if gpus else "cpu"], together * texts.longest)
    prediction = shape.forward_bytes(predicted, texts)
    backbone = _backbone_bytes(trial, config, max(1, gpus), saving)
    if not num_members or isinstance(trial.method, InContext):
        return Memory(backbone, 0, prediction)
    layers = adapted_layers(trial.method, linear_shapes(config), trial.backbone.label)
    head = texts.classes * (config["hidden_size"] + 1)
    adapters = _adapter_bytes(trial, config, layers, head, num_members, on_cpu=not gpus)
    if isinstance(trial.method, LastLayer):  # trained on features, which prediction alone computes
        return Memory(backbone, adapters, prediction)
    if isinstance(trial.method, Full):
        layers = linear_shapes(config)
    first = min(int(found[0]) if (found := re.findall(r"\.(\d+)\.", name)) else 0 for name in layers)
    num_layers = config["num_hidden_layers"] - first

    def pass_bytes(rows: int) -> int:
        """Of a forward and backward pass."""
        tokens = num_members * rows * texts.longest
        kept = num_layers * shape.kept_bytes(tokens, texts.longest) + _branch_bytes(trial, layers, tokens)
        if saving.recompute:  # one layer's at a time, and every layer's input
            kept = kept // num_layers + num_layers * tokens * shape.hidden * shape.size
        return kept + shape.backward_bytes(tokens, num_members * rows, texts)

    needed = max(pass_bytes(rows), prediction)
    if laplace:
        rows = max(1, rows // texts.options)
        drawing = num_members * _curvature_bytes(laplace, layers)
        drawing += _jacobian_bytes(trial, layers, num_members * rows, texts)
        needed = max(needed, pass_bytes(rows) + drawing)
    return Memory(backbone, adapters, needed)


@dataclass(frozen=True)
class _Shape:
    """The numbers of a decoder that its activations depend on."""

    size: int  # bytes of a number
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
    def of(cls, config: dict[str, Any], size: int, fused: bool) -> _Shape:
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
        """What autograd keeps of one layer: two norms' inputs, an RMS norm's in fp32; queries, keys and
        values; softmax of the scores in fp32 (and cast), or the fused attention's output; the inner
        activations (gate, SiLU of it, up; or GELU's input)."""
        attention, key_value = self.heads * self.head_dim, self.key_value_heads * self.head_dim
        norms = (self.size if self.layer_norm else 4) * (2 * self.hidden + 2 * self.qk_norm * attention)
        scores = attention * self.size if self.fused else self.heads * length * (4 + 2 * (self.size == 2))
        inner = (3 if self.gated else 1 if self.layer_norm else 2) * self.inner * self.size
        return tokens * (norms + (attention + 2 * key_value) * self.size + scores + inner)

    def backward_bytes(self, tokens: int, rows: int, texts: Texts) -> int:
        """Largest temporaries at the start of the backward pass: gradients of the inner activations, of the
        scores (when the inner ones are gone), or of the answers' logits."""
        inner = (2 if self.layer_norm else 3) * tokens * self.inner * self.size
        scores = 0 if self.fused else 8 * tokens * self.heads * texts.longest - inner
        logits = 12 * rows * texts.answers * self.vocabulary
        return max(inner, scores, logits)

    def forward_bytes(self, tokens: int, texts: Texts) -> int:
        """Temporaries of a forward pass without gradients, in the largest of its parts."""
        residual = tokens * self.hidden * (self.size + 4)
        inner = 3 * tokens * self.inner * self.size
        scores = 0 if self.fused else tokens * self.heads * texts.longest * (self.size + 8)
        scores += 4 * tokens * self.heads * self.head_dim * self.size
        logits = 8 * tokens // texts.longest * texts.answers * self.vocabulary
        return residual + max(inner, scores, logits)


def _backbone_bytes(trial: Trial, config: dict[str, Any], shards: int, saving: Saving) -> int:
    """All weights; or one shard (unless that is elsewhere) and one of a second copy, the layer in use and the
    next one, and the embedding while it is in use."""
    whole = num_backbone_parameters(config) * BYTES[trial.precision]
    if shards == 1:
        return whole
    linears = sum(d_in * d_out for d_in, d_out in linear_shapes(config).values())
    layer = linears // config["num_hidden_layers"]
    embedding = config.get("vocab_size", 0) * config["hidden_size"]
    parts = (0 if saving.offload else -(-whole // shards)) + (-(-whole // saving.hpz) if saving.hpz else 0)
    return parts + max(2 * layer, embedding) * BYTES[trial.precision]


def full_member_bytes(config: dict[str, Any]) -> int:
    """Weights, gradients and two moments in fp32 of one member that is fine-tuned in full."""
    return 16 * num_backbone_parameters(config)


def _adapter_bytes(
    trial: Trial,
    config: dict[str, Any],
    layers: dict[str, tuple[int, int]],
    head: int,
    num_members: int,
    *,
    on_cpu: bool,
) -> int:
    """Parameters, gradients, two moments; early stopping's best state (in host memory), VeRA's projections or
    BLoB's noise, the cast to bf16. A classification head has `head` parameters; `LastLayer`'s few rows are
    not counted."""
    size, method = BYTES[trial.precision], trial.method
    trained = num_backbone_parameters(config) if isinstance(method, Full) else 0
    frozen = 0
    if isinstance(method, Adapter):
        trained = sum(method.num_parameters(*shape) for shape in layers.values())
    if isinstance(method, Blob):  # the noise of a step, and its product with the standard deviation
        frozen = (4 + size) * method.rank * sum(d_in for d_in, _ in layers.values())
    copies = 4 + (on_cpu and trial.regularizer(EarlyStopping) is not None)
    casts = size * trained * (size < 4)
    if isinstance(method, Vera):
        d_ins, d_outs = zip(*layers.values())
        frozen = size * method.rank * (max(d_ins) + max(d_outs))
    return num_members * (4 * copies * (trained + head) + casts + frozen)


def _curvature_bytes(laplace: Laplace, layers: dict[str, tuple[int, int]]) -> int:
    """One member's products with a random matrix, and that, in fp64."""
    return 2 * 8 * laplace.columns * sum(sum(shape) for shape in layers.values())


def _jacobian_bytes(trial: Trial, layers: dict[str, tuple[int, int]], rows: int, texts: Texts) -> int:
    """What the adapted layers read, in fp32, and give and are sent back; and the Jacobians of the classes."""
    assert isinstance(trial.method, Adapter)
    tokens, size = rows * texts.longest, BYTES[trial.precision]
    of_token = sum(4 * (d_in + trial.method.rank) + 2 * size * d_out for d_in, d_out in layers.values())
    jacobians = 4 * texts.options * sum(trial.method.num_parameters(*shape) for shape in layers.values())
    return tokens * of_token + rows * jacobians


def _branch_bytes(trial: Trial, layers: dict[str, tuple[int, int]], tokens: int) -> int:
    """What autograd keeps of the adapters' branches: LoRA's inputs (one for layers that read the same, each
    its own with a mask under noise) and A x; BLoB's signs, and inputs with these; VeRA's two products; the
    inputs and outputs that BatchEnsemble multiplies; the inputs of every layer whose weight is trained."""
    size, rank = BYTES[trial.precision], trial.method.rank
    if isinstance(trial.method, Vera):
        return tokens * size * sum(rank + d_out for _, d_out in layers.values())
    outputs = sum(d_out for _, d_out in layers.values()) if isinstance(trial.method, BatchEnsemble) else 0
    if trial.regularizer(AdapterDropout) or trial.regularizer(Masksembles):
        return tokens * size * outputs + tokens * sum(
            (size + 1) * d_in + size * rank for d_in, _ in layers.values()
        )
    inputs = {}
    for name, (d_in, _) in layers.items():
        path, _, leaf = name.rpartition(".")
        inputs[path, SAME_INPUT.get(leaf, leaf)] = d_in
    signs = sum(2 * d_in + rank for d_in, _ in layers.values()) if isinstance(trial.method, Blob) else 0
    return tokens * size * (sum(inputs.values()) + rank * len(layers) + outputs + signs)
