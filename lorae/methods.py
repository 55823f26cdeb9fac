"""How a member differs from the backbone: LoRA, VeRA and their rivals, and how they are initialised.

A method is a setting; the stacked modules that compute it are in `lorae.adapters`, what in-context learning
reads in `lorae.in_context`. LoRA: Hu et al. 2021, arXiv:2106.09685. VeRA: Kopiczko et al. 2023,
arXiv:2310.11454. BatchEnsemble: Wen et al. 2020, arXiv:2002.06715. BLoB: Wang et al. 2024, arXiv:2406.11675.
Rank-1 BNN: Dusenberry et al. 2020, arXiv:2005.07186.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from lorae import seeds

# What the query, key, value and output projections of attention are called in transformers' models
ROLES = {
    "q": ("q_proj", "query", "query_proj", "q_lin"),
    "k": ("k_proj", "key", "key_proj", "k_lin"),
    "v": ("v_proj", "value", "value_proj", "v_lin"),
    "o": ("o_proj", "out_proj", "out_lin", "attention.output.dense", "attention.dense"),
}


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
        _positive("Gaussian", "std", self.std)

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
        _positive("Xavier", "gain", self.gain)

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
        _positive("Orthogonal", "gain", self.gain)

    @property
    def label(self) -> str:
        return f"orthogonal-{self.gain:g}"

    def draw(self, rng: np.random.Generator, rank: int, d_in: int) -> np.ndarray:
        q, r = np.linalg.qr(rng.normal(size=(d_in, rank)))
        return self.gain * (q * np.sign(np.diag(r))).T


Init = Kaiming | Gaussian | Xavier | Orthogonal


@dataclass(frozen=True)
class Lora:
    """h = W0 x + (alpha / rank) B A x, with A (rank x d_in) random and B (d_out x rank) zero.

    Args:
        rank: >= 1 and at most the smaller side of every adapted layer.
        alpha: scaling numerator, > 0; None = h = W0 x + B A x, as in LoRA-Ensemble (arXiv:2405.14438).
        targets: names of the adapted linear layers, matched against the last part(s) of the module path; "q",
            "k", "v" and "o" are the projections of attention, whatever an architecture calls them.
        init: distribution of A.
        b_std: standard deviation of a random B; 0 keeps B = 0, so that every member starts as the backbone.
    """

    label = "lora"
    starts_apart: ClassVar[bool] = True  # members, by their init streams
    factors: ClassVar[tuple[str, ...]] = ("A", "B")
    zero_factor: ClassVar[str | None] = "B"  # that starts at zero; `DecayB` decays it

    rank: int = 8
    alpha: float | None = 16.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    init: Init = Kaiming()
    b_std: float = 0.0

    def __post_init__(self) -> None:
        _check_rank(self)
        _check_targets(self)
        if self.alpha is not None:
            _positive("Lora", "alpha", self.alpha)
        _not_negative("Lora", "b_std", self.b_std)

    @property
    def scale(self) -> float:
        """What B A x is multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @property
    def init_label(self) -> str:
        return self.init.label + (f"+b-{self.b_std:g}" if self.b_std else "")

    def times(self, factor: int) -> Lora:
        """`factor` times as many parameters, by a rank as much larger, with equal scaling."""
        return replace(self, rank=factor * self.rank, alpha=self.alpha and factor * self.alpha)

    def num_parameters(self, d_in: int, d_out: int) -> int:
        """Trained numbers of one member in one layer."""
        return self.rank * (d_in + d_out)

    def draw(self, layer: str, d_in: int, d_out: int, key: seeds.Key) -> tuple[np.ndarray, ...]:
        """A (rank, d_in) and B (d_out, rank) of one member in one layer; `key` names its init stream."""
        a = self.init.draw(seeds.stream(*key, layer, "A"), self.rank, d_in)
        b = seeds.stream(*key, layer, "B").normal(0.0, self.b_std, (d_out, self.rank)) if self.b_std else None
        return a, np.zeros((d_out, self.rank)) if b is None else b


@dataclass(frozen=True)
class Blob(Lora):
    """LoRA whose A is a Gaussian, A ~ N(mean, (G * G)^2) element by element; mean, G and B are trained.

    Every training example has a sample of its own, by random signs of one for each step (Flipout, Wen et al.
    2018, arXiv:1803.04386). After each step of the optimizer on their NLL, gradient descent takes one on the
    KL divergence from the prior N(0, prior_std^2), of size kl_lr times the schedule of the learning rate
    times the weight of the step. A member predicts with the mean, or by `lorae.draws.Posterior`.

    Args:
        rank, alpha, targets, init, b_std: as for `Lora`; `init` is of the mean.
        std_root: G begins uniform in [std_root / sqrt(2), std_root]; > 0.
        prior_std: > 0.
        kl_lr: step size of the KL divergence, > 0; kl_lr < 2 prior_std^2, or the mean oscillates.
        gamma: the steps' weights grow over cycles of 100 N^(pi / gamma) / batch_size steps, of N training
            examples; > 0.

    Source: Wang et al. 2024, arXiv:2406.11675; the order of the steps, the cycles and the weights are those
    of the authors' code, which draws signs for each token, not for each example.
    """

    label = "blob"
    factors: ClassVar[tuple[str, ...]] = ("A", "B", "G")

    std_root: float = 0.05
    prior_std: float = 0.2
    kl_lr: float = 0.01
    gamma: float = 8.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("std_root", "prior_std", "kl_lr", "gamma"):
            if not (value := getattr(self, name)) > 0:
                raise ValueError(f"{name}={value}: must be > 0; write Blob({name}={getattr(Blob, name)})")
        if self.kl_lr >= 2 * self.prior_std**2:
            raise ValueError(
                f"kl_lr={self.kl_lr} with prior_std={self.prior_std}: must be < 2 prior_std^2, or the mean "
                f"oscillates; write Blob(kl_lr={self.prior_std**2 / 4:.2g}) or less"
            )

    @property
    def init_label(self) -> str:
        return f"{super().init_label}+g-{self.std_root:g}"

    def num_parameters(self, d_in: int, d_out: int) -> int:
        """Trained numbers of one member in one layer."""
        return super().num_parameters(d_in, d_out) + self.rank * d_in

    def draw(self, layer: str, d_in: int, d_out: int, key: seeds.Key) -> tuple[np.ndarray, ...]:
        """The mean of A (rank, d_in), B (d_out, rank) and G (rank, d_in) of one member in one layer."""
        low = self.std_root / math.sqrt(2)
        g = seeds.stream(*key, layer, "G").uniform(low, self.std_root, (self.rank, d_in))
        return *super().draw(layer, d_in, d_out, key), g

    def kl_weight(self, step: int, num_train: int, batch_size: int) -> float:
        """Weight of the KL divergence after step `step` (from 0): it doubles from step to step of a cycle,
        and its sum over one is almost 1."""
        cycle = max(1, int(100 * num_train ** (math.pi / self.gamma) / batch_size))
        return 2.0 ** (step % cycle - cycle) / (1 - 2.0 ** -(cycle + 1))


@dataclass(frozen=True)
class Vera:
    """h = W0 x + Lb B Ld A x: A and B random, frozen, shared by all layers; the vectors d and b are trained.

    Args:
        rank: rows of A; VeRA uses large ones (256 to 1024): only rank + d_out numbers a layer are trained.
        targets: as for `Lora`.
        d_init: initial value of d; b starts at zero.
        projection: "per_member" draws A and B from each member's init stream; "shared" gives all members
            the same, so that only their data order differs.
    """

    label = "vera"
    factors: ClassVar[tuple[str, ...]] = ("d", "b")
    zero_factor: ClassVar[str | None] = "b"

    rank: int = 256
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    d_init: float = 0.1
    projection: Literal["per_member", "shared"] = "per_member"

    def __post_init__(self) -> None:
        _check_rank(self)
        _check_targets(self)
        _positive("Vera", "d_init", self.d_init)
        if self.projection not in ("per_member", "shared"):
            raise ValueError(f'projection={self.projection!r}: must be "per_member" or "shared"')

    @property
    def starts_apart(self) -> bool:
        return self.projection == "per_member"

    @property
    def init_label(self) -> str:
        return f"d-{self.d_init:g}+{self.projection}"

    def num_parameters(self, d_in: int, d_out: int) -> int:
        """Trained numbers of one member in one layer."""
        return self.rank + d_out

    def draw(self, layer: str, d_in: int, d_out: int, key: seeds.Key) -> tuple[np.ndarray, np.ndarray]:
        """d (rank,) and b (d_out,) of one member in one layer; equal for all members."""
        return np.full(self.rank, self.d_init), np.zeros(d_out)

    def draw_projections(self, max_in: int, max_out: int, key: seeds.Key) -> tuple[np.ndarray, np.ndarray]:
        """A (rank, max_in) and B (max_out, rank), Kaiming-uniform as in PEFT; layers use leading blocks."""
        if self.projection == "shared":
            key = ("vera-shared",)
        a_bound, b_bound = math.sqrt(6 / max_in), math.sqrt(6 / self.rank)
        a = seeds.stream(*key, "vera_A").uniform(-a_bound, a_bound, (self.rank, max_in))
        b = seeds.stream(*key, "vera_B").uniform(-b_bound, b_bound, (max_out, self.rank))
        return a, b


@dataclass(frozen=True)
class BatchEnsemble:
    """y = (W (x * r)) * s + bias: W and bias are the backbone's and frozen, the vectors r and s are trained.

    Wen et al. 2020, arXiv:2002.06715, equation 5, on layers that are pre-trained. With r = s = 1 it is the
    backbone; any other start disturbs it.

    Args:
        targets: as for `Lora`.
        init: "signs" draws r and s as random signs, "normal" from N(1, std^2).
        std: of "normal"; 0 starts every member as the backbone.
    """

    label = "batchensemble"
    factors: ClassVar[tuple[str, ...]] = ("r", "s")
    zero_factor: ClassVar[str | None] = None
    rank: ClassVar[int] = 0

    targets: tuple[str, ...] = ("q_proj", "v_proj")
    init: Literal["signs", "normal"] = "normal"
    std: float = 0.1

    def __post_init__(self) -> None:
        _check_targets(self)
        if self.init not in ("signs", "normal"):
            raise ValueError(f'init={self.init!r}: must be "signs" or "normal"')
        _not_negative("BatchEnsemble", "std", self.std)

    @property
    def starts_apart(self) -> bool:
        return self.init == "signs" or self.std > 0

    @property
    def init_label(self) -> str:
        return "signs" if self.init == "signs" else f"normal-{self.std:g}"

    def num_parameters(self, d_in: int, d_out: int) -> int:
        """Trained numbers of one member in one layer."""
        return d_in + d_out

    def draw(self, layer: str, d_in: int, d_out: int, key: seeds.Key) -> tuple[np.ndarray, ...]:
        """r (d_in,) and s (d_out,) of one member in one layer."""
        r, s = (self._vector(seeds.stream(*key, layer, f), d) for f, d in zip(self.factors, (d_in, d_out)))
        return r, s

    def _vector(self, rng: np.random.Generator, size: int) -> np.ndarray:
        return rng.choice((-1.0, 1.0), size) if self.init == "signs" else rng.normal(1.0, self.std, size)


@dataclass(frozen=True)
class Rank1BNN(BatchEnsemble):
    """BatchEnsemble whose r and s are Gaussians, N(mean, softplus(rho)^2) element by element; members are the
    components of a mixture.

    Trained on the NLL of one sample for each step, plus the KL divergence from the prior N(1, prior_std^2)
    over the number of training examples, which is annealed: it grows in the first `annealed_frac` of the
    steps. A member predicts with the means, or by `lorae.draws.Posterior`.

    Args:
        targets, init, std: as for `BatchEnsemble`, of the means.
        noise_std: softplus(rho) at the start, > 0.
        prior_std: > 0.
        annealed_frac: in [0, 1].

    Source: Dusenberry et al. 2020, arXiv:2005.07186; one sample a step, the prior and the annealing are those
    of the authors' code, in which W is trained, too. Here it is pre-trained and frozen.
    """

    label = "rank-1-bnn"
    factors: ClassVar[tuple[str, ...]] = ("r", "s", "r_rho", "s_rho")

    noise_std: float = 0.03
    prior_std: float = 0.1
    annealed_frac: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive("Rank1BNN", "noise_std", self.noise_std)
        _positive("Rank1BNN", "prior_std", self.prior_std)
        if not 0 <= self.annealed_frac <= 1:
            raise ValueError(
                f"annealed_frac={self.annealed_frac}: must be in [0, 1]; write Rank1BNN(annealed_frac=0.8)"
            )

    @property
    def init_label(self) -> str:
        return f"{super().init_label}+noise-{self.noise_std:g}"

    def num_parameters(self, d_in: int, d_out: int) -> int:
        """Trained numbers of one member in one layer."""
        return 2 * super().num_parameters(d_in, d_out)

    def draw(self, layer: str, d_in: int, d_out: int, key: seeds.Key) -> tuple[np.ndarray, ...]:
        """Means of r (d_in,) and s (d_out,) of one member in one layer, and their rho."""
        rho = math.log(math.expm1(self.noise_std))
        return *super().draw(layer, d_in, d_out, key), np.full(d_in, rho), np.full(d_out, rho)

    def kl_weight(self, step: int, num_steps: int, num_train: int) -> float:
        """Weight of the KL divergence in the loss of step `step` (from 0)."""
        annealed = self.annealed_frac * num_steps
        return min(1.0, (step + 1) / annealed if annealed else 1.0) / num_train


@dataclass(frozen=True)
class LastLayer:
    """Trains only what makes class logits of the frozen backbone's features: the answer tokens' rows of the
    language model's head, or the classification head of a task that is scored by one.

    The features are computed once for all members, so all examples must have the same answer tokens.

    Args:
        std: of the Gaussian noise that a member adds to the language model's rows; 0 starts every member as
            the backbone.
    """

    label = "last-layer"
    rank: ClassVar[int] = 0
    targets: ClassVar[tuple[str, ...]] = ()
    zero_factor: ClassVar[str | None] = None

    std: float = 0.0

    def __post_init__(self) -> None:
        _not_negative("LastLayer", "std", self.std)

    @property
    def starts_apart(self) -> bool:
        return self.std > 0

    @property
    def init_label(self) -> str:
        return f"noise-{self.std:g}" if self.std else "head"

    def draw(self, rows_CD: np.ndarray, key: seeds.Key) -> np.ndarray:
        """One member's rows before the first step."""
        noise_CD = seeds.stream(*key, "head").normal(0.0, self.std, rows_CD.shape) if self.std else 0.0
        return rows_CD + noise_CD


@dataclass(frozen=True)
class Full:
    """Trains every weight of the backbone: full fine-tuning, and with several members the explicit ensemble.

    Each member has all weights of its own, and a forward pass of its own: nothing is shared in a stack.
    """

    label, init_label = "full", "backbone"
    starts_apart: ClassVar[bool] = False
    rank: ClassVar[int] = 0
    targets: ClassVar[tuple[str, ...]] = ()
    zero_factor: ClassVar[str | None] = None


@dataclass(frozen=True)
class InContext:
    """Trains nothing: the untouched backbone reads demonstrations, training examples with their right
    answers, before the question. Several members are an ensemble of prompts.

    A member draws its demonstrations from a stream of its own, uniformly and without replacement from the
    training examples that fit `Budget(max_tokens)`, in random order.

    Args:
        shots: demonstrations, >= 1; a member's first ones are those of the member with fewer.
        calibrated: subtract from the class logits the log-probabilities of the classes after the same
            demonstrations and "N/A" as question: contextual calibration (Zhao et al. 2021, arXiv:2102.09690),
            whose W is diag(p_cf)^-1.
    """

    label = "in-context"
    starts_apart: ClassVar[bool] = True
    rank: ClassVar[int] = 0
    targets: ClassVar[tuple[str, ...]] = ()
    zero_factor: ClassVar[str | None] = None

    shots: int = 4
    calibrated: bool = True

    def __post_init__(self) -> None:
        if self.shots < 1:
            raise ValueError(
                f"shots={self.shots}: must be >= 1; write InContext(shots=4), or members=0 for none"
            )

    @property
    def init_label(self) -> str:
        return f"{self.shots}-shot" + ("+calibrated" if self.calibrated else "")


Bayesian = Blob | Rank1BNN  # methods that learn a distribution of their weights
Adapter = Lora | Vera | Blob | BatchEnsemble | Rank1BNN  # methods that change some linear layers
Method = Adapter | LastLayer | Full | InContext


def _check_rank(method: Lora | Vera) -> None:
    if method.rank < 1:
        raise ValueError(f"rank={method.rank}: must be >= 1; write {type(method).__name__}(rank=8)")


def _check_targets(method: Adapter) -> None:
    if not isinstance(method.targets, tuple) or not method.targets:
        raise ValueError(
            f'targets={method.targets!r}: must be a tuple of layer names; write targets=("q_proj", "v_proj")'
        )


def _positive(owner: str, name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name}={value}: must be > 0; write {owner}({name}=1.0)")


def _not_negative(owner: str, name: str, value: float) -> None:
    if value < 0:
        raise ValueError(f"{name}={value}: must be >= 0; write {owner}({name}=0) to start as the backbone")


def adapted_layers(
    method: Method, linears: dict[str, tuple[int, int]], backbone: str
) -> dict[str, tuple[int, int]]:
    """The linear layers that `method` adapts, name -> (d_in, d_out), in the backbone's order; none for
    `LastLayer`, `Full` and `InContext`.

    A target matches a layer whose path is it or ends in `.target`; "q", "k", "v" and "o" match every name in
    `ROLES`. The output head is never adapted.

    Raises:
        ValueError: a target matches nothing, or the rank exceeds a layer's smaller side.
    """
    if isinstance(method, (LastLayer, Full, InContext)):
        return {}
    for target in method.targets:
        if not any(_matches(name, target) for name in linears):
            known = ", ".join(dict.fromkeys(name.rsplit(".", 1)[-1] for name in linears))
            raise ValueError(
                f"targets={method.targets} : {target!r} matches no Linear of {backbone}; it has {known}"
            )
    chosen = {n: shape for n, shape in linears.items() if any(_matches(n, t) for t in method.targets)}
    smallest = min(min(shape) for shape in chosen.values())
    if isinstance(method, Lora) and method.rank > smallest:
        raise ValueError(
            f"rank={method.rank} exceeds the smaller side ({smallest}) of an adapted layer of {backbone}; "
            f"write Lora(rank={min(8, smallest)})"
        )
    return chosen


def _matches(name: str, target: str) -> bool:
    return any(name == known or name.endswith("." + known) for known in (target, *ROLES.get(target, ())))


def target_modules(method: Adapter, layers: Iterable[str]) -> list[str]:
    """The targets as other libraries know them: of a role, the names that `layers` have."""
    dotted = [f".{name}" for name in layers]
    known = [name for target in method.targets for name in (target, *ROLES.get(target, ()))]
    return [name for name in known if any(layer.endswith(f".{name}") for layer in dotted)]
