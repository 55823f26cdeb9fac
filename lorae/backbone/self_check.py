"""Checks that packed rows give what a model itself computes: with the loaded weights, and for an architecture
with a small random twin, before any weights are read.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lorae.backbone.packing import ATTENTION, Packing, register_attention
from lorae.shapes import auto_class, first_position, meta_model, most_tokens

if TYPE_CHECKING:
    from lorae.backbone.loading import Backbone
    from lorae.methods import Method

PATTERN = (0, 1, 2, 3), (0, 5), (0, 2, 1, 0, 5, 6)  # tokens of the rows, with a common beginning
WINDOW, LONG = 5, 4  # of a twin: its sliding window, and how often its long rows repeat
MAX_PARAMETERS, MAX_LAYERS = 2e7, 6  # of a twin
PRECISE = {"dtype": torch.float64, "experts_implementation": "eager"}  # rounding must not hide a difference


# Errors that a model may raise if it does not support packed rows
FAILURES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError)


@torch.no_grad()
def check_packed(backbone: Backbone, times: int = 1) -> None:
    """Compare packed rows with the model itself, row by row: `answer_logits` with a causal LM's logits, or an
    encoder's hidden states. A model that does not run packed has nothing to compare.

    In bf16 a deep model differs even from itself; the difference between its own two attentions sets the
    tolerance.

    Args:
        times: length of the rows, in multiples of the shortest probes.
    Raises:
        ValueError: they differ, or the model cannot run packed.
    """
    lm = backbone.lm
    if lm.config._attn_implementation != ATTENTION:
        return
    rows = probes(lm.config.vocab_size, times)
    try:
        own = _by_itself(backbone, rows, "eager")
        allowed = own.abs().max().clamp(min=1.0) * (2e-2 if backbone.dtype == torch.bfloat16 else 1e-4)
        if backbone.dtype == torch.bfloat16 and lm._supports_sdpa:
            allowed = torch.maximum(allowed, 4 * (_by_itself(backbone, rows, "sdpa") - own).norm())
        ours = _last_hidden(backbone, [rows])
        if not backbone.is_encoder:
            first = torch.arange(own.shape[1], device=backbone.device).expand(len(rows), -1)
            ours = backbone.answer_logits(ours, first)
    except torch.OutOfMemoryError:
        raise
    except FAILURES as error:
        why = f"it cannot be run on packed rows ({error!r})"
        raise unsupported(backbone.name, type(lm).__name__, why) from error
    if not (ours.float() - own).norm() <= allowed:
        why = (
            "what it computes is not what its layers, its attention to tokens alone and its output head give"
        )
        raise unsupported(backbone.name, type(lm).__name__, why)


def _by_itself(backbone: Backbone, rows: list[list[int]], attention: str) -> torch.Tensor:
    """The model's output for each row alone, with its own attention: a causal LM's logits of the first
    tokens, or an encoder's hidden state."""
    each = [torch.tensor([row], device=backbone.device) for row in rows]
    with _own_attention(backbone.lm, attention) as lm:
        if backbone.is_encoder:
            found = [lm.base_model(input_ids=ids).last_hidden_state[0, -1] for ids in each]
        else:
            found = [lm(input_ids=ids, use_cache=False).logits[0, -1, :8] for ids in each]
    return torch.stack(found).float()


@contextlib.contextmanager
def _own_attention(lm: Any, attention: str) -> Iterator[Any]:
    """The model with one of transformers' own attentions."""
    packed = lm.config._attn_implementation
    lm.set_attn_implementation(attention)
    yield lm
    lm.set_attn_implementation(packed)


def unsupported(name: str, architecture: str, why: str) -> ValueError:
    """The error for an architecture that cannot be trained in stacks."""
    return ValueError(
        f"{name} is a {architecture}: {why}; this architecture is not supported, take a Llama, Mistral, "
        "Qwen, Gemma, Phi, GPT-2, GPT-NeoX or OPT"
    )


@torch.no_grad()
def check_pooled(backbone: Backbone) -> None:
    """Refuse a text encoder whose first token, which `Head("cls")` reads, does not attend to the others.

    Raises:
        ValueError: its attention is causal.
    """
    row = probes(backbone.lm.config.vocab_size)[0]
    ids = torch.tensor([row, [*row[:-1], row[0]]], device=backbone.device)
    with _own_attention(backbone.lm, "eager"):
        first = backbone.lm.base_model(input_ids=ids).last_hidden_state[:, 0]
    if torch.equal(first[0], first[1]):
        raise ValueError(
            f"{backbone.name} is a {type(backbone.lm).__name__} whose first token, which Head('cls') reads, "
            "does not see the rest of a text; take an encoder whose tokens see each other"
        )


def probes(vocabulary: int, times: int = 1) -> list[list[int]]:
    """Rows of tokens of a vocabulary with a common beginning, repeated `times` times. The first tokens of the
    vocabulary are avoided: special tokens have such large activations that rounding shows."""
    low = min(31, vocabulary // 2)
    return [[low + token % (vocabulary - low) for token in row * times] for row in PATTERN]


def _last_hidden(backbone: Backbone, rows_of_members: Sequence[list[list[int]]]) -> torch.Tensor:
    """Hidden state of every row's last token, computed packed, with equally many rows of each member."""
    rows = [row for of_member in rows_of_members for row in of_member]
    causal = not backbone.is_encoder
    packing = Packing.of([len(row) for row in rows], len(rows_of_members), backbone.device, int(causal))
    if not causal:
        packing = packing.bidirectional()
    positions = packing.places + first_position(backbone.lm.config.to_dict())
    tokens = packing.pack([token for row in rows for token in row])
    return backbone.hidden(tokens, positions, packing).flatten(0, 1)[packing.ends]


# A small random twin
# ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def check_architecture(config: dict[str, Any], name: str, methods: Sequence[Method] = ()) -> None:
    """Test a causal LM's architecture on a small random model: packed rows, longer than its sliding windows,
    and members adapted by `methods`, in a stack and alone, one with short rows and one with long rows.

    Args:
        config: the backbone's config.json.
        name: the backbone's name, for the message.
    Raises:
        ValueError: it cannot run packed, its packed results differ, or a member depends on the others.
    """
    from lorae.backbone.loading import Backbone

    lm = make_twin(config)
    if lm is None:
        kind = type(meta_model(config))
        if not kind._supports_attention_backend:
            raise unsupported(name, kind.__name__, "its attention cannot be replaced by that to packed rows")
        return
    backbone = Backbone(name, lm, tokenizer=None)
    times = max(1, min(LONG, (most_tokens(config) or 100) // max(map(len, PATTERN))))
    check_packed(backbone, times)
    for method in methods:
        _check_stack(backbone, method, times)


def make_twin(config: dict[str, Any]) -> Any:
    """A random causal LM with the same settings, but small and with short windows; None if the settings do
    not allow a small one."""
    from lorae.backbone.loading import Backbone

    register_attention()
    try:
        small = _shrunk(meta_model(config).config)
        with torch.device("meta"):
            shape = auto_class(config).from_config(small)
        if sum(p.numel() for p in shape.parameters()) > MAX_PARAMETERS:
            return None
        with torch.random.fork_rng():
            torch.manual_seed(0)
            lm = auto_class(config).from_config(small, attn_implementation=ATTENTION, **PRECISE)
            for parameter in lm.parameters():
                if parameter.dim() > 1:  # as large as trained weights, so that differences show
                    torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
            _by_itself(Backbone("twin", lm.eval(), None), probes(small.vocab_size), "eager")
        return lm.requires_grad_(False)
    except (*FAILURES, ValueError):
        return None  # its sizes depend on each other in an unknown way


def _shrunk(config: Any) -> Any:
    """A transformers config with small sizes (under their common names) and short windows."""
    small = copy.deepcopy(config)
    heads, key_value = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    layers, few = min(MAX_LAYERS, config.num_hidden_layers), 4 if head_dim <= 128 else 2
    sizes = {
        "hidden_size": few * head_dim,
        "word_embed_proj_dim": few * head_dim,
        "num_attention_heads": few,
        "num_key_value_heads": {heads: few, 1: 1}.get(key_value, few // 2),
        "intermediate_size": 64,
        "moe_intermediate_size": 64,
        "ffn_dim": 64,
        "num_hidden_layers": layers,
        "vocab_size": min(128, config.vocab_size),
        "num_local_experts": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": WINDOW,
        "attention_chunk_size": WINDOW,
    }
    for name, size in sizes.items():
        if getattr(config, name, None):
            setattr(small, name, size)
    if types := getattr(config, "layer_types", None):
        small.layer_types = types[:layers]
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if isinstance(number := getattr(config, name, None), int):
            setattr(small, name, min(number, small.vocab_size - 1))
    return small


@torch.no_grad()
def _check_stack(backbone: Backbone, method: Method, times: int) -> None:
    """Compare the members of a stack with the same members alone."""
    from lorae.engine.adapters import Adapters
    from lorae.methods import Adapter, Lora

    if not isinstance(method, Adapter):
        return
    lora, keys = Lora(rank=2, targets=method.targets, b_std=0.5), (("twin", 0), ("twin", 1))
    vocabulary = backbone.lm.config.vocab_size
    rows = [probes(vocabulary), probes(vocabulary, times)]
    try:
        with Adapters(backbone, lora, keys):
            together = _last_hidden(backbone, rows)
        alone = []
        for key, of_member in zip(keys, rows):
            with Adapters(backbone, lora, [key]):
                alone.append(_last_hidden(backbone, [of_member]))
    except FAILURES as error:
        why = f"{method.targets} cannot be adapted in a stack ({error!r})"
        raise unsupported(backbone.name, type(backbone.lm).__name__, why) from error
    own = torch.cat(alone)
    if not (together - own).norm() <= 1e-4 * own.abs().max().clamp(min=1.0):
        why = f"a member that adapts {method.targets} depends on those beside it"
        raise unsupported(backbone.name, type(backbone.lm).__name__, why)
