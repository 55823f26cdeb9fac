"""Shapes of a backbone's linear layers from its config.json alone, so that a plan needs neither weights nor
torch."""

from __future__ import annotations

from typing import Any

LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3", "olmo2")


def linear_shapes(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Path of every `nn.Linear` below the output head -> (d_in, d_out), in the model's order.

    Llama-like and GPT-NeoX models are written out here; any other causal LM is built without weights on
    torch's meta device.
    """
    kind = config.get("model_type")
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
    return _meta_shapes(config)


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


def _per_layer(
    config: dict[str, Any], prefix: str, layer: dict[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    return {
        f"{prefix}.{i}.{name}": shape
        for i in range(config["num_hidden_layers"])
        for name, shape in layer.items()
    }


def _meta_shapes(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {k: v for k, v in config.items() if k != "model_type"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **settings))
    return linears_of(model)


def linears_of(model: Any) -> dict[str, tuple[int, int]]:
    """Path of every `nn.Linear` of a loaded causal LM except its output head -> (d_in, d_out)."""
    import torch

    head = model.get_output_embeddings()
    return {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


def num_backbone_parameters(config: dict[str, Any]) -> int:
    """Numbers in the linear layers, the embedding and, if it is not tied, the output head."""
    linears = sum(d_in * d_out for d_in, d_out in linear_shapes(config).values())
    embedding = config["vocab_size"] * config["hidden_size"]
    return linears + embedding * (1 if config.get("tie_word_embeddings") else 2)
