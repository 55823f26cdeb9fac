"""The kind of a backbone, and the shapes of its linear layers, from its config.json alone, so that a plan
needs neither weights nor torch."""

from __future__ import annotations

from typing import Any, Literal

from lorae.untrusted import count, text_if_any

Kind = Literal["causal", "text", "image", "audio"]  # a causal LM, or an encoder of one modality

LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3", "olmo2")
VIT_LIKE = {"vit": "vit", "deit": "deit", "audio-spectrogram-transformer": "audio_spectrogram_transformer"}
# GPT-2's own names -> the common names
GPT2_NAMES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "n_inner": "intermediate_size",
}
BERT_LIKE = {"bert": "bert", "roberta": "roberta", "xlm-roberta": "roberta", "camembert": "roberta"}
SAME_INPUT = {  # layers that read the same tensor
    **dict.fromkeys(("k_proj", "v_proj"), "q_proj"),
    **dict.fromkeys(("key", "value"), "query"),
    **dict.fromkeys(("k_lin", "v_lin"), "q_lin"),
    "up_proj": "gate_proj",
}


def _size(value: Any) -> bool:
    """A positive integer, a list with one per layer, or nothing."""
    sizes = value if type(value) is list else [] if value is None else [value]
    return all(count(size) and size > 0 for size in sizes)


# What is read from a config.json here and elsewhere; a name that the kind of model needs may still be missing
CONFIG = {
    "model_type": text_if_any,
    "architectures": lambda value: value is None or (type(value) is list and all(map(text_if_any, value))),
    **dict.fromkeys(
        (
            *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
            *("intermediate_size", "vocab_size", "max_position_embeddings", "num_channels", "max_length"),
            *("num_mel_bins", "frequency_stride", "time_stride", *GPT2_NAMES),
        ),
        _size,
    ),
}
_HEADS: dict[str, Kind] = {
    "ForImageClassification": "image",
    "ForAudioClassification": "audio",
    "ForSequenceClassification": "text",
    "ForMaskedLM": "text",
    "ForCausalLM": "causal",
    "LMHeadModel": "causal",
}


def with_common_names(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json with the common names that are read here added to the model's own: DistilBERT's `dim` is
    `hidden_size`. transformers is asked only for models that are not written out here."""
    model = config.get("model_type", "")
    if model == "gpt2":
        return {"tie_word_embeddings": True} | {
            GPT2_NAMES.get(name, name): value for name, value in config.items()
        }
    if model in (*LLAMA_LIKE, "gpt_neox", *VIT_LIKE, *BERT_LIKE):
        return config
    from transformers import CONFIG_MAPPING

    names = CONFIG_MAPPING[model].attribute_map if model in CONFIG_MAPPING else {}
    return config | {common: config[own] for common, own in names.items() if own in config}


def kind_of(config: dict[str, Any]) -> Kind:
    """Whether a backbone is a causal LM, or an encoder of which modality. For an architecture that is not
    written out here, the checkpoint's class decides; a decoder with any head is a causal LM.

    Raises:
        ValueError: the class does not tell.
    """
    model = config.get("model_type")
    if model in BERT_LIKE:
        return "text"
    if model in VIT_LIKE:
        return "audio" if model == "audio-spectrogram-transformer" else "image"
    if model in (*LLAMA_LIKE, "gpt_neox", "gpt2"):
        return "causal"
    architecture = (config.get("architectures") or [""])[0]
    for suffix, kind in _HEADS.items():
        if architecture.endswith(suffix):
            return "causal" if kind == "text" and _is_decoder(model) else kind
    raise ValueError(
        f"a backbone of model_type {model!r} with the architecture {architecture!r} may be anything; its "
        f"config.json must name one that ends in {', '.join(_HEADS)}; take such a checkpoint, or name its "
        "class for that in a copy"
    )


def _is_decoder(model_type: str | None) -> bool:
    """Whether transformers knows a model as a causal LM and not as a masked LM: whatever the checkpoint's
    head, a token does not attend to later tokens."""
    from transformers.models.auto import modeling_auto as known

    masked = known.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return model_type in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and model_type not in masked


def linear_shapes(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Path of every linear layer below the output head -> (d_in, d_out), in the model's order.

    Llama-like, GPT-NeoX, GPT-2, ViT-like and BERT-like models are written out here; any other model is built
    without weights on torch's meta device. An encoder's pooler is left out, as our heads do not use it.
    """
    kind = config.get("model_type")
    if kind in VIT_LIKE:
        return _per_layer(config, f"{VIT_LIKE[kind]}.layers", _vit_layer(config))
    if kind in BERT_LIKE:
        return _per_layer(config, f"{BERT_LIKE[kind]}.encoder.layer", _bert_layer(config))
    if kind in LLAMA_LIKE:
        return _per_layer(config, "model.layers", _llama_layer(config))
    if kind == "gpt_neox":
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        layer = {
            "attention.query_key_value": (hidden, 3 * hidden),
            "attention.dense": (hidden, hidden),
            "mlp.dense_h_to_4h": (hidden, inner),
            "mlp.dense_4h_to_h": (inner, hidden),
        }
        return _per_layer(config, "gpt_neox.layers", layer)
    if kind == "gpt2":
        hidden = config["hidden_size"]
        inner = config.get("intermediate_size") or 4 * hidden
        layer = {
            "attn.c_attn": (hidden, 3 * hidden),
            "attn.c_proj": (hidden, hidden),
            "mlp.c_fc": (hidden, inner),
            "mlp.c_proj": (inner, hidden),
        }
        return _per_layer(config, "transformer.h", layer)
    return linears_of(meta_model(config))


def _llama_layer(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    key_value = (config.get("num_key_value_heads") or heads) * head_dim
    return {
        "self_attn.q_proj": (hidden, heads * head_dim),
        "self_attn.k_proj": (hidden, key_value),
        "self_attn.v_proj": (hidden, key_value),
        "self_attn.o_proj": (heads * head_dim, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }


def _vit_layer(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    attention = {f"attention.{name}_proj": (hidden, hidden) for name in "qkvo"}
    return attention | {"mlp.fc1": (hidden, inner), "mlp.fc2": (inner, hidden)}


def _bert_layer(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    square = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    return dict.fromkeys(square, (hidden, hidden)) | {
        "intermediate.dense": (hidden, inner),
        "output.dense": (inner, hidden),
    }


def _per_layer(
    config: dict[str, Any], prefix: str, layer: dict[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    return {
        f"{prefix}.{i}.{name}": shape
        for i in range(config["num_hidden_layers"])
        for name, shape in layer.items()
    }


def meta_model(config: dict[str, Any]) -> Any:
    """The backbone that a config describes on torch's meta device, without weights."""
    import torch
    from transformers import AutoConfig

    settings = {k: v for k, v in config.items() if k != "model_type"}
    with torch.device("meta"):
        return auto_class(config).from_config(AutoConfig.for_model(config["model_type"], **settings))


def auto_class(config: dict[str, Any]) -> Any:
    """The transformers class that builds a backbone; an encoder's own classifier is not used."""
    import transformers

    return {
        "causal": transformers.AutoModelForCausalLM,
        "text": transformers.AutoModelForSequenceClassification,
        "image": transformers.AutoModelForImageClassification,
        "audio": transformers.AutoModelForAudioClassification,
    }[kind_of(config)]


def linears_of(model: Any) -> dict[str, tuple[int, int]]:
    """Path of every linear layer of a loaded backbone below its output head -> (d_in, d_out): every
    `nn.Linear`, and GPT-2's `Conv1D`, a linear layer with a transposed weight."""
    import torch
    from transformers.pytorch_utils import Conv1D

    head, body = model.get_output_embeddings(), f"{model.base_model_prefix}."
    found: Any = {
        name: (m.nx, m.nf) if isinstance(m, Conv1D) else (m.in_features, m.out_features)
        for name, m in model.named_modules()
        if isinstance(m, (torch.nn.Linear, Conv1D))
        and m is not head
        and (head is not None or (name.startswith(body) and not name.startswith(f"{body}pooler.")))
    }
    return found


def has_transposed_weights(config: dict[str, Any]) -> bool:
    """Whether the weights of the linear layers are stored as (d_in, d_out)."""
    return config["model_type"] == "gpt2"


def num_backbone_parameters(config: dict[str, Any]) -> int:
    """Parameters of the linear layers and embeddings, and of a causal LM's output head if it is not tied."""
    linears = sum(d_in * d_out for d_in, d_out in linear_shapes(config).values())
    kind, hidden = kind_of(config), config["hidden_size"]
    if kind == "causal":
        positions = config["max_position_embeddings"] if config["model_type"] == "gpt2" else 0
        tokens = config["vocab_size"] * (1 if config.get("tie_word_embeddings") else 2)
        return linears + hidden * (tokens + positions)
    if kind == "text":
        return linears + hidden * (config["vocab_size"] + config.get("max_position_embeddings", 0))
    return linears + hidden * (patch_values(config) + num_tokens(config))


def patch_values(config: dict[str, Any]) -> int:
    """Values in a patch of an image or spectrogram."""
    height, width = _pair(config["patch_size"])
    return height * width * (config.get("num_channels", 3) if kind_of(config) == "image" else 1)


def num_prefix_tokens(config: dict[str, Any]) -> int:
    """Tokens of an image or spectrogram before its patches: the class token, and the distillation token of
    DeiT and AST."""
    return 2 if config["model_type"] in ("deit", "audio-spectrogram-transformer") else 1


def num_pooled_tokens(config: dict[str, Any]) -> int:
    """Tokens whose mean `Head("cls")` reads, as the model's own classifier does: the class token; for AST
    and for DeiT with its teacher's head both prefix tokens."""
    both = (config.get("architectures") or [""])[0].endswith("WithTeacher")
    return 2 if both or config["model_type"] == "audio-spectrogram-transformer" else 1


def classifier_path(config: dict[str, Any], pool: str) -> str | None:
    """The linear layer in transformers' classification class that corresponds to a member's head, None if
    that class computes its logits differently."""
    if pool != "cls" or config["model_type"] not in VIT_LIKE:
        return None
    if config["model_type"] == "audio-spectrogram-transformer":
        return "classifier.dense"
    return "classifier" if num_pooled_tokens(config) == 1 else None


def num_tokens(config: dict[str, Any]) -> int:
    """Tokens of every image or spectrogram: patches and prefix; 0 for texts, whose lengths differ."""
    kind = kind_of(config)
    if kind == "image":
        size, patch = _pair(config["image_size"]), _pair(config["patch_size"])
        return (size[0] // patch[0]) * (size[1] // patch[1]) + num_prefix_tokens(config)
    if kind == "audio":
        patch = config["patch_size"]
        bins = (config["num_mel_bins"] - patch) // config["frequency_stride"] + 1
        frames = (config["max_length"] - patch) // config["time_stride"] + 1
        return bins * frames + num_prefix_tokens(config)
    return 0


def most_tokens(config: dict[str, Any]) -> int | None:
    """Tokens of the longest text that a backbone can read, None if its config does not say."""
    longest = config.get("max_position_embeddings")
    limits = [longest and longest - first_position(config), alike_tokens(config)]
    return min(filter(None, limits), default=None)


def alike_tokens(config: dict[str, Any]) -> int | None:
    """Tokens of the longest text whose result does not depend on other texts in the batch, None = no limit.
    Beyond it, the longest text sets the rotary frequencies: LongRoPE (arXiv:2402.13753), dynamic NTK in
    transformers."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    ropes = [found, *(value for value in found.values() if isinstance(value, dict))]
    kinds = {str(rope.get("rope_type") or rope.get("type")) for rope in ropes}
    longest, limits = config.get("max_position_embeddings"), []
    if kinds & {"longrope", "su"}:
        originals = [place.get("original_max_position_embeddings") for place in (config, *ropes)]
        limits.append(min(filter(None, originals), default=longest))
    if any("dynamic" in kind for kind in kinds):
        limits.append(longest)
    return min(filter(None, limits), default=None)


def first_position(config: dict[str, Any]) -> int:
    """Position of a text's first token; RoBERTa's positions begin after the padding token's."""
    return config.get("pad_token_id", 1) + 1 if BERT_LIKE.get(config["model_type"]) == "roberta" else 0


def _pair(size: int | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
