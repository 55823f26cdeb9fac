"""Members as PEFT adapters: the files that `peft.PeftModel.from_pretrained` and vLLM load, and back."""

from __future__ import annotations

import json
from typing import Any

import safetensors.torch
import torch

from lorae.adapters import State
from lorae.methods import Lora, Method
from lorae.sources import Hub, Source
from lorae.store import ADAPTER_CONFIG, WEIGHTS

# our factor -> PEFT's name of it
_NAMES = {"A": "lora_A.weight", "B": "lora_B.weight", "d": "vera_lambda_d", "b": "vera_lambda_b"}
_FACTORS = {name: factor for factor, name in _NAMES.items()}
_PREFIX = "base_model.model."


def adapter_files(
    method: Method,
    backbone: Source,
    state: State,
    projections: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> dict[str, bytes]:
    """adapter_config.json and adapter_model.safetensors of one member.

    Args:
        state: its parameters, "<layer>.<factor>".
        projections: for VeRA the frozen A (R, D) and B (E, R), which PEFT stores beside the vectors.
    """
    tensors = {}
    for name, value in state.items():
        layer, factor = name.rsplit(".", 1)
        tensors[f"{_PREFIX}{layer}.{_NAMES[factor]}"] = value.contiguous()
    if projections:
        tensors["base_model.vera_A"], tensors["base_model.vera_B"] = projections
    weights = safetensors.torch.save(tensors, metadata={"format": "pt"})
    return {ADAPTER_CONFIG: json.dumps(_config(method, backbone), indent=1).encode(), WEIGHTS: weights}


def read_state(weights: bytes) -> State:
    """Parameters "<layer>.<factor>" from the content of adapter_model.safetensors."""
    state = {}
    for name, value in safetensors.torch.load(weights).items():
        for peft_name, factor in _FACTORS.items():
            if name.endswith("." + peft_name):
                layer = name.removeprefix(_PREFIX).removesuffix("." + peft_name)
                state[f"{layer}.{factor}"] = value
    return state


def _config(method: Method, backbone: Source) -> dict[str, Any]:
    common = {
        "base_model_name_or_path": backbone.id if isinstance(backbone, Hub) else backbone.label,
        "revision": backbone.revision if isinstance(backbone, Hub) else None,
        "task_type": "CAUSAL_LM",
        "r": method.rank,
        "target_modules": list(method.targets),
        "bias": "none",
        "inference_mode": True,
    }
    if isinstance(method, Lora):
        return common | {"peft_type": "LORA", "lora_alpha": method.alpha, "lora_dropout": 0.0}
    return common | {
        "peft_type": "VERA",
        "projection_prng_key": 0,
        "save_projection": True,
        "d_initial": method.d_init,
        "vera_dropout": 0.0,
    }
