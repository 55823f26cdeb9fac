"""Reliability of a cell: accuracy against confidence, estimated as the tables' numbers are.

In each of 15 bins of the top probability, accuracy is the number of right answers over the number of answers,
both means over the cell's ensembles; its standard error over trainings is that of this ratio, linearised:
each training moves both numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.cells import Cell
from analysis.data import Trials
from analysis.significance import Estimate
from lorae import metrics
from lorae.metrics import Rule

NUM_BINS = 15
SHARES = ("count", "right", "confidence")  # of a bin, over all examples


@dataclass(frozen=True)
class Bin:
    """One bin (lo, hi] of the top probability that has examples.

    Args:
        count: expected number of examples.
        confidence, accuracy: means over these examples.
        stderr: of the accuracy, over trainings; None if unknown.
    """

    lo: float
    hi: float
    count: float
    confidence: float
    accuracy: float
    stderr: float | None


def reliability(trials: Trials, cell: Cell) -> list[Bin]:
    """The bins of a cell that have examples, by ascending confidence."""
    names = [f"{share}{place}" for place in range(NUM_BINS) for share in SHARES]
    found = trials.estimates.of_ensembles(cell, names, _shares)
    num_examples = cell.rows[0]["num_examples"]
    bins = []
    for place in range(NUM_BINS):
        count, right, confidence = (found[f"{share}{place}"] for share in SHARES)
        if count and right and confidence and count.value > 0:
            bins.append(
                Bin(
                    place / NUM_BINS,
                    (place + 1) / NUM_BINS,
                    count.value * num_examples,
                    confidence.value / count.value,
                    right.value / count.value,
                    _stderr_of_ratio(right, count),
                )
            )
    return bins


def _shares(logits_MNC: np.ndarray, labels_N: np.ndarray, rule: Rule) -> dict[str, float]:
    """Of one ensemble, each bin's examples, right answers and summed confidence, over all examples."""
    bins = metrics.reliability_bins(metrics.combine(logits_MNC, rule), labels_N, NUM_BINS)
    shares = {f"{share}{place}": 0.0 for place in range(NUM_BINS) for share in SHARES}
    for lo, count, confidence, accuracy in zip(bins.lo, bins.count, bins.confidence, bins.accuracy):
        place, share = round(lo * NUM_BINS), count / len(labels_N)
        of_bin = zip(SHARES, (share, share * accuracy, share * confidence))
        shares |= {f"{name}{place}": float(value) for name, value in of_bin}
    return shares


def _stderr_of_ratio(above: Estimate, below: Estimate) -> float | None:
    """Of above / below, whose trainings are the same."""
    moved, moved_below = above.members or above.seeds, below.members or below.seeds
    if moved is None or moved_below is None:
        return None
    ratio = above.value / below.value
    moves = [(row[0] - ratio * moved_below[training][0]) / below.value for training, row in moved.items()]
    return float(np.sqrt(np.sum(np.square(moves))))
