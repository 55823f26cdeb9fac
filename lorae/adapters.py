"""Adapters of M members on one frozen backbone: every frozen GEMM runs once for all, each low-rank branch is
batched.

Inputs of the members are concatenated on the batch axis, (M*B, T, D). An adapted layer adds its members'
branches as batched products over M; the frozen weight is never copied. Sources: LoRA arXiv:2106.09685, VeRA
arXiv:2310.11454.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from lorae import seeds
from lorae.backbones import Backbone
from lorae.methods import Lora, Method, Vera, adapted_layers

State = dict[str, torch.Tensor]  # parameters of one member by name, fp32, on the CPU

HEAD_STD = 0.02  # `initializer_range` of transformers' ViT, DeiT, AST, BERT and RoBERTa


class BranchDropout:
    """Dropout on the inputs of all adapter branches of a stack; off unless `row_keys` is set.

    Args:
        p: probability of dropping an input.
    """

    def __init__(self, p: float) -> None:
        self.p = p
        self.row_keys: torch.Tensor | None = None  # int32 (M*B,), one key for each member, step and row

    def __call__(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        if self.row_keys is None or self.p == 0:
            return x
        keep = seeds.keep_mask(self.row_keys ^ seeds.key32("layer", layer), x.shape[1], x.shape[2], self.p)
        return x * keep / (1 - self.p)


class StackedLora(nn.Module):
    """h = W0 x + (alpha / rank) B_m A_m x for each member m of a stack."""

    def __init__(self, base: nn.Module, adapters: Adapters, layer: str, number: int) -> None:
        super().__init__()
        self.base, self.adapters, self.layer, self.number = base, adapters, layer, number

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (M*B, T, D) -> (M*B, T, E)
        A_MRD, B_MER = self.adapters.factors(self.layer)
        y, num_members = self.base(x), len(A_MRD)
        z = self.adapters.dropout(x, self.number).reshape(num_members, -1, x.shape[-1])  # (M, B*T, D)
        h = torch.bmm(z, A_MRD.to(x.dtype).transpose(1, 2))  # (M, B*T, R)
        B_MRE = B_MER.to(x.dtype).transpose(1, 2)
        y_MNE = y.view(num_members, -1, y.shape[-1])
        return torch.baddbmm(y_MNE, h, B_MRE, alpha=self.adapters.scale).view_as(y)


class StackedVera(nn.Module):
    """h = W0 x + b_m * B_m (d_m * A_m x); A_m and B_m are leading blocks of the member's frozen
    projections."""

    def __init__(self, base: nn.Module, adapters: Adapters, layer: str, number: int) -> None:
        super().__init__()
        self.base, self.adapters, self.layer, self.number = base, adapters, layer, number

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (M*B, T, D) -> (M*B, T, E)
        d_MR, b_ME = self.adapters.factors(self.layer)
        A_MRD, B_MER = self.adapters.projections
        y, num_members = self.base(x), len(d_MR)
        A_MRD, B_MER = A_MRD[:, :, : x.shape[-1]], B_MER[:, : y.shape[-1]]
        z = self.adapters.dropout(x, self.number).reshape(num_members, -1, x.shape[-1])  # (M, B*T, D)
        h = torch.bmm(z, A_MRD.transpose(1, 2)) * d_MR.to(x.dtype)[:, None]  # (M, B*T, R)
        branch = torch.bmm(h, B_MER.transpose(1, 2)) * b_ME.to(x.dtype)[:, None]  # (M, B*T, E)
        return y + branch.view_as(y)


MODULES: dict[type, type[StackedLora | StackedVera]] = {Lora: StackedLora, Vera: StackedVera}
FACTORS: dict[type, tuple[str, str]] = {Lora: ("A", "B"), Vera: ("d", "b")}  # the second starts at zero


class Adapters:
    """The stacked adapters of some members, inserted into a backbone; a context manager that takes them out
    again.

    Args:
        backbone: receives one stacked module in place of each adapted linear layer.
        method: Lora or Vera.
        init_keys: one init stream key for each member, in order.
        dropout: probability of dropping a branch input while `self.dropout.row_keys` is set.
        num_classes: of the classification head that each member has on an encoder; 0: no head.

    Attributes:
        parameters: trained tensors by "<layer>.<factor>", "head.weight" (M, C, D) and "head.bias" (M, C),
            members leading, fp32.
    """

    def __init__(
        self,
        backbone: Backbone,
        method: Method,
        init_keys: Sequence[seeds.Key],
        dropout: float = 0.0,
        num_classes: int = 0,
    ) -> None:
        self.backbone, self.method = backbone, method
        self.layers = adapted_layers(method, backbone.linears, backbone.name)
        self.dropout = BranchDropout(dropout)
        self.scale = method.alpha / method.rank if isinstance(method, Lora) else 1.0
        self.parameters: dict[str, nn.Parameter] = {}
        width = backbone.lm.config.hidden_size
        drawn = [
            initial_state(method, self.layers, key) | initial_head(num_classes, width, key)
            for key in init_keys
        ]
        for name in drawn[0]:
            self.parameters[name] = nn.Parameter(torch.stack([s[name] for s in drawn]).to(backbone.device))
        self.projections: tuple[
            torch.Tensor, ...
        ] = ()  # VeRA: A (M, R, D), B (M, E, R), in the backbone's dtype
        if isinstance(method, Vera):
            pairs = [projections(method, self.layers, key) for key in init_keys]
            self.projections = tuple(torch.stack(p).to(backbone.device, backbone.dtype) for p in zip(*pairs))

    def __enter__(self) -> Adapters:
        self.backbone.inserted = self
        for number, layer in enumerate(self.layers):
            parent, leaf = _parent(self.backbone.lm, layer)
            setattr(parent, leaf, MODULES[type(self.method)](getattr(parent, leaf), self, layer, number))
        return self

    def __exit__(self, *exc: object) -> None:
        for layer in self.layers:
            parent, leaf = _parent(self.backbone.lm, layer)
            setattr(parent, leaf, getattr(parent, leaf).base)
        self.backbone.inserted = None

    def factors(self, layer: str) -> tuple[nn.Parameter, nn.Parameter]:
        """The two trained factors of a layer, members leading."""
        first, second = FACTORS[type(self.method)]
        return self.parameters[f"{layer}.{first}"], self.parameters[f"{layer}.{second}"]

    def head_logits(self, features: torch.Tensor) -> torch.Tensor:
        """Class logits (M*B, C) of each member's head on its own rows' features (M*B, D), fp32."""
        weight_MCD, bias_MC = self.parameters["head.weight"], self.parameters["head.bias"]
        features_MBD = features.view(len(weight_MCD), -1, features.shape[-1])
        logits_MBC = torch.baddbmm(bias_MC[:, None], features_MBD, weight_MCD.transpose(1, 2))
        return logits_MBC.view(len(features), -1)

    @property
    def num_members(self) -> int:
        return len(next(iter(self.parameters.values())))

    def zero_initialised(self) -> Iterator[str]:
        """Names of the factors that start at zero: B of LoRA, b of VeRA. `DecayB` decays these."""
        second = FACTORS[type(self.method)][1]
        return (name for name in self.parameters if name.endswith(f".{second}"))

    def gradients(self) -> list[torch.Tensor]:
        """Gradients of the trained tensors after a backward pass."""
        return [p.grad for p in self.parameters.values() if p.grad is not None]

    def state(self, member: int) -> State:
        """A copy of one member's parameters on the CPU."""
        return {name: p.detach()[member].cpu().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def load(self, states: Sequence[State]) -> None:
        """Set the members' parameters.

        Raises:
            ValueError: a state lacks a parameter or has another shape.
        """
        for name, parameter in self.parameters.items():
            expected, shapes = parameter.shape[1:], [s[name].shape if name in s else None for s in states]
            if any(shape != expected for shape in shapes):
                raise ValueError(f"{name}: the members' shapes are {shapes}, must be {expected}")
            parameter.copy_(torch.stack([s[name] for s in states]))

    def keep(self, members: Sequence[int]) -> None:
        """Drop all other members: parameters become new, smaller ones; later batches have rows of these
        only."""
        index = torch.as_tensor(members, dtype=torch.long, device=self.backbone.device)
        self.parameters = {name: nn.Parameter(p.detach()[index]) for name, p in self.parameters.items()}
        self.projections = tuple(p[index] for p in self.projections)


def initial_state(method: Method, layers: dict[str, tuple[int, int]], key: seeds.Key) -> State:
    """Parameters of one member before the first step, from its init stream."""
    state: State = {}
    for layer, (d_in, d_out) in layers.items():
        if isinstance(method, Lora):
            first, second = method.draw(layer, d_in, d_out, key)
        else:
            first, second = np.full(method.rank, method.d_init), np.zeros(d_out)
        for factor, values in zip(FACTORS[type(method)], (first, second)):
            state[f"{layer}.{factor}"] = torch.from_numpy(np.asarray(values, np.float32))
    return state


def initial_head(num_classes: int, width: int, key: seeds.Key) -> State:
    """A member's classification head as transformers begins one, N(0, 0.02^2) and no bias; nothing for no
    classes."""
    if not num_classes:
        return {}
    weight = seeds.stream(*key, "head").normal(0.0, HEAD_STD, (num_classes, width))
    return {
        "head.weight": torch.from_numpy(weight.astype(np.float32)),
        "head.bias": torch.zeros(num_classes),
    }


def num_head_classes(state: State) -> int:
    """Classes of a member's head, 0 if it has none."""
    return len(state["head.bias"]) if "head.bias" in state else 0


def projections(
    method: Vera, layers: dict[str, tuple[int, int]], key: seeds.Key
) -> tuple[torch.Tensor, torch.Tensor]:
    """One member's frozen VeRA projections A (R, largest d_in) and B (largest d_out, R), fp32."""
    d_ins, d_outs = zip(*layers.values())
    a, b = method.draw_projections(max(d_ins), max(d_outs), key)
    return torch.from_numpy(a.astype(np.float32)), torch.from_numpy(b.astype(np.float32))


def _parent(lm: nn.Module, layer: str) -> tuple[nn.Module, str]:
    path, _, leaf = layer.rpartition(".")
    return lm.get_submodule(path), leaf
