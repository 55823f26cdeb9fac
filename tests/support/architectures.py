"""Every family of causal LM that lorae names, as a small random model."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lorae.methods import Lora
from lorae.sources import Files
from lorae.trial import AdamW, Budget, Trial

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "initializer_range": 0.2,
    "sliding_window": 5,  # of those that have one; prompts and options together are longer
}


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}


LLAMA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


ARCHITECTURES = {  # name: model_type, settings, adapted layers
    "llama": ("llama", {}, LLAMA_TARGETS),
    "llama-tied": ("llama", {"tie_word_embeddings": True}, LLAMA_TARGETS),
    "llama-bias": ("llama", {"attention_bias": True, "mlp_bias": True}, LLAMA_TARGETS),
    "llama3-rope": ("llama", {"rope_parameters": LLAMA3}, LLAMA_TARGETS),
    "qwen2": ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}, LLAMA_TARGETS),
    "qwen3": ("qwen3", {}, LLAMA_TARGETS),
    "qwen3-moe": (
        "qwen3_moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
        LLAMA_TARGETS[:4],
    ),
    "gemma": ("gemma", {}, LLAMA_TARGETS),
    "gemma2": ("gemma2", {}, LLAMA_TARGETS),
    "gemma3": ("gemma3_text", {}, LLAMA_TARGETS),
    "phi": ("phi", {}, ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")),
    "phi3": ("phi3", {}, ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
    "mistral": ("mistral", {}, LLAMA_TARGETS),
    "mixtral": ("mixtral", {"num_local_experts": 4}, LLAMA_TARGETS[:4]),
    "opt": ("opt", {"ffn_dim": 48}, ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")),
    "gpt-neox": ("gpt_neox", {}, ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")),
    "gpt2": ("gpt2", {}, ("c_attn", "c_fc", "c_proj")),
    "gpt-bigcode": ("gpt_bigcode", {}, ("c_attn", "c_fc", "c_proj")),
    "smollm3": ("smollm3", {}, LLAMA_TARGETS),
    "olmo": ("olmo", {}, LLAMA_TARGETS),
    "olmo2": ("olmo2", {}, LLAMA_TARGETS),
    "starcoder2": ("starcoder2", {}, ("q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj")),
    "glm": ("glm", {}, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")),
    "persimmon": ("persimmon", {}, ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")),
    "seed-oss": ("seed_oss", {}, LLAMA_TARGETS),
}


def random_trial(tiny_trial, tiny_llama: Files, folder: Path, architecture: str) -> Trial:
    """On a random model of an architecture, with the tiny Llama's tokenizer."""
    model_type, settings, targets = ARCHITECTURES[architecture]
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **(SIZES | settings))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for file in Path(tiny_llama.path).glob("tokenizer*"):
        shutil.copy(file, folder)
    method = Lora(rank=4, alpha=8, targets=targets)
    optimizer, budget = AdamW(lr=5e-3), Budget(batch_size=4, steps=6)
    return tiny_trial(backbone=Files(str(folder)), method=method, optimizer=optimizer, budget=budget)
