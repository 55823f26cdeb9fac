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

from lorae.backbone.encoders import Inputs, body_only, read_inputs
from lorae.backbone.packing import ATTENTION, Packing, register_attention
from lorae.backbone.past import Past
from lorae.backbone.processes import Ranks
from lorae.backbone.products import onednn_is_better, use_onednn
from lorae.backbone.self_check import check_packed, check_pooled, unsupported
from lorae.backbone.tokens import read_tokenizer
from lorae.backbone.weights import LOADING, check_loaded, quiet_transformers, weight_files
from lorae.shapes import BERT_LIKE, auto_class, kind_of, linears_of
from lorae.sources import Source, backbone_config, backbone_folder

if TYPE_CHECKING:
    from lorae.engine.adapters import Adapters

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
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, attention: Packing | Past
    ) -> torch.Tensor:
        """Last hidden states (M, S, D) after the final norm, of packed tokens (M, S), or of the next token of
        S texts."""
        how = {"packing" if isinstance(attention, Packing) else "past": attention}
        return self.lm.base_model(
            input_ids=input_ids, position_ids=position_ids, use_cache=False, **how
        ).last_hidden_state

    def answer_logits(self, hidden_ND: torch.Tensor, answer_ids_NC: torch.Tensor) -> torch.Tensor:
        """Logits (N, C) of each row's own answer tokens, in fp32."""
        rows_NCD, bias_NC = self.answer_rows(answer_ids_NC)
        logits_NC = torch.einsum("nd,ncd->nc", hidden_ND.float(), rows_NCD)
        return self.capped(logits_NC if bias_NC is None else logits_NC + bias_NC)

    def answer_rows(self, answer_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Rows (..., D) of the output head for these tokens (...), and their bias if it has one, in fp32."""
        head = self.lm.get_output_embeddings()
        with self.gathered(list(head.parameters())):
            bias = None if head.bias is None else head.bias[answer_ids].float()
            return head.weight[answer_ids].float(), bias

    def token_log_probs(self, hidden_KD: torch.Tensor, tokens_K: torch.Tensor) -> torch.Tensor:
        """Log-probability (K,) of each token over the full vocabulary, in fp32."""
        logits_KV = self.capped(self.vocabulary(hidden_KD).float())
        return -nn.functional.cross_entropy(logits_KV, tokens_K, reduction="none")

    def vocabulary(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (..., V) of all tokens after hidden states (..., D), in their dtype and not yet `capped`."""
        return self.lm.get_output_embeddings()(hidden)

    def capped(self, logits: torch.Tensor) -> torch.Tensor:
        """The output head's logits as the model caps them."""
        cap = getattr(self.lm.config, "final_logit_softcapping", None)  # Gemma 2
        return torch.tanh(logits / cap) * cap if cap else logits


@functools.lru_cache(maxsize=1)  # one backbone per process: a worker trains one stack after another on it
def load_backbone(source: Source, precision: Precision, device: str, recompute: bool = False) -> Backbone:
    """The backbone on `device`, frozen, without dropout.

    Args:
        recompute: compute a layer's activations again in the backward pass instead of keeping them.
    Raises:
        ValueError: files are missing or damaged or do not hold what the config names, or packed rows do not
            give its logits (an architecture whose head has a scaling that lorae does not know).
    """
    backbone = read_backbone(source, precision, device, recompute)
    check_packed(backbone)
    if backbone.is_encoder and kind_of(backbone.tokenizer.config) == "text":
        check_pooled(backbone)
    return backbone


def set_matmul_precision(precision: Precision, device: str) -> None:
    """Let fp32 products on a GPU use TF32, unless all is to be fp32: those of the adapters beside a bf16
    backbone. On a CPU let the faster library compute those of an fp32 backbone."""
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
    else:
        use_onednn(precision == "fp32" and onednn_is_better())


def read_backbone(source: Source, precision: Precision, device: str, recompute: bool) -> Backbone:
    """What `load_backbone` returns, before it is checked."""
    folder, config = backbone_folder(source), backbone_config(source)
    causal = kind_of(config) == "causal"
    register_attention()
    packs = causal or config["model_type"] in BERT_LIKE
    # The backward pass of flash attention on a CPU is slower than that of the eager one for short sequences.
    attention = ATTENTION if packs else "eager" if device == "cpu" else "sdpa"
    files = weight_files(folder)
    try:
        with quiet_transformers():
            lm, info = auto_class(config).from_pretrained(
                folder,
                dtype=DTYPES[precision],
                attn_implementation=attention,
                trust_remote_code=False,
                **LOADING,
            )
    except KeyError as error:  # of a class that looks its attention up
        why = f"it cannot be run on packed rows ({error!r})"
        raise unsupported(source.label, config["architectures"][0], why) from error
    if causal:
        tokenizer: Any = read_tokenizer(folder)
    else:
        tokenizer = read_inputs(folder, config)
        body_only(lm)
    check_loaded(lm, info, files, is_encoder=not causal)
    fuse_kernels(lm)
    if recompute:
        recompute_layers(lm)
    return Backbone(source.label, lm.to(torch.device(device)).eval().requires_grad_(False), tokenizer)


def fuse_kernels(lm: nn.Module) -> None:
    """Let plain RMS norms, and GPT-2's GELU, be one kernel each, which also keeps less for the backward
    pass."""
    for module in lm.modules():
        if type(module).__name__.endswith("RMSNorm") and is_plain_norm(type(module)):
            module.forward = functools.partial(_rms_norm, module)
        elif type(module).__name__ == "NewGELUActivation":
            module.forward = functools.partial(nn.functional.gelu, approximate="tanh")


@functools.cache
def is_plain_norm(kind: type[nn.Module]) -> bool:
    """Whether modules of this class compute x / rms(x) * weight, tried on one of them."""
    try:
        norm = kind(8)
        norm.weight.data = torch.linspace(-1, 1, 8)  # type: ignore[union-attr]
        x = torch.arange(16.0).view(2, 8)
        return torch.allclose(norm(x), _rms_norm(norm, x))
    except (TypeError, AttributeError):  # it takes or has something else
        return False


def _rms_norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    return nn.functional.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def recompute_layers(lm: nn.Module) -> None:
    """Keep of each layer only its input for the backward pass. (The model's own switch acts in training mode
    only, which would turn its dropout on.)"""
    from transformers.modeling_layers import GradientCheckpointingLayer

    for layer in lm.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
