"""How certain a difference is, over new test examples and new trainings, for all pairs of rows at once.

A number in a table is an `Estimate`: its value, and how far each test example and each training moved it.
Rows of one table share examples, and often members, so the contributions of two rows are subtracted source by
source:

    Var(a - b) = sum_n (a_n - b_n)^2 + sum_i (a_i - b_i)^2 - sum_in (a_in - b_in)^2

The first sum, over test examples, is the infinitesimal jackknife, which for a mean is the paired t-test. The
second, over trainings, is the jackknife over members, or over seeds if members of a seed share a random
stream. Both contain the joint effect of an example and a training, so it is subtracted once: the variance
components of two crossed random effects (Owen 2007, Annals of Applied Statistics 1(2)). An interval's
half-width h has h^2 = sum t^2 V over the sources' variances V, each with the quantile t of its own degrees of
freedom. Its coverage is at least nominal, however few trainings there are (Banerjee 1961, Journal of the
American Statistical Association 56; the interval of Welch and Satterthwaite covers less where few degrees of
freedom decide).

All pairs of rows of a column are one family: p-values and intervals are adjusted by the largest of all
pairs' statistics (max-T, Westfall and Young 1993), drawn from the normal distribution with the rows'
covariance. All that is derived from them agrees: which rows are worse than the best, and any row minus any
other.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, Literal, TypeVar

import numpy as np
from scipy import special, stats

from analysis.t_scores import half_width, largest_scores, normal_score
from lorae.metrics.summary import Direction

ALPHA = 0.05  # of the simultaneous intervals (1 - ALPHA) and the verdicts
DRAWS = 4_000  # of the largest statistic if all rows are equal
ROUNDING = 1e-6  # relative; the variance of a smaller difference is lost to rounding
BLOCK_NUMBERS = 1_000_000  # draws x pairs at once
MAX_NUMBERS = 10_000_000  # draws x pairs; more pairs get fewer draws, but at least 1,000

# What a training, (seed, member), contributed: to the metric, and to each example's contribution to it
Moves = dict[tuple[int, int], np.ndarray]
Verdict = Literal["lower", "higher", "equivalent", "undecided"]
Mark = Literal["best", "equivalent", "undecided", "worse"]
Row = TypeVar("Row", bound=Hashable)


# Estimates -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Estimate:
    """A row's metric with the contribution of each source of chance.

    The sum of a source's squared contributions is its share of the variance.

    Args:
        value: mean over the subsets of each pool, then over seeds; for a squared error, see `root`.
        examples: contribution of each example, (N,), in an order that all rows of a column share.
        members: contribution of each training, then its joint contributions with each example; None if
            unknown.
        seeds: the same for each seed, as its member 0; None for a single seed.
        num_trainings: distinct members behind the value; 0 for an untrained model.
        root: the value is the square of what is shown; differences are tested as squares.
    """

    value: float
    examples: np.ndarray
    members: Moves | None = None
    seeds: Moves | None = None
    num_trainings: int = 0
    root: bool = False

    @property
    def mean(self) -> float:
        """The value shown; 0 for a square that chance took below 0."""
        return root_of(self.value) if self.root else self.value

    @property
    def stderr(self) -> float | None:
        """Standard error over trainings, on the scale that is shown; None if unknown."""
        moved = self.members or self.seeds
        if moved is None:
            return None
        error = float(np.sqrt(sum(row[0] ** 2 for row in moved.values())))
        if not self.root:
            return error
        return (root_of(self.value + error) - root_of(self.value - error)) / 2

    @property
    def is_of_these(self) -> bool:
        """Whether it holds only for its own members: how far a new training would move it is unknown."""
        return self.num_trainings > 0 and self.members is None and self.seeds is None

    @property
    def is_comparable(self) -> bool:
        """Whether it is known how far new examples and new trainings would move it."""
        return len(self.examples) > 1 and not self.is_of_these


def root_of(square: float) -> float:
    """The root of a square, as it is shown; 0 if chance took the square below 0."""
    return float(np.sqrt(max(square, 0.0)))


# Differences ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """One row minus another with its simultaneous 95 % interval, adjusted p-value and verdict.

    Without a verdict, interval and p-value are None: the difference holds for these very members, not for new
    ones.
    """

    value: float
    lo: float | None = None
    hi: float | None = None
    p_value: float | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True, eq=False)
class Family(Generic[Row]):
    """All rows of one column on one test set, and every difference between two of them.

    Args:
        rows: their estimates, which share the order of their examples.
        margin: the largest difference that does not matter, in the unit of the metric.
        is_share: the metric is a share of correct answers. If few answers differ, their estimated variance is
            too low to call two rows equivalent; the variance at the margin is then taken instead, at least m
            - m^2 for a paired difference of 1, 0 or -1 with mean m.
        pairs: the differences that make up the family, each (row, baseline); None = all.
    Raises:
        ValueError: the margin is not above 0.
    """

    rows: Mapping[Row, Estimate]
    margin: float
    is_share: bool = False
    pairs: Sequence[tuple[Row, Row]] | None = None

    def __post_init__(self) -> None:
        if not self.margin > 0:
            raise ValueError(f"margin={self.margin}: must be > 0, the largest difference that is none")

    def difference(self, row: Row, baseline: Row) -> Difference:
        """`row` minus `baseline`; for squares, on the scale of their roots."""
        a, b = self.rows[row], self.rows[baseline]
        if row == baseline or row not in self._place or baseline not in self._place:
            return Difference(a.mean - b.mean)
        variances, df = self._sources[:, :, self._place[row], self._place[baseline]]
        square = self._gap(row, baseline)
        half = half_width(self._critical, variances, df)
        ends = (square, square - half, square + half)
        value, lo, hi = (_difference_of_roots(end, a.value + b.value) for end in ends) if a.root else ends
        verdict: Verdict = "undecided"
        if lo > 0 or hi < 0:
            verdict = "higher" if lo > 0 else "lower"
        elif -self.margin < lo and hi < self.margin and self._is_told_equal(square, variances, df):
            verdict = "equivalent"
        return Difference(value, lo, hi, self._p_value(normal_score(square, variances, df)), verdict)

    def marks(self, direction: Direction) -> dict[Row, Mark]:
        """Each row against the best comparable row: "worse" than it, "equivalent", or "undecided".

        Rows that hold only for their own members have no mark; if one of them has the best value, the others
        are compared with the best of the rest.
        """
        sign = {"lower": 1, "higher": -1}[direction]
        if not self._place:
            return {}
        best = min(self._place, key=lambda row: sign * self.rows[row].mean)
        found: dict[Row, Mark] = {}
        for row in self._place:
            verdict = self.difference(row, best).verdict
            worse = verdict == ("higher" if direction == "lower" else "lower")
            found[row] = "worse" if worse else "equivalent" if verdict == "equivalent" else "undecided"
            if self.rows[row].mean == self.rows[best].mean or self._gap(row, best) == 0:
                found[row] = "best"
        return found

    def _gap(self, row: Row, baseline: Row) -> float:
        """Difference of two values; 0 for rows that differ only by rounding, which have no variance."""
        a, b = self.rows[row].value, self.rows[baseline].value
        moved = self._sources[0, :, self._place[row], self._place[baseline]].any()
        return a - b if moved or abs(a - b) > ROUNDING * max(abs(a), abs(b)) else 0.0

    def _is_told_equal(self, square: float, variances: np.ndarray, df: np.ndarray) -> bool:
        """Whether equivalence does not rest on underestimated variances."""
        if not self.is_share:
            return square == 0 or bool(variances.any())
        least = (self.margin - self.margin**2) / df[0]
        at_margin = np.maximum(variances, [least, 0, 0, 0])
        return abs(square) + half_width(self._critical, at_margin, df) < self.margin

    def _p_value(self, score: float) -> float:
        """Adjusted for all pairs; at most ALPHA if the interval excludes 0."""
        alone = float(2 * special.ndtr(-score))
        if self._num_pairs == 1:
            return alone
        share = float(1 + np.sum(self._largest >= score)) / (len(self._largest) + 1)
        return float(np.clip(share, alone, min(1.0, alone * self._num_pairs)))

    @cached_property
    def _place(self) -> dict[Row, int]:
        """Index of each comparable row in the arrays below."""
        comparable = (row for row, estimate in self.rows.items() if estimate.is_comparable)
        return {row: place for place, row in enumerate(comparable)}

    @cached_property
    def _sources(self) -> np.ndarray:
        """Variances and degrees of freedom (2, 4, K, K) of the sources of each difference: examples,
        trainings that both rows have, those of one row only, and of the other only."""
        estimates = [self.rows[row] for row in self._place]
        examples_KN = np.array([e.examples for e in estimates])
        by_member = np.array([e.members is not None or not e.num_trainings for e in estimates])
        of_members = _of_trainings([e.members for e in estimates])
        of_seeds = _of_trainings([e.seeds or _apart(e.members) for e in estimates])
        found = np.where(by_member[:, None] & by_member, of_members, of_seeds)  # (7, K, K)
        variances, df, crossed = found[:3], found[3:6], found[6]
        of_examples = _squared_distances(examples_KN)
        alone = np.maximum(of_examples - np.minimum(crossed, variances.sum(axis=0)), 0)
        df_of_examples = np.full_like(alone, max(examples_KN.shape[1] - 1, 1))
        return np.array([[alone, *variances], [df_of_examples, *df]])

    @cached_property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the two rows of each difference in the family."""
        if self.pairs is None:
            return np.triu_indices(len(self._place), 1)
        told = [(self._place[a], self._place[b]) for a, b in self.pairs if {a, b} <= self._place.keys()]
        first, second = np.array(told, np.intp).reshape(-1, 2).T
        return first, second

    @property
    def _num_pairs(self) -> int:
        return max(1, len(self._pairs[0]))

    @cached_property
    def _critical(self) -> float:
        """What the largest difference's normal score exceeds with probability ALPHA if all rows are equal; at
        least the value of a single pair, at most Bonferroni's."""
        if self._num_pairs == 1:
            return float(stats.norm.isf(ALPHA / 2))
        last = int(ALPHA * (len(self._largest) + 1)) - 1
        of_all = np.sort(self._largest)[::-1][last]
        return float(np.clip(of_all, stats.norm.isf(ALPHA / 2), stats.norm.isf(ALPHA / 2 / self._num_pairs)))

    @cached_property
    def _largest(self) -> np.ndarray:
        """Draws of the largest |difference| over all pairs if all rows are equal, each as a normal score.

        Differences follow the rows' covariance; the variances that they are divided by are drawn separately
        for each pair, with Satterthwaite's degrees of freedom.
        """
        num = len(self._place)
        first, second = self._pairs
        if not len(first):
            return np.zeros(DRAWS)
        variances, df = self._sources[:, :, first, second]
        kept = variances.sum(axis=0) > 0
        first, second, variances, df = first[kept], second[kept], variances[:, kept], df[:, kept]
        if not len(first):
            return np.zeros(DRAWS)
        df_P = np.minimum(variances.sum(axis=0) ** 2 / np.sum(variances**2 / df, axis=0), 1e6)
        root_KK = self._covariance_root()
        error_P = np.sqrt(np.sum((root_KK[first] - root_KK[second]) ** 2, axis=1))
        rng, draws = np.random.default_rng(0), []
        num_draws = int(np.clip(MAX_NUMBERS // len(first), 1000, DRAWS))
        for start in range(0, num_draws, block := max(1, BLOCK_NUMBERS // len(first))):
            size = min(block, num_draws - start)
            drawn_RK = rng.standard_normal((size, num)) @ root_KK.T
            t_RP = (drawn_RK[:, first] - drawn_RK[:, second]) / error_P
            t_RP = t_RP / np.sqrt(rng.chisquare(df_P, t_RP.shape) / df_P)
            draws.append(largest_scores(t_RP, df_P))
        return np.concatenate(draws)

    def _covariance_root(self) -> np.ndarray:
        """R (K, K) with R R^T the covariance of the rows' estimates."""
        estimates = [self.rows[row] for row in self._place]
        members_KU, seeds_KS = (
            np.nan_to_num(_table(m)[:, :, 0]) for m in zip(*((e.members, e.seeds) for e in estimates))
        )
        by_seed = np.array([[e.members is None] for e in estimates])
        moved = np.hstack([np.array([e.examples for e in estimates]), members_KU, seeds_KS * by_seed])
        values, vectors = np.linalg.eigh(moved @ moved.T)
        return vectors * np.sqrt(np.maximum(values, 0))


def _of_trainings(moves: Sequence[Moves | None]) -> np.ndarray:
    """Effect of trainings on the differences of K rows, (7, K, K): three variances, from the trainings that
    both rows have (paired), that only the first has, and that only the second has; their degrees of freedom;
    and the joint variance of trainings and examples."""
    table_KUX = _table(moves)
    has_KU = (~np.isnan(table_KUX[:, :, 0])).astype(np.float64)
    table_KUX = np.nan_to_num(table_KUX)
    crossed = _squared_distances(table_KUX[:, :, 1:].reshape(len(moves), -1))
    moved_KU = table_KUX[:, :, 0]
    square_KU, shared = moved_KU**2, has_KU @ has_KU.T
    alone = np.maximum(square_KU.sum(axis=1)[:, None] - square_KU @ has_KU.T, 0)
    paired = np.maximum(_squared_distances(moved_KU) - alone - alone.T, 0)
    num_alone = has_KU.sum(axis=1)[:, None] - shared
    df = np.maximum(np.array([shared, num_alone, num_alone.T]) - 1, 1)
    return np.array([paired, alone, alone.T, *df, crossed])


def _apart(members: Moves | None) -> Moves | None:
    """Members renumbered from 1, beside rows for which only seeds are known, which are member 0."""
    return members and {(seed, member + 1): row for (seed, member), row in members.items()}


def _squared_distances(x_KN: np.ndarray) -> np.ndarray:
    """Squared distance between each two rows, (K, K); exactly 0 for equal ones."""
    gram = x_KN @ x_KN.T
    size = np.diag(gram)
    found = size[:, None] + size - 2 * gram
    return np.where(found > 1e-13 * (size[:, None] + size), found, 0.0)


def _table(moves: Sequence[Moves | None]) -> np.ndarray:
    """Contributions by row, training and moved quantity, (K, U, X); NaN where a row lacks a training."""
    units = dict.fromkeys(unit for moved in moves for unit in moved or ())
    width = max((len(row) for moved in moves for row in (moved or {}).values()), default=1)
    found = np.full((len(moves), len(units), width), np.nan)
    for row, moved in enumerate(moves):
        for place, unit in enumerate(units):
            if moved and unit in moved:
                found[row, place] = moved[unit]
    return found


def _difference_of_roots(difference: float, total: float) -> float:
    """sqrt(a) - sqrt(b) from a - b and a + b, neither square below 0."""
    total = max(total, abs(difference))
    return float(np.sqrt((total + difference) / 2) - np.sqrt((total - difference) / 2))
