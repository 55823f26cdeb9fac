"""Adapters of M members on one frozen backbone: every frozen GEMM runs once for all, each low-rank branch is
batched.

Each member's tokens are one row of a batch, (M, S, D). An adapted layer adds its members' branches as batched
products over M; the frozen weight is never copied. Sources: LoRA arXiv:2106.09685, VeRA arXiv:2310.11454.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from lorae import seeds
from lorae.backbones import Backbone
from lorae.encoding import Batch
from lorae.methods import Lora, Method, Vera, adapted_layers

State = dict[str, torch.Tensor]  # parameters of one member by name, fp32, on the CPU


class BranchDropout:
    """Dropout on the inputs of all adapter branches of a stack; off unless `begin` was called.

    Args:
        p: probability of dropping an input.
    """

    def __init__(self, p: float) -> None:
        self.p = p
        self.tokens: tuple[torch.Tensor, torch.Tensor] | None = None

    def begin(self, row_keys: Sequence[int], batch: Batch) -> None:
        """Drop by these keys in the next forward passes: one for each member, step and row of the batch."""
        keys = torch.tensor(row_keys, dtype=torch.int32, device=batch.labels.device)
        self.tokens = keys[batch.packing.rows], batch.packing.places  # (M, S) each

    def end(self) -> None:
        self.tokens = None

    def __call__(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        if self.tokens is None or self.p == 0:
            return x
        row_keys, places = self.tokens
        keys = row_keys ^ seeds.key32("layer", layer)
        return x * seeds.keep_mask(keys, places, x.shape[-1], self.p) / (1 - self.p)


class StackedLora(nn.Module):
    """h = W0 x + (alpha / rank) B_m A_m x for each member m of a stack."""

    def __init__(self, base: nn.Module, adapters: Adapters, layer: str, number: int) -> None:
        super().__init__()
        self.base, self.adapters, self.layer, self.number = base, adapters, layer, number

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (M, S, D) -> (M, S, E)
        A_MRD, B_MER = self.adapters.factors(self.layer)
        y, num_members = self.base(x), len(A_MRD)
        z = self.adapters.dropout(x, self.number).reshape(num_members, -1, x.shape[-1])
        h = torch.bmm(z, A_MRD.to(x.dtype).transpose(1, 2))  # (M, S, R)
        B_MRE = B_MER.to(x.dtype).transpose(1, 2)
        y_MNE = y.view(num_members, -1, y.shape[-1])
        return torch.baddbmm(y_MNE, h, B_MRE, alpha=self.adapters.scale).view_as(y)


class StackedVera(nn.Module):
    """h = W0 x + b_m * B_m (d_m * A_m x); A_m and B_m are leading blocks of the member's frozen
    projections."""

    def __init__(self, base: nn.Module, adapters: Adapters, layer: str, number: int) -> None:
        super().__init__()
        self.base, self.adapters, self.layer, self.number = base, adapters, layer, number

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (M, S, D) -> (M, S, E)
        d_MR, b_ME = self.adapters.factors(self.layer)
        A_MRD, B_MER = self.adapters.projections
        y, num_members = self.base(x), len(d_MR)
        A_MRD, B_MER = A_MRD[:, :, : x.shape[-1]], B_MER[:, : y.shape[-1]]
        z = self.adapters.dropout(x, self.number).reshape(num_members, -1, x.shape[-1])
        h = torch.bmm(z, A_MRD.transpose(1, 2)) * d_MR.to(x.dtype)[:, None]  # (M, S, R)
        branch = torch.bmm(h, B_MER.transpose(1, 2)) * b_ME.to(x.dtype)[:, None]  # (M, S, E)
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

    Attributes:
        parameters: trained tensors by "<layer>.<factor>", members leading, fp32.
    """

    def __init__(
        self, backbone: Backbone, method: Method, init_keys: Sequence[seeds.Key], dropout: float = 0.0
    ) -> None:
        self.backbone, self.method = backbone, method
        self.layers = adapted_layers(method, backbone.linears, backbone.name)
        self.dropout = BranchDropout(dropout)
        self.scale = method.alpha / method.rank if isinstance(method, Lora) else 1.0
        self.parameters: dict[str, nn.Parameter] = {}
        drawn = [initial_state(method, self.layers, key) for key in init_keys]
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
