"""Verdicts as lorae gave them until 2026-11-30, which `lorae bench verdicts` shows beside today's.

A row was the first M members of each seed, averaged over seeds. Only test examples were resampled. Each row
was compared with the best of the sample, by the larger of the p-values of percentile and basic intervals, and
the K - 1 p-values were Holm-corrected. The calibration error was ECE-15.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.columns import direction
from analysis.estimates import Subset
from analysis.gain import holm
from analysis.significance import ALPHA
from jobs.bench.simulated import Members
from lorae.metrics.calibration import equal_width_bin
from lorae.metrics.proper import correct
from lorae.metrics.selective import confidence

RESAMPLES = 1000
MEANS = ("acc", "ensemble_nll", "brier", "ts_ensemble_nll")


@dataclass(frozen=True, eq=False)
class Resampled:
    """A metric on the original examples and on every resample, (R,)."""

    value: float
    resampled_R: np.ndarray

    @classmethod
    def over_seeds(cls, seeds: Sequence[Resampled]) -> Resampled:
        mean = np.mean([seed.resampled_R for seed in seeds], axis=0)
        return cls(float(np.mean([seed.value for seed in seeds])), mean)


@dataclass(frozen=True, eq=False)
class Resampling:
    """How often each test and OOD example occurs in each resample; all rows share the resamples."""

    test_RN: np.ndarray
    ood_RN: np.ndarray

    @classmethod
    def drawn(cls, rng: np.random.Generator, num: int) -> Resampling:
        drawn_SRN = rng.integers(0, num, (2, RESAMPLES, num)) + num * np.arange(RESAMPLES)[:, None]
        counts = [np.bincount(drawn_RN.ravel(), minlength=RESAMPLES * num) for drawn_RN in drawn_SRN]
        return cls(*(count.reshape(RESAMPLES, num).astype(np.float64) for count in counts))

    def columns(self, members: Members, subset: Subset) -> dict[str, Resampled]:
        """Every column of one ensemble, ECE-15 in place of its debiased form.

        An AUROC is resampled by each example's contribution, which omits terms of order 1/N.
        """
        found, num = members.columns(subset), self.test_RN.shape[1]
        names = [name for name in MEANS if name in found]
        auroc = found["auroc_msp"]
        contributions_NX = np.array([*(found[name].examples for name in names), auroc.examples[:num]]).T
        predictions = zip(("", "ts_"), members.pooled(subset))
        gaps = {ts: _gaps(logp_NC, members.labels_N) for ts, logp_NC in predictions if logp_NC is not None}
        sums_RX = self.test_RN @ np.hstack([contributions_NX, *gaps.values()])
        shrunk = np.sqrt((num - 1) / num)  # contributions are scaled up by its inverse, and sum to 0
        columns = {
            name: Resampled(found[name].value, found[name].value + shrunk * sums_RX[:, place])
            for place, name in enumerate(names)
        }
        moved_R = sums_RX[:, len(names)] + self.ood_RN @ auroc.examples[num:]
        columns["auroc_msp"] = Resampled(auroc.value, auroc.value + shrunk * moved_R)
        start = len(names) + 1
        for ts, gaps_NB in gaps.items():
            stop = start + gaps_NB.shape[1]
            ece, ece_R = (
                np.abs(sums).sum(axis=-1) / num for sums in (gaps_NB.sum(axis=0), sums_RX[:, start:stop])
            )
            columns[f"{ts}debiased_ce15"], start = Resampled(float(ece), ece_R), stop
        return columns


def _gaps(logp_NC: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """Correct minus confidence in the column of the example's bin of ECE-15, (N, 15)."""
    confidence_N = confidence(logp_NC, labels_N)
    gap_N = correct(logp_NC, labels_N) - confidence_N
    return gap_N[:, None] * (equal_width_bin(confidence_N, 15)[:, None] == np.arange(15))


def worse(rows: Sequence[Resampled], column: str) -> tuple[int, set[int]]:
    """Index of the best row, and indices of the rows judged worse."""
    values = [row.value for row in rows]
    best = int((np.argmin if direction(column) == "lower" else np.argmax)(values))
    others = [place for place, value in enumerate(values) if value != values[best]]
    p_values = holm([_p_value(rows[place], rows[best]) for place in others])
    return best, {place for place, p_value in zip(others, p_values) if p_value <= ALPHA}


def _p_value(row: Resampled, best: Resampled) -> float:
    value, resampled_R = row.value - best.value, row.resampled_R - best.resampled_R
    reflected_R = np.round(2 * value - resampled_R, 12)
    return max(_two_sided(resampled_R), _two_sided(reflected_R))


def _two_sided(replicate_R: np.ndarray) -> float:
    tail = (1 + min(np.sum(replicate_R <= 0), np.sum(replicate_R >= 0))) / (len(replicate_R) + 1)
    return min(1.0, 2 * float(tail))
