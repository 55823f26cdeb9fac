"""`lorae bench verdicts`: how often equal rows are told apart, and how often a true gain is found.

In A/A trials, every row of a table has its own trainings but the same true metrics as all other rows, so
every verdict is false. Each table is judged by `analysis.significance.Family` ("now"), and as lorae did until
2026-11-30 ("before", `jobs.bench.examples_only`).
"""

from __future__ import annotations

import functools
import itertools
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from analysis.columns import MARGINS, margin_name, title
from analysis.estimates import Design, Pool, Subset, estimate
from analysis.influence import Measured
from analysis.significance import Estimate, Family
from jobs.bench.examples_only import Resampled, Resampling, worse
from jobs.bench.simulated import (
    COLUMNS,
    Examples,
    Members,
    Recipe,
    calibrated,
    improved,
    recipe_of_spread,
    true_means,
)

NUM_EXAMPLES = (256, 1000, 4000)
SPREADS = (0.0, 0.015, 0.03)  # nats; standard deviation over trainings of a single member's expected NLL
ROWS = (2, 10, 20)  # of a table
GAIN = 0.02  # nats
STORED = 20  # members of each row; designs use the first ones
CONFIDENCES = ((0.5, 1.0), (0.95, 0.99))  # of two calibrated recipes
ALLOWED = 0.07  # largest share of tables of equal rows with a verdict
NOW, BEFORE = "now", "before"


@dataclass(frozen=True)
class Trained:
    """What a row of M members was computed from: pools of equal size, one for each seed."""

    seeds: int
    pool: int
    members: int

    @property
    def pools(self) -> list[Subset]:
        """The members of each seed's pool; pools of 8 and of 4 start with the same members, as do pools of 4
        and of 1."""
        apart = max(self.pool, 4)
        return [tuple(range(apart * seed, apart * seed + self.pool)) for seed in range(self.seeds)]

    @property
    def first(self) -> list[Subset]:
        """The first M members of each pool."""
        return [pool[: self.members] for pool in self.pools]

    def __str__(self) -> str:
        seeds = f"{self.seeds} seed{'s' * (self.seeds > 1)}"
        return f"{seeds} x {self.pool}, M = {self.members}"


SINGLES = tuple(Trained(seeds, pool, 1) for seeds, pool in ((1, 4), (1, 8), (2, 1), (3, 1), (3, 4), (5, 4)))
ENSEMBLES = tuple(Trained(seeds, pool, 4) for seeds, pool in ((1, 8), (3, 4), (5, 4)))


@dataclass(frozen=True)
class Record:
    """One cell of the simulation.

    Args:
        what: "false": tables of equal rows with any verdict. "calibrated": the same for two calibrated
            recipes of different sharpness. "power": true differences that are found. "covered": intervals of
            M = 4 minus M = 1 that contain the true difference.
        spread: None for calibrated recipes.
        procedure: `NOW` or `BEFORE`.
        shares: for each test set, the share of its tables, differences or intervals.
        each: number of these on one test set.
    """

    what: str
    num_examples: int
    spread: float | None
    trained: Trained
    rows: int
    column: str
    procedure: str
    shares: list[float]
    each: int


@dataclass(frozen=True, eq=False)
class Row:
    """One row of a table: its estimate now and its resamples before, by `Trained` and column; None if a
    temperature is flagged."""

    now: dict[tuple[Trained, str], Estimate | None]
    before: dict[tuple[Trained, str], Resampled | None]

    @classmethod
    def of(
        cls, members: Members, resampling: Resampling, made_from: Sequence[Trained], columns: Sequence[str]
    ) -> Row:
        resampled = functools.cache(functools.partial(resampling.columns, members))
        cells = list(itertools.product(made_from, columns))
        return cls(
            {(trained, column): estimated(members, trained, column) for trained, column in cells},
            {(trained, column): _over_seeds(resampled, trained, column) for trained, column in cells},
        )


def estimated(members: Members, trained: Trained, column: str) -> Estimate | None:
    """An estimate, computed as `analysis.pooling` does for a cell."""
    design = Design.of(trained.pool, trained.members)
    pools = []
    for seed, of_pool in enumerate(trained.pools):
        found: dict[Subset, Measured] = {}
        for subset in (*design.chosen, *design.deleted):
            one = members.columns(tuple(of_pool[i] for i in subset)).get(column)
            if one is None:
                return None
            found[subset] = one
        pools.append(Pool(seed, design, found.__getitem__))
    return estimate(pools, exchangeable=True, root="debiased" in column)


def _over_seeds(
    resampled: Callable[[Subset], dict[str, Resampled]], trained: Trained, column: str
) -> Resampled | None:
    found = [resampled(subset).get(column) for subset in trained.first]
    return Resampled.over_seeds([one for one in found if one]) if all(found) else None


# Simulating ------------------------------------------------------------------------------------------------

Found = Iterator[tuple[tuple[str, Trained, int, str, str], list[bool]]]


def measure(test_sets: int) -> dict[str, Any]:
    """All cells as plain data; takes about two minutes on one core for each test set.

    Args:
        test_sets: number drawn in each setting, each with new trainings of 20 equal recipes: ten tables of
            two rows, two of ten and one of twenty.
    """
    if test_sets < 1:
        raise ValueError(f"--test-sets {test_sets}: must be at least 1, the number that each setting draws")
    started, records = time.perf_counter(), []
    for num_examples, spread in itertools.product(NUM_EXAMPLES, (*SPREADS, None)):
        records += [asdict(record) for record in setting(num_examples, spread, test_sets)]
        passed = time.perf_counter() - started
        print(f"{num_examples} examples, spread {spread}: {passed:.0f} s", file=sys.stderr, flush=True)
    return {"test_sets": test_sets, "records": records}


def setting(num_examples: int, spread: float | None, test_sets: int) -> list[Record]:
    """All cells for a number of examples and a spread; None = the two calibrated recipes."""
    found: dict[tuple[str, Trained, int, str, str], list[list[bool]]] = defaultdict(list)
    for number in range(test_sets):
        rng = np.random.default_rng((num_examples, round(1e6 * (spread or 0)), number))
        on_one = calibrated_pairs(rng, num_examples)
        if spread is not None:
            on_one = equal_rows(rng, num_examples, recipe_of_spread(spread))
        for key, answers in on_one:
            found[key].append(answers)
    records = []
    for (what, trained, rows, column, procedure), answers in found.items():
        shares, each = [float(np.mean(of_one)) for of_one in answers], len(answers[0])
        records.append(Record(what, num_examples, spread, trained, rows, column, procedure, shares, each))
    return records


def equal_rows(rng: np.random.Generator, num_examples: int, recipe: Recipe) -> Found:
    """Tables of equal rows on one test set, tables with one better row, and intervals of M = 4 minus 1."""
    examples = Examples.drawn(rng, num_examples)
    resampling = Resampling.drawn(rng, num_examples)

    def row(recipe: Recipe, made_from: Sequence[Trained], columns: Sequence[str]) -> Row:
        return Row.of(recipe.members(rng, examples, STORED), resampling, made_from, columns)

    rows = [row(recipe, (*SINGLES, *ENSEMBLES), COLUMNS) for _ in range(max(ROWS))]
    for trained, column, size in itertools.product((*SINGLES, *ENSEMBLES), COLUMNS, ROWS):
        tables = [rows[start : start + size] for start in range(0, len(rows), size)]
        yield from _false("false", tables, trained, column)
    for made_from in (SINGLES, ENSEMBLES):
        better = row(improved(recipe, GAIN, made_from[0].members), made_from, ["ensemble_nll"])
        for trained, size in itertools.product(made_from, ROWS[:2]):
            tables = [[better, *rows[start : start + size - 1]] for start in range(0, 10, size)]
            yield from _found_gains(tables, trained)
    for trained, column in itertools.product(ENSEMBLES, COLUMNS):
        yield ("covered", trained, 2, column, NOW), _covered(rows, trained, column, recipe)


def calibrated_pairs(rng: np.random.Generator, num_examples: int) -> Found:
    """Tables of a less and a more confident recipe, both perfectly calibrated."""
    labels_N, resampling = rng.integers(0, 2, num_examples), Resampling.drawn(rng, num_examples)
    tables = [
        [
            Row.of(calibrated(rng, labels_N, confidence, STORED), resampling, SINGLES, ["debiased_ce15"])
            for confidence in CONFIDENCES
        ]
        for _ in range(10)
    ]
    for trained in SINGLES:
        yield from _false("calibrated", tables, trained, "debiased_ce15")


def _false(what: str, tables: Sequence[Sequence[Row]], trained: Trained, column: str) -> Found:
    """Whether each table has any verdict."""
    key, size = (trained, column), len(tables[0])
    families = [family([row.now[key] for row in rows], column) for rows in tables]
    yield (what, trained, size, column, NOW), [tells_any(one) for one in families]
    before = [[row.before[key] for row in rows] for rows in tables]
    told = [bool(worse([row for row in rows if row], column)[1]) for rows in before]
    yield (what, trained, size, column, BEFORE), told


def family(estimates: Sequence[Estimate | None], column: str) -> Family[int]:
    """A column of a table as a family; its rows are indices."""
    rows = {place: one for place, one in enumerate(estimates) if one}
    return Family(rows, MARGINS[margin_name(column)], is_share=column == "acc")


def tells_any(found: Family[int]) -> bool:
    """Whether any two rows are told apart."""
    pairs = itertools.combinations(found.rows, 2)
    return any(found.difference(a, b).verdict in ("lower", "higher") for a, b in pairs)


def _found_gains(tables: Sequence[Sequence[Row]], trained: Trained) -> Found:
    """For each table whose first row is better: whether it is found better than each other row."""
    key, size = (trained, column := "ensemble_nll"), len(tables[0])
    now, before = [], []
    for rows in tables:
        found = family([row.now[key] for row in rows], column)
        now += [found.difference(0, other).verdict == "lower" for other in range(1, size)]
        best, are_worse = worse([one for row in rows if (one := row.before[key])], column)
        before += [best == 0 and other in are_worse for other in range(1, size)]
    yield ("power", trained, size, column, NOW), now
    yield ("power", trained, size, column, BEFORE), before


def _covered(rows: Sequence[Row], trained: Trained, column: str, recipe: Recipe) -> list[bool]:
    """For each row's pools: whether the interval of M = 4 minus M = 1 contains the true difference."""
    single = Trained(trained.seeds, trained.pool, 1)
    truth = true_means(recipe, trained.members)[column] - true_means(recipe, 1)[column]
    covered = []
    for row in rows:
        found = family([row.now[trained, column], row.now[single, column]], column).difference(0, 1)
        covered.append(found.lo is not None and found.hi is not None and found.lo <= truth <= found.hi)
    return covered


# For people ------------------------------------------------------------------------------------------------

Chosen = dict[str, Any]  # field of a record -> wanted value


def text(found: dict[str, Any]) -> str:
    """Markdown tables of shares in per cent."""
    records = [Record(**row | {"trained": Trained(**row["trained"])}) for row in found["records"]]
    metrics = _by("column", COLUMNS, title)
    singles, ensembles = (_by("trained", made_from, str) for made_from in (SINGLES, ENSEMBLES))
    rows, few_rows = (_by("rows", sizes, "{} rows".format) for sizes in (ROWS, ROWS[:2]))
    sizes = _by("num_examples", NUM_EXAMPLES, "{:,} examples".format)
    settings = _both(sizes, _by("spread", SPREADS, "spread {:g}".format))
    false, nll = {"what": "false"}, {"what": "false", "column": "ensemble_nll"}
    parts = [
        f"{found['test_sets']} test sets in each setting; shares in per cent, {NOW} / {BEFORE}",
        "Tables of equal rows with any verdict:",
        _table(records, metrics, rows, false),
        _highest(records, false),
        "The same of NLL:",
        _table(records, singles | ensembles, rows, nll),
        _table(records, settings, rows, nll),
        "Tables of two calibrated recipes, one surer, with a verdict on the calibration error:",
        _table(records, singles, sizes, {"what": "calibrated"}),
        f"Differences of {GAIN} nats that are told:",
        _table(records, singles | ensembles, _both(sizes, few_rows), {"what": "power"}),
        _table(records, settings, few_rows, {"what": "power"}),
        "Intervals of M = 4 minus M = 1 that hold the true difference:",
        _table(records, metrics, ensembles, {"what": "covered"}),
    ]
    return "\n\n".join(parts)


def _by(field: str, values: Sequence[Any], head: Callable[[Any], str]) -> dict[str, Chosen]:
    return {head(value): {field: value} for value in values}


def _both(first: dict[str, Chosen], second: dict[str, Chosen]) -> dict[str, Chosen]:
    return {f"{a}, {b}": first[a] | second[b] for a, b in itertools.product(first, second)}


def _table(records: Sequence[Record], down: dict[str, Chosen], across: dict[str, Chosen], of: Chosen) -> str:
    """Mean shares now and, if there are any, before."""
    lines = [f"| | {' | '.join(across)} |", "| --- |" + " ---: |" * len(across)]
    for head, chosen in down.items():
        cells = []
        for other in across.values():
            rates = [_rate(records, of | chosen | other | {"procedure": one}) for one in (NOW, BEFORE)]
            cells.append(" / ".join(f"{100 * rate[0]:.1f}" for rate in rates if rate))
        lines.append(f"| {head} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _rate(records: Sequence[Record], of: Chosen) -> tuple[float, float] | None:
    """Mean share of the chosen cells, and its standard error over test sets."""
    on_one = defaultdict(list)
    for record in records:
        if all(getattr(record, field) == value for field, value in of.items()):
            for number, share in enumerate(record.shares):
                on_one[record.num_examples, record.spread, number].append(share)
    if not on_one:
        return None
    means = [float(np.mean(shares)) for shares in on_one.values()]
    return float(np.mean(means)), float(np.std(means)) / max(len(means) - 1, 1) ** 0.5


def _highest(records: Sequence[Record], of: Chosen) -> str:
    """The settings in which today's tables are wrong most often, and how many exceed `ALLOWED` by three
    standard errors."""
    cells = []
    for record in records:
        if record.what == of["what"] and record.procedure == NOW:
            rate, error = _rate([record], {}) or (0.0, 0.0)
            cells.append((rate, error, record))
    above = sum(rate - 3 * error > ALLOWED for rate, error, _ in cells)
    first = sorted(cells, key=lambda cell: -cell[0])[:3]
    named = "; ".join(
        f"{100 * rate:.1f} (standard error {100 * error:.1f}): {title(one.column)}, {one.rows} rows, "
        f"{one.num_examples:,} examples, spread {one.spread}, {one.trained}"
        for rate, error, one in first
    )
    beyond = f"{above} are above {100 * ALLOWED:.0f} by three standard errors"
    return f"Of {len(cells)} cells {beyond}. Highest: {named}"
