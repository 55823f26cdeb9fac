"""The trained parts of M members on one frozen backbone: every frozen GEMM runs once for all members, and the
low-rank branches are batched.

Each member's tokens are one row of a batch, (M, S, D). An adapted layer adds its members' branches as batched
products over M; the frozen weight is never copied. The members' own heads are one more batched product. Only
fully fine-tuned members are computed one by one. Sources: LoRA arXiv:2106.09685, VeRA arXiv:2310.11454,
BatchEnsemble arXiv:2002.06715.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from lorae import seeds
from lorae.backbone.loading import Backbone
from lorae.methods import Method, frozen_tensors
from lorae.noise import Noise
from lorae.planning.flops import Passes
from lorae.shapes import with_common_names

State = dict[str, torch.Tensor]  # parameters of one member by name, fp32, on the CPU
HEAD = "head.weight", "head.bias"  # (M, C, D), (M, C)
HEAD_STD = 0.02  # `initializer_range` of transformers' ViT, DeiT, AST, BERT and RoBERTa


class Stacked(nn.Module):
    """Layer `layer`, the `number`-th adapted layer, with the parameters of a stack's members, for a method's
    `forward`.

    Attributes:
        base: the frozen layer.
    """

    def __init__(self, base: Any, adapters: Adapters, layer: str, number: int) -> None:
        super().__init__()
        self.base, self.adapters, self.layer, self.number = base, adapters, layer, number

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (M, S, D) -> (M, S, E)
        return self.adapters.method.forward(self, x)

    def factors(self) -> list[nn.Parameter]:
        """The trained factors in the method's order, members leading, fp32."""
        return self.adapters.factors(self.layer)

    @property
    def frozen(self) -> tuple[torch.Tensor, ...]:
        """The tensors from the method's `draw_frozen`, members leading, in the backbone's dtype."""
        return self.adapters.frozen

    @property
    def noise(self) -> Noise | None:
        """The members' noise; None in a soup, and without noise."""
        return self.adapters.noise

    def read(self, x: torch.Tensor) -> torch.Tensor:
        """Input of the members' trained parts, (M, S, D): x with the current noise."""
        return self.adapters.noisy(x, self.number).reshape(len(self.factors()[0]), -1, x.shape[-1])


class Adapters:
    """The trained parts of some members, inserted into a backbone; a context manager that removes them again.

    Args:
        backbone: receives one stacked module in place of each adapted linear layer.
        method: what is trained.
        init_keys: one init stream key for each member, in order.
        noise: noise on the inputs of the trained parts, while it is set.
        answer_ids: tokens of the classes, whose rows of the language model's head `LastLayer` trains; for an
            encoder, where every method trains a classification head, the classes.

    Attributes:
        parameters: trained tensors, members leading, fp32: "<layer>.<factor>" of an adapter, HEAD, or every
            weight of the backbone by its own name.
        passes: operations of one member's passes.
    """

    def __init__(
        self,
        backbone: Backbone,
        method: Method,
        init_keys: Sequence[seeds.Key],
        noise: Noise | None = None,
        answer_ids: Sequence[int] = (),
    ) -> None:
        self.backbone, self.method, self.noise = backbone, method, noise
        self.layers = method.adapted_layers(backbone.linears, backbone.name)
        self.passes = Passes.of(method, with_common_names(backbone.lm.config.to_dict()), backbone.linears)
        self.parameters: dict[str, nn.Parameter] = {}
        drawn = [self._drawn(key, answer_ids) for key in init_keys]
        for name in drawn[0]:
            self.parameters[name] = nn.Parameter(torch.stack([s[name] for s in drawn]).to(backbone.device))
        self.only: int | None = None  # the one member that `one_by_one` computes now
        self.hooks: list[Any] = []
        frozen = zip(*(frozen_tensors(method, self.layers, key) for key in init_keys))
        self.frozen = tuple(torch.stack(parts).to(backbone.device, backbone.dtype) for parts in frozen)

    def _drawn(self, key: seeds.Key, answer_ids: Sequence[int]) -> State:
        """Parameters of one member before the first step."""
        backbone = self.backbone
        state = self.method.initial_state(backbone, self.layers, answer_ids, key)
        if backbone.is_encoder:
            state = state | initial_head(len(answer_ids), backbone.lm.config.hidden_size, key)
        return state

    def __enter__(self) -> Adapters:
        self.backbone.inserted = self
        if self.method.regime == "alone" and self.noise:
            linears = [self.backbone.lm.get_submodule(name) for name in self.backbone.linears]
            self.hooks = [linear.register_forward_pre_hook(self._hook(n)) for n, linear in enumerate(linears)]
        for number, layer in enumerate(self.layers):
            parent, leaf = _parent(self.backbone.lm, layer)
            setattr(parent, leaf, Stacked(getattr(parent, leaf), self, layer, number))
        return self

    def __exit__(self, *exc: object) -> None:
        for layer in self.layers:
            parent, leaf = _parent(self.backbone.lm, layer)
            setattr(parent, leaf, getattr(parent, leaf).base)
        for hook in self.hooks:
            hook.remove()
        self.backbone.inserted = None

    @contextlib.contextmanager
    def removed(self) -> Iterator[None]:
        """Context in which the members are removed from the backbone."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()

    def _hook(self, number: int) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], torch.Tensor]:
        return lambda linear, inputs: self.noisy(inputs[0], number)

    def noisy(self, x: torch.Tensor, layer: int | str) -> torch.Tensor:
        """Input of a trained part, tokens (M, S, D) or rows (M*B, D), with the current noise."""
        return self.noise(x, layer) if self.noise else x

    @property
    def has_head(self) -> bool:
        """Whether every member has its own head."""
        return HEAD[0] in self.parameters

    def head_logits(self, features: torch.Tensor) -> torch.Tensor:  # (M*B, D) -> (M*B, C)
        """Logits of each member's own head on its own rows, in fp32."""
        weight_MCD = self._own(self.parameters[HEAD[0]])
        z = self.noisy(features.float(), "head").view(len(weight_MCD), -1, features.shape[-1])  # (M, B, D)
        logits = torch.bmm(z, weight_MCD.transpose(1, 2))
        if HEAD[1] in self.parameters:
            logits = logits + self._own(self.parameters[HEAD[1]])[:, None]
        return logits.flatten(0, 1)

    def one_by_one(self, function: Callable[[Any], torch.Tensor], parts: Sequence[Any]) -> torch.Tensor:
        """`function` of each member's part, with the member's own weights in the backbone, concatenated."""
        call = _Call(self.backbone.lm, function)
        weights = {n: p.to(self.backbone.dtype).unbind() for n, p in self.parameters.items() if n not in HEAD}
        results = []
        for self.only, part in enumerate(parts):
            if self.noise:
                self.noise.only = self.only
            own = {f"lm.{name}": weight_M[self.only] for name, weight_M in weights.items()}
            results.append(torch.func.functional_call(call, own, (part,)))
        self.only = None
        if self.noise:
            self.noise.only = None
        return torch.cat(results)

    def _own(self, parameter: torch.Tensor) -> torch.Tensor:
        """The parameter of the member that is computed now, or of all members."""
        return parameter if self.only is None else parameter[self.only : self.only + 1]

    def factors(self, layer: str) -> list[nn.Parameter]:
        """The trained factors of a layer in the method's order, members leading."""
        return [self.parameters[f"{layer}.{factor}"] for factor in self.method.factors]

    @property
    def num_members(self) -> int:
        return len(next(iter(self.parameters.values())))

    def zero_initialised(self) -> Iterator[str]:
        """Names of the factors that start at zero and that `DecayB` decays: B of LoRA, b of VeRA."""
        zero = self.method.zero_factor
        return (name for name in self.parameters if zero and name.endswith(f".{zero}"))

    def gradients(self) -> list[torch.Tensor]:
        """Gradients of the trained tensors after a backward pass."""
        return [p.grad for p in self.parameters.values() if p.grad is not None]

    def zero_gradients(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def state(self, member: int) -> State:
        """A copy of one member's parameters on the CPU."""
        return {name: p.detach()[member].cpu().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def load(self, states: Sequence[State]) -> None:
        """Set the members' parameters.

        Raises:
            ValueError: a state lacks a parameter or has one of another shape.
        """
        for name, parameter in self.parameters.items():
            expected, shapes = parameter.shape[1:], [s[name].shape if name in s else None for s in states]
            if any(shape != expected for shape in shapes):
                raise ValueError(f"{name}: the members' shapes are {shapes}, must be {expected}")
            parameter.copy_(self._loaded(name, [s[name] for s in states]))

    def _loaded(self, name: str, values: list[torch.Tensor]) -> torch.Tensor:
        """A parameter from its values in the members' states."""
        return torch.stack(values)

    def keep(self, members: Sequence[int]) -> None:
        """Drop all other members: parameters are replaced by smaller ones; later batches have rows only of
        these members."""
        index = torch.as_tensor(members, dtype=torch.long, device=self.backbone.device)
        self.parameters = {name: nn.Parameter(p.detach()[index]) for name, p in self.parameters.items()}
        self.frozen = tuple(part[index] for part in self.frozen)
        if self.noise:
            self.noise.keep(members)


class Soup(Adapters):
    """Some members as the one model with their mean weights, W0 + 1/M sum_m B_m A_m and the mean head: a
    batch has the rows of one model.

    Args:
        states: the members' parameters, in the order of `init_keys`.
        shares: of the members in the weights, in place of 1/M each; they add up to 1 and may be negative.
    Raises:
        ValueError: a state lacks a parameter or has one of another shape.

    Source: Wortsman et al. 2022, arXiv:2203.05482 ("uniform soup").
    """

    def __init__(
        self,
        backbone: Backbone,
        method: Method,
        init_keys: Sequence[seeds.Key],
        states: Sequence[State],
        answer_ids: Sequence[int],
        shares: Sequence[float] | None = None,
    ) -> None:
        self.shares = None if shares is None else torch.tensor(shares, device=backbone.device)
        keys = init_keys if method.factors else init_keys[:1]  # other parameters are averaged directly
        super().__init__(backbone, method, keys, answer_ids=answer_ids)
        for name in set(HEAD) & self.parameters.keys():
            self.parameters[name] = nn.Parameter(self.parameters[name].detach()[:1])
        self.load(states)

    def __enter__(self) -> Soup:
        super().__enter__()
        for layer in self.layers:
            parent, leaf = _parent(self.backbone.lm, layer)
            setattr(parent, leaf, _Mean(getattr(parent, leaf), len(self.factors(layer)[0]), self.shares))
        return self

    @property
    def num_members(self) -> int:
        return 1

    def _loaded(self, name: str, values: list[torch.Tensor]) -> torch.Tensor:
        stacked = torch.stack(values)
        return stacked if name.rpartition(".")[0] in self.layers else _mean(stacked, self.shares)[None]


def _mean(x: torch.Tensor, shares: torch.Tensor | None) -> torch.Tensor:
    """The mean over the first axis, by shares if there are any."""
    return x.mean(0) if shares is None else torch.tensordot(shares.to(x), x, 1)


class _Mean(nn.Module):
    """The mean over members of their stacked layer's output for one input; as layers are linear, this is the
    output of a layer with their mean weights."""

    def __init__(self, stacked: Stacked, num_members: int, shares: torch.Tensor | None) -> None:
        super().__init__()
        self.stacked, self.num_members, self.shares = stacked, num_members, shares

    @property
    def base(self) -> nn.Module:
        return self.stacked.base

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (..., D) -> (..., E)
        each = self.stacked(x.expand(self.num_members, *x.shape).flatten(0, 1))
        return _mean(each.view(self.num_members, *x.shape[:-1], -1), self.shares)


class _Call(nn.Module):
    """A function that uses the language model, as a module whose weights `functional_call` replaces."""

    def __init__(self, lm: nn.Module, function: Callable[[Any], torch.Tensor]) -> None:
        super().__init__()
        self.lm, self.function = lm, function

    def forward(self, part: Any) -> torch.Tensor:
        return self.function(part)


def initial_head(num_classes: int, width: int, key: seeds.Key) -> State:
    """A member's initial classification head, as in transformers: N(0, 0.02^2), and zero bias."""
    drawn = seeds.stream(*key, "head").normal(0.0, HEAD_STD, (num_classes, width)).astype(np.float32)
    return {HEAD[0]: torch.from_numpy(drawn), HEAD[1]: torch.zeros(num_classes)}


def _parent(lm: nn.Module, layer: str) -> tuple[nn.Module, str]:
    path, _, leaf = layer.rpartition(".")
    return lm.get_submodule(path), leaf
