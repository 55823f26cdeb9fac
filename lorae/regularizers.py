"""Terms and rules added to a member's training; any combination of them, at most one of a kind.

The protocol of Wang, Aitchison and Rudolph 2023, arXiv:2310.00035: KL to the pre-trained model, weight decay
on B only, early stopping, dropout on the adapters. Masksembles: Durasov et al. 2021, arXiv:2012.08334.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class KL:
    """Adds beta times the KL divergence between the member's and the backbone's class distributions.

    Args:
        beta: weight, > 0, in nats of loss per nat of divergence.
        direction: "reverse" is KL(member || backbone), "forward" is KL(backbone || member).
    """

    beta: float = 0.1
    direction: Literal["forward", "reverse"] = "reverse"

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta={self.beta}: must be > 0; write KL(beta=0.1), or leave KL out")
        if self.direction not in ("forward", "reverse"):
            raise ValueError(f'direction={self.direction!r}: must be "forward" or "reverse"')

    @property
    def label(self) -> str:
        return f"kl-{self.beta:g}" + ("" if self.direction == "reverse" else "-forward")


@dataclass(frozen=True)
class DecayB:
    """Decoupled weight decay on the zero-initialised factor only: B <- B - lr * strength * B - step.

    B = 0 is the backbone, so this pulls a member towards it without shrinking A, whose random directions make
    members differ. For VeRA the decayed factor is the vector b.

    Args:
        strength: > 0; the literature sweeps 1 to 1000. lr * strength must stay below 1.
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        if not self.strength > 0:
            raise ValueError(
                f"strength={self.strength}: must be > 0; write DecayB(strength=1.0), or leave DecayB out"
            )

    @property
    def label(self) -> str:
        return f"decay_b-{self.strength:g}"


@dataclass(frozen=True)
class EarlyStopping:
    """Stops a member when its validation NLL has not improved for `patience` evaluations; its best step is
    kept.

    Args:
        patience: evaluations without improvement after which it stops, >= 1.
        every: steps between evaluations; None = once per epoch.
    """

    patience: int = 2
    every: int | None = None

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"patience={self.patience}: must be >= 1; write EarlyStopping(patience=2)")
        if self.every is not None and self.every < 1:
            raise ValueError(f"every={self.every}: must be >= 1 step, or None for once per epoch")

    @property
    def label(self) -> str:
        return f"early-{self.patience}" + ("" if self.every is None else f"x{self.every}")


@dataclass(frozen=True)
class AdapterDropout:
    """Dropout during training on what a member's trained parts read, from the member's own stream.

    That is the input of each adapter branch and, where a head is trained, of the head; with
    `BatchEnsemble` the input of each adapted layer, with `Full` that of every linear layer.

    Args:
        p: probability of dropping an input, in (0, 1).
    """

    p: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.p < 1:
            raise ValueError(f"p={self.p}: must be in (0, 1); write AdapterDropout(p=0.1), or leave it out")

    @property
    def label(self) -> str:
        return f"dropout-{self.p:g}"


@dataclass(frozen=True)
class Masksembles:
    """Fixed binary masks, instead of random ones, on what `AdapterDropout` acts on.

    Row b of the batch of step t is trained with mask (t + b) mod `masks`; a member predicts once with each
    mask, which gives that many draws. Kept inputs are not rescaled: every mask keeps as many.

    Args:
        masks: number of masks K, >= 2.
        scale: S >= 1, how little they overlap: 1 keeps every input in every mask, a large one makes masks
            that share almost nothing.
    """

    masks: int = 4
    scale: float = 2.0

    def __post_init__(self) -> None:
        if self.masks < 2:
            raise ValueError(f"masks={self.masks}: must be >= 2; write Masksembles(masks=4)")
        if not self.scale >= 1:
            raise ValueError(f"scale={self.scale}: must be >= 1; write Masksembles(scale=2.0)")

    @property
    def label(self) -> str:
        return f"masks-{self.masks}x{self.scale:g}"

    def generate(self, width: int, rng: np.random.Generator) -> np.ndarray:
        """Masks (K, width), True where kept, each with the same number of ones.

        K times m of floor(m S) positions are chosen, and positions that no mask has are dropped. That leaves
        m S (1 - (1 - 1/S)^K) of them on average, from which m follows; it is repeated until `width` are left.

        Raises:
            ValueError: there are no such masks, or they are too rare.
        Source: arXiv:2012.08334, section 3.2, and its code's `generate_masks`.
        """
        ones = width / (self.scale * (1 - (1 - 1 / self.scale) ** self.masks))
        for attempt in range(MASK_ATTEMPTS):
            kept = int(ones) + attempt % 2
            positions = np.arange(int(kept * self.scale))
            masks = np.zeros((self.masks, len(positions)), bool)
            for mask in masks:
                mask[rng.permutation(positions)[:kept]] = True
            if (used := masks.any(axis=0)).sum() == width:
                return masks[:, used]
        raise ValueError(
            f"masks={self.masks}, scale={self.scale:g}: no such masks of {width} inputs were found; lower "
            f"the scale, for example write Masksembles(masks={self.masks}, scale=2.0)"
        )


MASK_ATTEMPTS = 1000


@dataclass(frozen=True)
class ClassWeights:
    """Weighs a training example's loss by how rare its class is: w_c = (1 - beta) / (1 - beta^n_c) for n_c
    training examples, times a constant that makes the weights' mean 1.

    Args:
        beta: in [0, 1); 0 weighs all classes alike, near 1 by the inverse of n_c.
    Source: Cui et al. 2019, arXiv:1901.05555, equation 4.
    """

    beta: float = 0.9991

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta={self.beta}: must be in [0, 1); write ClassWeights(beta=0.9991)")

    @property
    def label(self) -> str:
        return f"class_weights-{self.beta:g}"

    def weights(self, labels: Sequence[int], num_classes: int) -> np.ndarray:
        """Weight (C,) of each class, by the labels of the training examples; a class without any has 0."""
        counts_C = np.bincount(labels, minlength=num_classes)
        found = counts_C > 0
        weight_C = np.where(found, (1 - self.beta) / (1 - self.beta ** np.maximum(counts_C, 1)), 0.0)
        return weight_C * num_classes / weight_C.sum()


Regularizer = KL | DecayB | EarlyStopping | AdapterDropout | Masksembles | ClassWeights
