"""SWAG: the Gaussian of stochastic weight averaging (Maddox et al. 2019, arXiv:1902.02476), around LoRA
members (Onal et al. 2024, arXiv:2405.03425)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lorae import seeds
from lorae.draws.base import Fitted, Sizes
from lorae.draws.sampling import Fit, Sampler
from lorae.methods import Method
from lorae.untrusted import count

if TYPE_CHECKING:
    import torch

    from lorae.engine.adapters import State
    from lorae.tasks.encoding import Row
    from lorae.trial import Trial

FP64, FP32 = 8, 4  # bytes of a number


@dataclass(frozen=True)
class SWAG(Fitted):
    """Samples from a Gaussian around a member's parameters, N(mean, (S + D D^T / (rank - 1)) / 2): S is the
    diagonal covariance of the parameters at several steps of further training, and the columns of D are
    their last `rank` deviations from the running mean.

    Training of the member continues at a constant learning rate, with its loss, its regularisers (without
    early stopping), the next epochs of its data order, and a new AdamW. Its parameters, including a
    classification head, are collected at `collected` equally spaced steps.

    Args:
        samples: number of draws, >= 1.
        rank: number of deviations to keep, >= 2.
        lr: learning rate, > 0.
        epochs: epochs of further training, >= 1.
        collected: times that the parameters are collected, >= rank, and at most the steps of these epochs.
    Source: Maddox et al. 2019, arXiv:1902.02476, equation 1 and algorithm 1.
    """

    kind = "swag"
    record: ClassVar[Mapping[str, Any]] = {"collected": count}
    note: ClassVar[str | None] = (
        "SWAG samples half the covariance, as Maddox et al. (2019) do, and trains on with a new AdamW; the "
        "code of SWAG-LoRA samples all of it, keeps AdamW's moments and anneals the learning rate first."
    )

    rank: int = 5
    lr: float = 1e-4
    epochs: int = 10
    collected: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.rank <= self.collected:
            raise ValueError(
                f"rank={self.rank}, collected={self.collected}: rank must be in [2, collected]; write "
                "SWAG(rank=5, collected=10)"
            )
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr}: must be > 0; write SWAG(lr=1e-4)")
        if self.epochs < 1:
            raise ValueError(f"epochs={self.epochs}: must be >= 1; write SWAG(epochs=10)")

    @property
    def label(self) -> str:
        sizes = self.samples, self.rank, float(self.lr), self.epochs, self.collected
        return f"{self.kind}-{'x'.join(map(str, sizes))}"

    @property
    def title(self) -> str:
        return (
            f"SWAG x{self.samples}, rank {self.rank}, lr {float(self.lr)}, {self.collected} collected in "
            f"{self.epochs} epochs"
        )

    @classmethod
    def from_label(cls, size: str) -> SWAG:
        samples, rank, lr, epochs, collected = size.split("x")
        return cls(int(samples), int(rank), float(lr), int(epochs), int(collected))

    def passes_to_fit(self, num_classes: int) -> int:
        """A forward and a backward pass in each epoch."""
        return 2 * self.epochs

    def fitting_bytes(
        self, method: Method, layers: Mapping[str, tuple[int, int]], num_members: int, rows: int, sizes: Sizes
    ) -> int:
        """The members' original parameters, beside the copy in training; mean, mean square and deviations are
        in host memory."""
        numbers = num_members * sum(method.num_parameters(*shape) for shape in layers.values())
        return numbers * (FP32 + FP64 * (2 + self.rank + 1))

    def sampler(self) -> type[Samples]:
        return Samples

    def longer(self, trial: Trial, num_train: int) -> tuple[Trial, range]:
        """The recipe of the further training, and its steps after those of `trial`.

        Raises:
            ValueError: there are fewer steps than parameters are collected.
        """
        begin, more = trial.budget.num_steps(num_train), self.epochs * trial.budget.steps_per_epoch(num_train)
        if more < self.collected:
            raise ValueError(
                f"collected={self.collected}: {self.epochs} epochs have {more} steps; write "
                f"SWAG(collected={more}), or more epochs"
            )
        longer = replace(
            trial,
            draws=None,
            regularizers=tuple(r for r in trial.regularizers if not r.keeps_best),
            optimizer=replace(trial.optimizer, lr=self.lr, schedule="constant", warmup_frac=0.0),
            budget=replace(trial.budget, epochs=None, steps=begin + more),
        )
        return longer, range(begin, begin + more)


class Samples(Sampler[SWAG]):
    """Samples of the members of a stack, each member from its own moments."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for name, parameter in self.adapters.parameters.items():
            shape = tuple(parameter.shape[1:])
            found |= {f"{name}.mean": shape, f"{name}.variance": shape}
            found[f"{name}.deviations"] = self.spec.rank, *shape
        return found

    def _fitted(self, rows: Sequence[Row]) -> list[Fit]:
        from lorae.engine.training import train_stack

        assert self.trial is not None, "to train on, one must know how"
        longer, steps = self.spec.longer(self.trial, len(rows))
        moments, backbone = self._moments(steps), self.adapters.backbone
        batch, in_epoch = longer.budget.batch_size, longer.budget.steps_per_epoch(len(rows))

        def on_step(step: int, num_steps: int, runs: object) -> None:
            done = (step - 1) % in_epoch * batch
            for _ in range(2):  # forward and backward
                self.on_rows(rows[done : done + batch])

        with self.adapters.removed():
            data = self._data(longer, rows)
            train_stack(
                backbone,
                longer,
                self.members,
                data,
                micro_batch=self.rows_at_once,
                checkpoints=moments,
                on_step=on_step,
            )
        found = backbone.ranks.once(lambda: [[fit.record, fit.tensors] for fit in moments.fits()])
        return [Fit(record, tensors) for record, tensors in found]

    def _data(self, trial: Trial, rows: Sequence[Row]):
        from lorae.engine.prediction import predict
        from lorae.engine.training import TrainingData

        needed = any(r.needs_reference for r in trial.regularizers)
        return TrainingData(rows, (), predict(self.adapters.backbone, rows)[0] if needed else None)

    def _moments(self, steps: range) -> Moments:
        """Moments to collect from a training that starts from the members' current parameters."""
        from lorae.engine.checkpoints import checkpoint
        from lorae.engine.optimizer import Optimizer
        from lorae.engine.training import MemberRun

        runs, adapters = [MemberRun(m) for m in self.members], self.adapters
        optimizer = Optimizer(adapters, ())  # that has not taken a step
        start = checkpoint(steps.start, list(range(len(runs))), runs, adapters, optimizer)
        return Moments(start, steps, self.spec)

    def predict(self, rows: Sequence[Row]) -> np.ndarray:
        from lorae.engine.prediction import predict

        logits = []
        for sample in range(self.spec.samples):
            self.adapters.load([self._sampled(m, sample) for m in range(len(self.fits))])
            logits.append(predict(self.adapters.backbone, rows, on_rows=self.on_rows))
        self.adapters.load(self.states)
        return np.stack(logits, axis=1)

    def _sampled(self, member: int, sample: int) -> State:
        """Parameters of one sample of a member."""
        import torch

        tensors, key, rank = (
            self.fits[member].tensors,
            (self.member_ids[member], "swag", sample),
            self.spec.rank,
        )
        along_K = torch.from_numpy(seeds.stream(*key).normal(0.0, 1 / math.sqrt(2 * (rank - 1)), rank))
        state: State = {}
        for name in self.states[member]:
            mean, variance, deviations_K = (
                tensors[f"{name}.{part}"].double() for part in ("mean", "variance", "deviations")
            )
            noise = torch.from_numpy(seeds.stream(*key, name).normal(size=tuple(mean.shape)))
            low_rank = torch.tensordot(along_K, deviations_K, 1)
            state[name] = (mean + (variance / 2).sqrt() * noise + low_rank).float()
        return state


class Moments:
    """Mean, mean square and last deviations of the members' parameters, collected where a training would save
    its checkpoints; NaN for a member that fails.

    Args:
        start: the checkpoint that the training starts from.
        steps: steps of the training.
    """

    def __init__(self, start: tuple[State, dict[str, Any]], steps: range, spec: SWAG) -> None:
        self.start, self.spec, self.done, self.num = start, spec, steps.start, 0
        self.at = {steps.start + k * len(steps) // spec.collected for k in range(1, spec.collected + 1)}
        self.mean: State = {}
        self.square: State = {}
        self.deviations: dict[str, list[torch.Tensor]] = {}

    def load(self) -> tuple[State, dict[str, Any]]:
        return self.start

    def set_aside(self, why: str) -> None:
        raise ValueError(f"the members' own parameters do not fit them: {why}")

    def due(self) -> bool:
        """Whether to collect; asked after each step."""
        self.done += 1
        return self.done in self.at

    def save(self, tensors: State, header: dict[str, Any]) -> None:
        """Collect once, as in algorithm 1: a deviation is from the mean that already includes it."""
        import torch

        self.num += 1
        for key, value in tensors.items():
            folder, _, name = key.partition("/")
            if folder != "parameter":
                continue
            num_members = len(header["runs"])
            theta = torch.full((num_members, *value.shape[1:]), math.nan, dtype=torch.float64)
            theta[header["active"]] = value.cpu().double()
            for moment, power in ((self.mean, theta), (self.square, theta.square())):
                before = moment.setdefault(name, torch.zeros_like(theta))
                moment[name] = before + (power - before) / self.num
            kept = [*self.deviations.get(name, ()), theta - self.mean[name]]
            self.deviations[name] = kept[-self.spec.rank :]

    def fits(self) -> list[Fit]:
        """What was collected for each member."""
        num_members = len(self.start[1]["runs"])
        return [Fit({"collected": self.num}, self._of_member(m)) for m in range(num_members)]

    def _of_member(self, member: int) -> State:
        import torch

        found: State = {}
        for name, mean in self.mean.items():
            variance = (self.square[name] - mean.square()).clamp(min=0.0)
            found |= {f"{name}.mean": mean[member].float(), f"{name}.variance": variance[member].float()}
            found[f"{name}.deviations"] = torch.stack([d[member] for d in self.deviations[name]]).float()
        return found
