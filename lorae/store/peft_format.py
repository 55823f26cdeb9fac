"""Members as PEFT adapters: the files that `peft.PeftModel.from_pretrained` and vLLM load, and back.

PEFT knows LoRA and VeRA. Parameters of other methods are stored under our own names in the same two files,
and adapter_config.json then has no `peft_type`; BLoB is stored as LoRA with the mean, and G in a third file.

`read_update` needs no torch, so that an analysis can read stored weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy

from lorae import seeds
from lorae.identity import canonical, spec_of
from lorae.methods import METHODS, Method, target_modules
from lorae.shapes import has_transposed_weights
from lorae.sources import Hub, Source, backbone_config
from lorae.store.names import ADAPTER_CONFIG, POSTERIOR, WEIGHTS, member_folder, snapshot_file
from lorae.store.store import Store
from lorae.tasks.scoring import Scoring
from lorae.untrusted import REPEAT, check, count, json_object, number, text_if_any

if TYPE_CHECKING:
    import torch

    from lorae.engine.adapters import State

# PEFT's name of a factor -> ours
_FACTORS = {name: factor for method in METHODS for factor, name in method.peft_names.items()}
_PREFIX = "base_model.model."
_HEADS = ("head", f"{_PREFIX}classifier", f"{_PREFIX}classifier.dense")  # possible paths of a head


@dataclass(frozen=True, eq=False)
class Update:
    """What a member adds to the backbone's weights.

    Args:
        factors: layer -> B (d_out, R) and A (R, d_in), the layer's update dW = B A. They are computed on
            demand, as VeRA's are as large as the weights.
    """

    layers: tuple[str, ...]
    factors: Callable[[str], tuple[np.ndarray, np.ndarray]]


def adapter_files(
    method: Method,
    backbone: Source,
    state: State,
    frozen: Sequence[torch.Tensor] = (),
    scoring: Scoring | None = None,
) -> dict[str, bytes]:
    """adapter_config.json and adapter_model.safetensors of one member; for a Bayesian member also
    posterior.safetensors.

    A classification head is stored as the classifier of transformers' own class, with which PEFT makes the
    same predictions as we do; if that class computes its logits differently (all texts, mean pooling), the
    head is stored under "head.".

    Args:
        state: the member's parameters, named as by `Adapters.state`.
        frozen: tensors from the method's `draw_frozen`, which PEFT stores with the adapter.
    """
    if not method.is_peft:
        content = {"lorae_method": canonical(method), **_base(backbone)}
        return {ADAPTER_CONFIG: json.dumps(content, indent=1).encode(), WEIGHTS: state_bytes(state)}
    tensors, layers, classifier = {}, {}, None
    if scoring and scoring.trains_head:
        classifier = scoring.peft_classifier(backbone_config(backbone))
    others = {}  # parameters that PEFT has no place for
    for name, value in state.items():
        layer, factor = name.rsplit(".", 1)
        if layer == "head":
            name = f"{_PREFIX}{classifier}.{factor}" if classifier else name
        elif factor in method.peft_names:
            layers[layer] = None
            name = f"{_PREFIX}{layer}.{method.peft_names[factor]}"
        else:
            others[name] = value
            continue
        tensors[name] = value.contiguous().numpy()
    if classifier == "classifier.dense":  # AST's, after a norm that our features already include
        width = state["head.weight"].shape[1]
        for name, value in (("weight", np.ones), ("bias", np.zeros)):
            tensors[f"{_PREFIX}classifier.layernorm.{name}"] = value(width, np.float32)
    tensors |= {name: value.contiguous().numpy() for name, value in zip(method.peft_frozen, frozen)}
    weights = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    config = _config(method, backbone, list(layers))
    if scoring and scoring.trains_head:
        config |= {"task_type": None, "modules_to_save": ["classifier"] if classifier else None}
    files = {ADAPTER_CONFIG: json.dumps(config, indent=1).encode(), WEIGHTS: weights}
    return files | ({POSTERIOR: state_bytes(others)} if others else {})


def state_bytes(state: State) -> bytes:
    """Parameters under our own names as a safetensors file; `read_state` reads it."""
    return safetensors.numpy.save({name: value.contiguous().numpy() for name, value in state.items()})


def read_state(weights: bytes) -> State:
    """Parameters, named as by `Adapters.state`, from the content of adapter_model.safetensors.

    Raises:
        ValueError: the content is not in that format.
    """
    import torch

    tensors = read_tensors(weights)
    if any(name.startswith(_PREFIX) for name in tensors):
        places = [(f"{path}.{name}", f"head.{name}") for path in _HEADS for name in ("weight", "bias")]
        head = {ours: tensors[stored] for stored, ours in places if stored in tensors}
        tensors = _parameters(weights) | head
    return {name: torch.from_numpy(value) for name, value in tensors.items()}


def read_stages(store: Store, members: Sequence[str]) -> list[list[State]]:
    """Parameters of stored members of one recipe, at each of their snapshots and at the end.

    Raises:
        ValueError: a file is missing, damaged or not in that format.
    """
    files = store.files(member_folder(members[0]))
    snapshots = sum(name.startswith("snapshots/") for name in files)
    last = [WEIGHTS, POSTERIOR] if POSTERIOR in files else [WEIGHTS]

    def state(member: str, names: Sequence[str]) -> State:
        parts = (read_state(store.read(member_folder(member), name)) for name in names)
        return {name: value for part in parts for name, value in part.items()}

    stages = [*([snapshot_file(k)] for k in range(snapshots)), last]
    return [[state(m, names) for m in members] for names in stages]


def _positive(value: Any) -> bool:
    """A positive integer."""
    return count(value) and value > 0


def read_update(
    config: bytes,
    weights: bytes,
    d_in: Callable[[str], int] | None = None,
    init: seeds.Key | None = None,
) -> Update:
    """A member's update from the contents of its adapter_config.json and adapter_model.safetensors.

    Args:
        d_in: layer -> width of its input, used only for VeRA. VeRA's layers share one A with the largest
            width and store no widths; without `d_in` all are assumed to have the largest.
        init: the member's init stream, used only if its matrices are drawn from it and not stored.
    Raises:
        ValueError: neither LoRA nor VeRA, or VeRA without `d_in` on layers whose widths may differ.
    """
    settings = json_object(config, ADAPTER_CONFIG, {"peft_type": text_if_any})
    if settings.get("peft_type") is None:
        method = settings.get("lorae_method")
        if init and isinstance(method, dict):
            return _drawn_update(spec_of(method, METHODS), read_tensors(weights), d_in, init)
        kind = method.get("type") if isinstance(method, dict) else method
        raise ValueError(f"a member of {kind} has no low-rank update; those of LoRA and VeRA have one")
    kind, parameters = settings["peft_type"], _parameters(weights)
    layers = tuple(sorted({name.rpartition(".")[0] for name in parameters}))
    method = next((method for method in METHODS if method.peft_type == kind), None)
    if method is None:
        raise ValueError(f"an adapter of type {kind} has no low-rank update; allowed are LORA and VERA")
    if kind == "LORA":
        check(settings, ADAPTER_CONFIG, {"lora_alpha": number, "r": _positive})
    if not layers:
        raise ValueError(f"{WEIGHTS} is no adapter: it has no layer that {kind} adapts; {REPEAT}")
    tensors, factors = read_tensors(weights), method.peft_names
    lacking = [
        f"{layer}.{factors[f]}" for layer in layers for f in factors if f"{layer}.{f}" not in parameters
    ]
    if lacking := [*lacking, *(name for name in method.peft_frozen if name not in tensors)]:
        raise ValueError(f"{WEIGHTS} is no adapter: it lacks {lacking[0]}; {REPEAT}")
    return Update(layers, method.update_reader(settings, tensors, parameters, d_in))


def _drawn_update(
    method: Method, tensors: dict[str, np.ndarray], d_in: Callable[[str], int] | None, init: seeds.Key
) -> Update:
    """The update of a member that is stored without its matrices."""
    if d_in is None:
        raise ValueError(
            "a member's matrices are drawn for each layer, whose width is not stored; its update needs the "
            "backbone's weights"
        )
    zero = f".{method.zero_factor}"  # as long as the layer's output
    sizes = {name.removesuffix(zero): len(v) for name, v in sorted(tensors.items()) if name.endswith(zero)}
    layers = {name: (d_in(name), d_out) for name, d_out in sizes.items()}
    return Update(tuple(layers), method.drawn_update(tensors, layers, tuple(init)))


def read_tensors(weights: bytes, where: str = WEIGHTS) -> dict[str, np.ndarray]:
    """Every tensor of adapter_model.safetensors, by its name there.

    Args:
        where: the file's name, for the message.
    Raises:
        ValueError: the content is not in that format.
    """
    try:
        return safetensors.numpy.load(weights)
    except (safetensors.SafetensorError, KeyError, TypeError) as error:  # the latter: an unknown dtype
        raise ValueError(f"{where} is no adapter: {error}; delete it and repeat the sweep") from error


def _parameters(weights: bytes) -> dict[str, np.ndarray]:
    """Trained factors "<layer>.<factor>" of adapter_model.safetensors."""
    found = {}
    for name, value in read_tensors(weights).items():
        for peft_name, factor in _FACTORS.items():
            if name.endswith("." + peft_name):
                layer = name.removeprefix(_PREFIX).removesuffix("." + peft_name)
                found[f"{layer}.{factor}"] = value
    return found


def _base(backbone: Source) -> dict[str, Any]:
    return {
        "base_model_name_or_path": backbone.id if isinstance(backbone, Hub) else backbone.label,
        "revision": backbone.revision if isinstance(backbone, Hub) else None,
    }


def _config(method: Method, backbone: Source, layers: list[str]) -> dict[str, Any]:
    common = _base(backbone) | {
        "task_type": "CAUSAL_LM",
        "r": method.rank,
        "target_modules": target_modules(method, layers),
        "bias": "none",
        "inference_mode": True,
    }
    if has_transposed_weights(backbone_config(backbone)):
        common["fan_in_fan_out"] = True
    return common | {"peft_type": method.peft_type, **method.peft_settings()}
