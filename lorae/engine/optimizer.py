"""AdamW on the parameters of a stack, whose members may have different learning rates, decays and bounds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.optim.adamw import adamw

from lorae.backbone.devices import to_device
from lorae.engine.adapters import HEAD, Adapters
from lorae.trial import AdamW, Trial


@dataclass
class Moments:
    """Running means of a parameter's gradients and of their squares, members leading, over `steps` steps."""

    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor
    steps: int = 0


@dataclass(frozen=True)
class Numbers:
    """What an update depends on besides the gradient and its moments."""

    lr: float
    weight_decay: float
    betas: tuple[float, float]
    eps: float


class Optimizer:
    """AdamW on stacked parameters. The update is element-wise, so it does not couple members; one kernel
    updates neighbours with equal numbers.

    Args:
        trials: the trial of each member.

    Attributes:
        moments: by name; none for a parameter that class logits do not depend on.
    """

    def __init__(self, adapters: Adapters, trials: Sequence[Trial]) -> None:
        self.adapters, self.trials = adapters, list(trials)
        self.zero_factors = set(adapters.zero_initialised())
        self.moments: dict[str, Moments] = {}

    @torch.no_grad()
    def step(self, lr_M: Sequence[float]) -> None:
        """Update the parameters, each member with its own learning rate."""
        kinds = {
            (in_head, decayed): [*self._neighbours(lr_M, in_head, decayed)]
            for in_head in (False, True)
            for decayed in (False, True)
        }
        updates: dict[Numbers, list[tuple[Sequence[torch.Tensor], int]]] = {}
        for name, p in self.adapters.parameters.items():
            if p.grad is None:
                continue
            if name not in self.moments:
                self.moments[name] = Moments(torch.zeros_like(p), torch.zeros_like(p))
            moments = self.moments[name]
            tensors = p, p.grad, moments.exp_avg, moments.exp_avg_sq
            neighbours = kinds[name in HEAD, name in self.zero_factors]
            for numbers, part in neighbours:
                own = tensors if len(neighbours) == 1 else [tensor[part] for tensor in tensors]
                updates.setdefault(numbers, []).append((own, moments.steps))
            moments.steps += 1
        for numbers, parts in updates.items():
            _update(numbers, *zip(*parts))

    def keep(self, members: Sequence[int]) -> None:
        """Drop all other members; `Adapters.keep` has dropped their parameters."""
        self.trials = [self.trials[m] for m in members]
        for moments in self.moments.values():
            moments.exp_avg, moments.exp_avg_sq = moments.exp_avg[members], moments.exp_avg_sq[members]

    def _neighbours(
        self, lr_M: Sequence[float], in_head: bool, decayed: bool
    ) -> Iterator[tuple[Numbers, slice]]:
        """Members next to each other with the same numbers for one kind of parameter."""
        numbers_M = [_numbers(trial, lr, in_head, decayed) for trial, lr in zip(self.trials, lr_M)]
        start = 0
        for numbers, same in itertools.groupby(numbers_M):
            end = start + len([*same])
            yield numbers, slice(start, end)
            start = end


def _numbers(trial: Trial, lr: float, in_head: bool, decayed: bool) -> Numbers:
    """A member's numbers: heads may have their own learning rate, and the zero-initialised factor more decay
    than the others."""
    spec, decay = trial.optimizer, 0.0
    if decayed:
        decay = sum(regularizer.decay_zero_factor for regularizer in trial.regularizers)
    ratio = spec.head_lr / spec.lr if spec.head_lr and in_head else 1.0
    return Numbers(lr * ratio, spec.weight_decay + decay, spec.betas, spec.eps)


def _update(numbers: Numbers, tensors: Sequence[Sequence[torch.Tensor]], steps: Sequence[int]) -> None:
    """Torch's fused AdamW on parameters, their gradients and moments, after these numbers of steps."""
    parameters, gradients, exp_avgs, exp_avg_sqs = (list(of_all) for of_all in zip(*tensors))
    adamw(
        parameters,
        gradients,
        exp_avgs,
        exp_avg_sqs,
        [],
        [*to_device([float(n) for n in steps], parameters[0].device).unbind()],
        fused=True,
        amsgrad=False,
        beta1=numbers.betas[0],
        beta2=numbers.betas[1],
        lr=numbers.lr,
        weight_decay=numbers.weight_decay,
        eps=numbers.eps,
        maximize=False,
    )


def learning_rate(optimizer: AdamW, step: int, num_steps: int) -> float:
    """Learning rate of step `step` (from 0): linear warm-up, then decay to zero at `num_steps` or at the end
    of each cycle."""
    warmup = optimizer.warmup_steps(num_steps)
    if step < warmup:
        return optimizer.lr * (step + 1) / warmup
    if optimizer.cycles:
        ends = [warmup, *optimizer.snapshot_steps(num_steps), num_steps]
        begin, end = next((a, b) for a, b in itertools.pairwise(ends) if step < b)
        return optimizer.lr * (1 + math.cos(math.pi * (step - begin) / (end - begin))) / 2
    progress = (step - warmup) / max(1, num_steps - warmup)
    if optimizer.schedule == "constant":
        return optimizer.lr
    return optimizer.lr * (
        1 - progress if optimizer.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    )


def clip_per_member(adapters: Adapters, max_norms: Sequence[float | None]) -> torch.Tensor:
    """Scale each member's gradient to at most its bound by its own global norm; returns the norms (M,) before
    scaling."""
    grads = adapters.gradients()
    norms_M = torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in grads]), dim=0
    )
    if any(bound is not None for bound in max_norms):
        bounds = [math.inf if bound is None else bound for bound in max_norms]
        bound_M = bounds[0] if len({*bounds}) == 1 else to_device(bounds, norms_M.device)
        scale_M = ((norms_M + 1e-6).reciprocal() * bound_M).clamp(max=1.0)
        for g in grads:
            g.mul_(scale_M.view(-1, *[1] * (g.dim() - 1)))
    return norms_M
