"""Floating-point operations of a member's passes, from shapes alone: a cost that neither load nor hardware
bends.

A multiplication with its addition is two. A row of T tokens counts as if it were read alone: 2 d_in d_out T
for each product with a weight, 4 T^2 times the width of attention for its two products in each layer, and
what the adapters' branches and the heads multiply. Backward every weight takes as much again for the gradient
of what it reads, down to the first adapted layer, and a trained one as much again for its own: so a step of
small adapters on a frozen backbone is two forward passes, one of full fine-tuning three.

Left out is what works element by element (norms, softmax, noise, the optimiser), and what is saved or spent
for memory and speed: padding, a beginning that prompts share, activations that are computed again.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lorae.methods import Method
from lorae.shapes import SAME_INPUT, kind_of, num_prefix_tokens, num_tokens, patch_values

if TYPE_CHECKING:
    from lorae.tasks.encoding import Row

Linears = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Flops:
    """Operations of a pass over a row of T tokens.

    Attributes:
        row, token, square: whatever its length, for each token, and for each of T^2 pairs of tokens.
        class_: for each class whose logit is read from one hidden state.
        answer: for each token of the options that are scored by the full vocabulary.
    """

    row: float = 0.0
    token: float = 0.0
    square: float = 0.0
    class_: float = 0.0
    answer: float = 0.0

    def __add__(self, other: Flops) -> Flops:
        return Flops(*(a + b for a, b in zip(vars(self).values(), vars(other).values())))

    def __mul__(self, factor: float) -> Flops:
        return Flops(*(factor * value for value in vars(self).values()))

    def of(self, rows: Sequence[Row]) -> np.ndarray:
        """For each of these rows, (N,)."""
        return np.array([self._of_row(row) for row in rows])

    def _of_row(self, row: Row) -> float:
        tokens, answers = len(row.tokens), len(row.segments) - row.segments.count(-1)
        logits = self.answer * answers if row.segments else self.class_ * row.num_classes
        return self.row + self.token * tokens + self.square * tokens**2 + logits


@dataclass(frozen=True)
class Passes:
    """Operations of one member's passes over a row.

    Attributes:
        features: the frozen backbone's forward pass up to its last hidden states.
        forward: a prediction; with `LastLayer` from features.
        training: the forward and backward pass of a step.
        backbone: the frozen backbone's forward pass.
    """

    features: Flops
    forward: Flops
    training: Flops
    backbone: Flops

    def step(self, with_backbone: bool) -> Flops:
        """Of a training step, in which the backbone may read the rows, too."""
        return self.training + self.backbone if with_backbone else self.training

    @classmethod
    def of(cls, method: Method, config: dict[str, Any], linears: dict[str, tuple[int, int]]) -> Passes:
        """Of a member on a backbone.

        Args:
            config: its config.json, see `with_common_names`.
            linears: the shapes of its linear layers, see `linear_shapes`.
        """
        features, head = _features(config, linears), _head(config)
        if method.regime == "features":
            return cls(features, head, head * 2, features + head)  # backward for the head's gradient alone
        adapted = method.adapted_layers(linears, "this backbone")
        branches = Flops(token=sum(method.branch_flops(*shape) for shape in adapted.values()))
        forward = features + head + branches
        head_is_trained = method.regime == "alone" or kind_of(config) != "causal"
        backward = _backward(method, config, linears, adapted) + head * (1 + head_is_trained)
        return cls(features, forward, forward + backward, features + head)


def _features(config: dict[str, Any], linears: Linears) -> Flops:
    patches = 0 if kind_of(config) in ("causal", "text") else num_tokens(config) - num_prefix_tokens(config)
    embedding = 2 * config["hidden_size"] * patches * patch_values(config) if patches else 0
    weights = 2 * sum(d_in * d_out for d_in, d_out in linears.values())
    return Flops(row=embedding, token=weights, square=config["num_hidden_layers"] * _attention(config))


def _attention(config: dict[str, Any]) -> int:
    """Of one layer, for each pair of tokens: queries with keys, and weights with values."""
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    return 4 * heads * (config.get("head_dim") or hidden // heads)


def _head(config: dict[str, Any]) -> Flops:
    hidden = config["hidden_size"]
    return Flops(class_=2 * hidden, answer=2 * hidden * config.get("vocab_size", 0))


def _backward(method: Method, config: dict[str, Any], linears: Linears, adapted: Linears) -> Flops:
    """From the last hidden states down: of the weights, of attention, and of the branches."""
    token, square, layer, full = 0, 0, None, method.regime == "alone"
    reads = full  # whether what the layers read has a gradient
    for group in _reading_the_same(linears):
        for name in group:
            d_in, d_out = linears[name]
            scaled = method.scales_inputs and name in adapted  # what the weight reads
            token += 2 * d_in * d_out * ((reads or scaled) + full)
            token += method.branch_backward_flops(d_in, d_out, reads) if name in adapted else 0
        reads = reads or not adapted.keys().isdisjoint(group)
        number = re.search(r"\.(\d+)\.", group[0])
        if number and number[1] != layer:  # attention comes after a layer's first products
            layer, square = number[1], square + reads * 2 * _attention(config)
    return Flops(row=_features(config, {}).row if full else 0, token=token, square=square)


def _reading_the_same(linears: Linears) -> Iterator[list[str]]:
    """Layers in the model's order, those together that read one tensor."""

    def what_is_read(name: str) -> tuple[str, str]:
        path, _, leaf = name.rpartition(".")
        return path, SAME_INPUT.get(leaf, leaf)

    for _, group in itertools.groupby(linears, what_is_read):
        yield list(group)
