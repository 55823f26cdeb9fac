"""How a sweep searches its axes instead of running the whole grid: stop stacks early, or sample axes.

The objective is always the validation NLL of the ensemble, from the mean of its members' probabilities. A
search never changes a member's identity: a sampled value has three significant digits and could have been
written in the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorae.trial import Budget

DIGITS = 3  # of a searched or tuned value: precise enough for any setting, few enough to read and to recur


def rounded(value: float) -> float:
    """The value rounded to three significant digits."""
    return float(f"{value:.{DIGITS}g}")


@dataclass(frozen=True)
class Uniform:
    """An axis of all values in [low, high]."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"{self}: low must be < high; write Uniform(0.0, 0.3)")

    def rounded(self, value: float) -> float:
        """A sampled value rounded to three significant digits, within the bounds."""
        return min(max(rounded(value), self.low), self.high)


@dataclass(frozen=True)
class LogUniform(Uniform):
    """An axis of all values in [low, high], sampled uniformly on a logarithmic scale."""

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise ValueError(f"{self}: must be 0 < low < high; write LogUniform(1e-5, 1e-3)")


@dataclass(frozen=True, kw_only=True)
class EarlyEnd:
    """Base of the rules that stop stacks early: when a stack is evaluated, and how long it cannot be stopped.

    A stack with a failed member is no longer evaluated, and is trained to its end.

    Args:
        every: steps between evaluations; None = once per epoch.
        grace: evaluations before a stack may be stopped, >= 1.
    """

    every: int | None = None
    grace: int = 1

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise ValueError(f"every={self.every}: must be >= 1 step, or None for once per epoch")
        if self.grace < 1:
            raise ValueError(f"grace={self.grace}: must be >= 1 evaluation")

    def steps_between(self, budget: Budget, num_train: int) -> int:
        """Steps between two evaluations of a stack."""
        return self.every or budget.steps_per_epoch(num_train)

    def num_evaluations(self, budget: Budget, num_train: int) -> int:
        """Evaluations of a stack that is trained to its end; the last one evaluates the stored members.

        Raises:
            ValueError: training ends before the stack could be stopped.
        """
        num_steps, every = budget.num_steps(num_train), self.steps_between(budget, num_train)
        if self.grace * every >= num_steps:
            raise ValueError(
                f"{type(self).__name__}(grace={self.grace}) with an evaluation every {every} steps: training "
                f"is over after {num_steps} steps, no stack could be stopped; write a smaller grace or every"
            )
        return -(-num_steps // every)


@dataclass(frozen=True, kw_only=True)
class ASHA(EarlyEnd):
    """Asynchronous successive halving: only the best 1 / reduction of the stacks at a rung continue.

    Rungs are at grace, grace * reduction, grace * reduction^2, ... evaluations.

    Args:
        reduction: > 1.
    Source: Li et al. 2020, arXiv:1810.05934.
    """

    reduction: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.reduction > 1:
            raise ValueError(f"reduction={self.reduction}: must be > 1; write ASHA(reduction=3)")


@dataclass(frozen=True, kw_only=True)
class MedianStopping(EarlyEnd):
    """Stops a stack if its best NLL so far is above the median of the other stacks' mean NLLs to that point.

    Args:
        min_stacks: other stacks that must have reached that point before a stack is stopped, >= 1.
    Source: Golovin et al. 2017, Google Vizier, section 3.2.2.
    """

    min_stacks: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_stacks < 1:
            raise ValueError(f"min_stacks={self.min_stacks}: must be >= 1")


@dataclass(frozen=True)
class Optuna:
    """Samples the continuous axes with Optuna's tree-structured Parzen estimator.

    Each combination of the other axes (except members and combine) is tuned separately, starting from the
    base's own values. Points are proposed in rounds, from the results of all earlier rounds, so they depend
    only on these settings and the stored NLLs, and a repeated search finds its points stored.

    Args:
        num_samples: points per combination, including the base's own.
        seed: seed of the sampler.
        batch: points per combination and round; they can be trained in parallel.
    Source: Akiba et al. 2019, arXiv:1907.10902.
    """

    num_samples: int
    seed: int = 0
    batch: int = 4

    def __post_init__(self) -> None:
        for name in ("num_samples", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be >= 1; write Optuna(num_samples=20)")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: must be >= 0")


Search = ASHA | MedianStopping | Optuna
