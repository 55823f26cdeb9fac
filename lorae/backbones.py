"""The frozen pre-trained model: loading, hidden states, and class logits from the rows of its output head."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lorae.encoders import Inputs, read_inputs
from lorae.ranks import Ranks
from lorae.shapes import auto_class, kind_of, linears_of
from lorae.sources import Source, backbone_config, backbone_folder

if TYPE_CHECKING:
    from lorae.adapters import Adapters

Precision = Literal["fp32", "bf16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(eq=False)
class Backbone:
    """A frozen causal LM or encoder on one device, or partitioned over ranks.

    Attributes:
        tokenizer: of a causal LM; the `Inputs` of an encoder.
        ranks: the processes that run it together, each on its share of the rows.
        gathered: context in which parameters that are partitioned over the ranks are whole.
        inserted: the adapters of a stack that are in it now.
    """

    name: str
    lm: Any
    tokenizer: Any
    ranks: Ranks = Ranks()
    gathered: Callable[[list[nn.Parameter]], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    inserted: Adapters | None = field(default=None, init=False)

    @property
    def num_members(self) -> int:
        """Members whose rows a batch holds: those of the inserted stack, or the backbone itself."""
        return self.inserted.num_members if self.inserted else 1

    @property
    def device(self) -> torch.device:
        return next(self.lm.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.lm.parameters()).dtype

    @property
    def is_encoder(self) -> bool:
        """Whether members have a classification head of their own on it."""
        return isinstance(self.tokenizer, Inputs)

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        return linears_of(self.lm)

    def hidden(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Last hidden states (rows, T, D) after the final norm.

        Without a mask rows are right-padded and attention is causal, so real tokens never see padding.

        Args:
            input_ids: (rows, T).
            position_ids: (rows, T), or None for 0..T-1.
            mask: additive attention mask (rows, 1, T, T), or None for causal.
        """
        attention: Any = mask
        kinds = getattr(self.lm.config, "layer_types", None)
        if mask is not None and kinds:
            attention = dict.fromkeys(kinds, mask)
        return self.lm.base_model(
            input_ids=input_ids, position_ids=position_ids, attention_mask=attention, use_cache=False
        ).last_hidden_state

    def answer_logits(self, hidden_ND: torch.Tensor, answer_ids_NC: torch.Tensor) -> torch.Tensor:
        """Logits (N, C) of each row's own answer tokens, in fp32."""
        head = self.lm.get_output_embeddings()
        with self.gathered(list(head.parameters())):
            rows_NCD = head.weight[answer_ids_NC].float()
            bias_NC = 0.0 if head.bias is None else head.bias[answer_ids_NC].float()
        return self._capped(torch.einsum("nd,ncd->nc", hidden_ND.float(), rows_NCD) + bias_NC)

    def token_log_probs(self, hidden_KD: torch.Tensor, tokens_K: torch.Tensor) -> torch.Tensor:
        """Log-probability (K,) of each token over the full vocabulary, in fp32."""
        logits_KV = self._capped(self.lm.get_output_embeddings()(hidden_KD).float())
        return -nn.functional.cross_entropy(logits_KV, tokens_K, reduction="none")

    def _capped(self, logits: torch.Tensor) -> torch.Tensor:
        cap = getattr(self.lm.config, "final_logit_softcapping", None)  # Gemma 2
        return torch.tanh(logits / cap) * cap if cap else logits


@functools.lru_cache(maxsize=1)  # one backbone per process: a worker trains one stack after another on it
def load_backbone(source: Source, precision: Precision, device: str, recompute: bool = False) -> Backbone:
    """The backbone on `device`, frozen, without dropout.

    Args:
        recompute: compute a layer's activations again in the backward pass instead of keeping them.
    Raises:
        ValueError: files are missing, or its logits are not those of its output head (an architecture whose
            head has a scaling that lorae does not know).
    """
    backbone = read_backbone(source, precision, device, recompute)
    check_head(backbone)
    return backbone


def read_backbone(source: Source, precision: Precision, device: str, recompute: bool) -> Backbone:
    """What `load_backbone` returns, before its head is checked."""
    from transformers import AutoTokenizer

    folder, config = backbone_folder(source), backbone_config(source)
    # The backward pass of CPU flash attention is slower than the eager one for the short sequences of
    # classification.
    attention = "eager" if device == "cpu" else "sdpa"
    lm: Any = auto_class(config).from_pretrained(
        folder,
        dtype=DTYPES[precision],
        attn_implementation=attention,
        trust_remote_code=False,
        use_safetensors=True,
    )
    if kind_of(config) == "causal":
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    else:
        tokenizer = read_inputs(folder, config)
    if recompute:
        recompute_layers(lm)
    return Backbone(source.label, lm.to(torch.device(device)).eval().requires_grad_(False), tokenizer)


def recompute_layers(lm: nn.Module) -> None:
    """Keep of each layer only its input for the backward pass. (The model's own switch acts in training mode
    only, which would turn its dropout on.)"""
    from transformers.modeling_layers import GradientCheckpointingLayer

    for layer in lm.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)


@torch.no_grad()
def check_head(backbone: Backbone) -> None:
    """Compare `answer_logits` with a causal LM's own logits on one short row."""
    if backbone.is_encoder:
        return
    ids = torch.arange(1, 5, device=backbone.device)[None]
    own = backbone.lm(input_ids=ids, use_cache=False).logits[:, -1, :8].float()
    ours = backbone.answer_logits(backbone.hidden(ids)[:, -1], torch.arange(8, device=backbone.device)[None])
    scale = own.abs().max().clamp(min=1.0)
    if not torch.allclose(own, ours, atol=float(scale) * (1e-4 if backbone.dtype == torch.float32 else 2e-2)):
        raise ValueError(
            f"{backbone.name}: the logits of {type(backbone.lm).__name__} are not its output "
            "head's times the last hidden state; this architecture is not supported"
        )
