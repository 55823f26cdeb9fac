"""What an ensemble of M members of a recipe achieves: the mean over subsets of the trained members.

A table's row of M members estimates *an* ensemble of M members trained by its recipe, not the one that
happens to have the first M: the metric's mean over the subsets of size M of each pool (all members of one
recipe and seed), then over seeds. Every table, figure and finding takes its numbers from here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.influence import Measured
from analysis.significance import Estimate, Moves
from lorae.ensemble import subsets

MAX_SUBSETS = 70  # of a pool; enough for all subsets of 4 of 8
CROSSED_EXAMPLES = 1000  # test examples from which the joint effect of examples and trainings is estimated

Subset = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Design:
    """The subsets of a pool of P members from which an ensemble of M members is estimated.

    Args:
        pool_size: P.
        chosen: subsets of size M, whose mean is the estimate.
        deleted: for a pool of exactly M members, the subsets that lack one member each: the ensembles of M -
            1 then give how far a member moves the estimate; () = not needed.
    """

    pool_size: int
    chosen: tuple[Subset, ...]
    deleted: tuple[Subset, ...] = ()

    @classmethod
    def of(cls, pool_size: int, members: int, max_subsets: int = MAX_SUBSETS) -> Design:
        """All subsets, or about `max_subsets` of them that contain each member equally often, so that a good
        member's share is not left to chance.

        Raises:
            ValueError: members is not in [1, pool_size].
        """
        if members < pool_size and math.comb(pool_size, members) > max_subsets:
            return cls(pool_size, tuple(_balanced(pool_size, members, max_subsets)))
        chosen = tuple(subsets(pool_size, members, max_subsets))
        everyone = range(pool_size) if members == pool_size > 1 else ()
        return cls(pool_size, chosen, tuple(tuple(i for i in everyone if i != out) for out in everyone))

    @property
    def is_whole(self) -> bool:
        """Whether the pool is no larger than the ensemble."""
        return len(self.chosen[0]) == self.pool_size

    def moved(self, values_of: Callable[[Subset], np.ndarray]) -> np.ndarray:
        """How far each member moves the estimate, (P, ...): the jackknife's pseudo-values minus their mean.

        Each is P - 1 times the difference of the estimate and the one without the member. If not all subsets
        were chosen, they come from the least-squares effects of the members on the subsets' values. 0 for a
        pool of one.
        """
        size = len(self.chosen[0])
        if self.deleted:
            without_P = np.array([values_of(subset) for subset in self.deleted])
            return (self.pool_size - 1) * (without_P.mean(axis=0) - without_P)
        values_B = np.array([values_of(subset) for subset in self.chosen])
        is_in_BP = np.zeros((len(self.chosen), self.pool_size))
        for place, subset in enumerate(self.chosen):
            is_in_BP[place, list(subset)] = 1
        effects = np.linalg.pinv(is_in_BP) @ values_B
        return size * (effects - effects.mean(axis=0))


def _balanced(pool_size: int, members: int, max_subsets: int) -> list[Subset]:
    """Consecutive subsets around a circle of shuffled members until it closes, then around another one."""
    per_circle = pool_size // math.gcd(pool_size, members)
    rng = np.random.default_rng((0, pool_size, members))
    found: list[Subset] = []
    for _ in range(max(1, max_subsets // per_circle)):
        circle = rng.permutation(pool_size).tolist() * 2
        starts = (number * members % pool_size for number in range(per_circle))
        found += [tuple(sorted(circle[start : start + members])) for start in starts]
    return found


@dataclass(frozen=True, eq=False)
class Pool:
    """The members of one recipe and seed, and one metric of any of their ensembles.

    Args:
        seed: root of their random streams.
        design: the subsets that were measured.
        measured: gives the metric of a subset; called several times with the same one.
    """

    seed: int
    design: Design
    measured: Callable[[Subset], Measured]

    @property
    def values(self) -> np.ndarray:
        """The metric, then each example's contribution, mean over the chosen subsets, (1 + N,)."""
        return np.mean([self._row(subset) for subset in self.design.chosen], axis=0)

    def moved(self, places: np.ndarray) -> np.ndarray:
        """How far each member moves the metric and the contributions at `places`, (P, 1 + len(places))."""
        kept = np.concatenate([[0], 1 + places])
        return self.design.moved(lambda subset: self._row(subset)[kept])

    def _row(self, subset: Subset) -> np.ndarray:
        found = self.measured(subset)
        return np.concatenate([[found.value], found.examples])


def estimate(pools: Sequence[Pool], *, exchangeable: bool, root: bool = False) -> Estimate:
    """One metric of an ensemble of M members of a recipe, from its pools of all seeds.

    Args:
        exchangeable: members of a seed share no random stream, so each is an independent training; otherwise
            only seeds are.
        root: the metric is a square, whose root is shown.
    """
    values_S = np.array([pool.values for pool in pools])
    whole, num_examples = values_S.mean(axis=0), values_S.shape[1] - 1
    places = np.arange(num_examples)
    if num_examples > CROSSED_EXAMPLES:
        places = np.sort(np.random.default_rng(0).choice(num_examples, CROSSED_EXAMPLES, replace=False))
    kept = np.concatenate([[0], 1 + places])
    scale = np.concatenate([[1.0], np.full(len(places), np.sqrt(num_examples / max(len(places), 1)))])
    between_S = (values_S - whole)[:, kept] * scale
    return Estimate(
        float(whole[0]),
        whole[1:],
        _members(pools, between_S, places, scale) if exchangeable else None,
        _seeds(pools, between_S),
        num_trainings=sum(pool.design.pool_size for pool in pools),
        root=root,
    )


def _members(
    pools: Sequence[Pool], between_S: np.ndarray, places: np.ndarray, scale: np.ndarray
) -> Moves | None:
    """The pseudo-value of each of n trainings minus the estimate, over sqrt(n (n - 1)).

    None for one pool that is no larger than the ensemble: its ensemble is one observation.
    """
    designs = [pool.design for pool in pools]
    sizes = [design.pool_size for design in designs]
    num = sum(sizes)
    if len(pools) == 1 and designs[0].is_whole:
        return None
    if any(design.is_whole and design.pool_size > 1 and not design.deleted for design in designs):
        return None
    found: Moves = {}
    for pool, between, size in zip(pools, between_S, sizes, strict=True):
        share = np.sqrt(num / (num - 1)) / (len(pools) * size)
        moved = (between + pool.moved(places) * scale) * share
        found |= {(pool.seed, member): row for member, row in enumerate(moved)}
    return found


def _seeds(pools: Sequence[Pool], between_S: np.ndarray) -> Moves | None:
    """The value of each of n seeds minus the estimate, over sqrt(n (n - 1)); None for a single seed."""
    num = len(pools)
    if num < 2:
        return None
    share = 1 / np.sqrt(num * (num - 1))
    return {(pool.seed, 0): row * share for pool, row in zip(pools, between_S, strict=True)}
