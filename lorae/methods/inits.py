"""Distributions of LoRA's A before the first step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lorae.methods.base import check_positive


@dataclass(frozen=True)
class Kaiming:
    """A ~ U(-b, b) with b = 1/sqrt(d_in), PEFT's default (Kaiming-uniform with a = sqrt(5))."""

    label = "kaiming"

    def draw(self, rng: np.random.Generator, rank: int, d_in: int) -> np.ndarray:
        bound = 1 / math.sqrt(d_in)
        return rng.uniform(-bound, bound, (rank, d_in))


@dataclass(frozen=True)
class Gaussian:
    """A ~ N(0, std^2)."""

    std: float = 0.02

    def __post_init__(self) -> None:
        check_positive(self, "std")

    @property
    def label(self) -> str:
        return f"gaussian-{self.std:g}"

    def draw(self, rng: np.random.Generator, rank: int, d_in: int) -> np.ndarray:
        return rng.normal(0.0, self.std, (rank, d_in))


@dataclass(frozen=True)
class Xavier:
    """A ~ U(-b, b) with b = gain * sqrt(6 / (d_in + rank)); LoRA-Ensemble uses gain 10 (arXiv:2405.14438)."""

    gain: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self, "gain")

    @property
    def label(self) -> str:
        return f"xavier-{self.gain:g}"

    def draw(self, rng: np.random.Generator, rank: int, d_in: int) -> np.ndarray:
        bound = self.gain * math.sqrt(6 / (d_in + rank))
        return rng.uniform(-bound, bound, (rank, d_in))


@dataclass(frozen=True)
class Orthogonal:
    """A has orthonormal rows (uniform on the Stiefel manifold), times `gain`."""

    gain: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self, "gain")

    @property
    def label(self) -> str:
        return f"orthogonal-{self.gain:g}"

    def draw(self, rng: np.random.Generator, rank: int, d_in: int) -> np.ndarray:
        q, r = np.linalg.qr(rng.normal(size=(d_in, rank)))
        return self.gain * (q * np.sign(np.diag(r))).T


Init = Kaiming | Gaussian | Xavier | Orthogonal
