"""How a member differs from the backbone: LoRA, VeRA and their rivals, one file each.

To add a method, write its file and name it in `AnyMethod`.
"""

from __future__ import annotations

from typing import get_args

from lorae.methods.base import Adapter, Method, Regime, Step, drawn_state, frozen_tensors, target_modules
from lorae.methods.batchensemble import BatchEnsemble
from lorae.methods.blob import Blob
from lorae.methods.full import Full
from lorae.methods.in_context import InContext
from lorae.methods.inits import Gaussian, Init, Kaiming, Orthogonal, Xavier
from lorae.methods.last_layer import LastLayer
from lorae.methods.lora import Lora
from lorae.methods.pvera import PVera
from lorae.methods.rank1 import Rank1BNN
from lorae.methods.vera import Vera

__all__ = [
    "METHODS",
    "Adapter",
    "AnyMethod",
    "BatchEnsemble",
    "Blob",
    "Full",
    "Gaussian",
    "InContext",
    "Init",
    "Kaiming",
    "LastLayer",
    "Lora",
    "Method",
    "Orthogonal",
    "PVera",
    "Rank1BNN",
    "Regime",
    "Step",
    "Vera",
    "Xavier",
    "drawn_state",
    "frozen_tensors",
    "method_named",
    "target_modules",
]

AnyMethod = Lora | Vera | Blob | PVera | BatchEnsemble | Rank1BNN | LastLayer | Full | InContext
METHODS: tuple[type[Method], ...] = get_args(AnyMethod)


def method_named(name: object) -> type[Method] | None:
    """The method whose class has this name, as stored in records; None if this version of lorae has none."""
    return next((kind for kind in METHODS if kind.__name__ == name), None)
