"""The main metrics of a sweep's trials from its Parquet files alone, without lorae: this file runs wherever
numpy, scipy and pyarrow are installed.

    python -m analysis.recompute STORAGE SWEEP [OOD_TASK ...]

Prints a line of JSON for each row of trials.parquet: the metrics of the row's own members and, under "pool",
what tables show: the mean over all ensembles of that size from the members of its recipe and seed. Tables
then average over seeds. STORAGE may be an archive, such as results/study.

Handles soups and rows that average probabilities of one prediction per member; refuses other sweeps.
"""

import glob
import hashlib
import itertools
import json
import sys
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp


class Stored:
    """The rows of a sweep, and the predictions of their members."""

    def __init__(self, storage, sweep):
        self.storage, self.archive = storage, glob.glob(f"{storage}/*/predictions.parquet")
        folder = sweep if self.archive else f"sweeps/{sweep}"
        self.rows = pq.read_table(f"{storage}/{folder}/trials.parquet").to_pylist()
        for row in self.rows:
            if row["scoring"].startswith("value"):
                sys.exit(f"error: {sweep} has rows of numbers; this recomputes metrics of classes")
            if row["combine"] == "logits" or row["draws"] != "none":
                sys.exit(
                    f"error: {sweep} has a row with combine={row['combine']!r} and draws {row['draws']}; "
                    'this recomputes "probs" and "weights" with draws none; give it a sweep of such rows'
                )

    def table(self, entry, file):
        """A prediction set of a storage or of an archive."""
        if not self.archive:
            return pq.read_table(f"{self.storage}/{entry}/{file}")
        return pq.read_table(self.archive, filters=[("entry", "=", entry), ("file", "=", file)])

    def members(self, row, where):
        """Each member's log-probabilities (M, N, C), or its soup's, and the labels (N,)."""
        folders = [f"members/{m}" for m in row["member_ids"]] or [f"reference/{row['reference_id']}"]
        if row["combine"] == "weights" and row["members"] > 1:
            ids = json.dumps(sorted(row["member_ids"]), separators=(",", ":"))
            folders = [f"soups/{hashlib.sha256(ids.encode()).hexdigest()[:16]}"]
        file = f"predictions/{json.loads(row['eval_sets'])[where]}.parquet"
        tables = [self.table(folder, file) for folder in folders]
        return log_softmax([t["logits"].to_pylist() for t in tables], axis=2), tables[0]["label"].to_numpy()

    def pool_of(self, row):
        """The row with the most members of the same recipe and seed; a soup or zero-shot row itself."""
        if not row["member_ids"] or (row["combine"] == "weights" and row["members"] > 1):
            return row
        names = ("recipe", "seed", "diversity")
        same = [r for r in self.rows if [r[n] for n in names] == [row[n] for n in names]]
        return max((r for r in same if r["combine"] != "weights"), key=lambda r: r["members"])

    def metrics(self, row, ood_tasks):
        """Metrics of the row's own members, and over the subsets of its pool."""
        each, y = self.members(row, "test")
        logp = pooled(each)
        found = accuracy_nll_brier(logp, y) | {
            "ece15": ece15(logp, y),
            "debiased_ce15": debiased_ce15(logp, y),
        }
        for task in ood_tasks:
            ood = pooled(self.members(row, task)[0])
            found[f"auroc_msp__{task}"] = np.mean(logp.max(1)[:, None] > ood.max(1))  # no ties
        if row["temperature_flag"] is None:
            scaled = calibrated(logp, y)
            found |= {"ts_ensemble_nll": nll(scaled, y), "ts_ece15": ece15(scaled, y)}
        if row["members_temperature_flag"] is None:
            scaled = pooled([calibrated(member, y) for member in each])
            found |= {"members_ts_ensemble_nll": nll(scaled, y), "members_ts_ece15": ece15(scaled, y)}
        return found | {"pool": self.over_subsets(row)}

    def over_subsets(self, row):
        """Mean metrics of all ensembles of the row's size, from its pool's members."""
        pool = self.pool_of(row)
        each, y = self.members(pool, "test")
        size = row["members"] if pool["members"] > row["members"] > 0 else len(each)
        subsets = itertools.combinations(range(len(each)), size)
        found = [accuracy_nll_brier(pooled(each[list(subset)]), y) for subset in subsets]
        return {name: np.mean([metrics[name] for metrics in found]) for name in found[0]}


def pooled(logp):
    """Log of the members' mean probability."""
    return logsumexp(logp, axis=0) - np.log(len(logp))


def nll(logp, y):
    """Mean negative log-likelihood, in nats."""
    return -logp[range(len(y)), y].mean()


def accuracy_nll_brier(logp, y):
    """The three means over examples."""
    brier = np.mean(np.sum((np.exp(logp) - np.eye(logp.shape[1])[y]) ** 2, 1))
    return {"acc": np.mean(logp.argmax(1) == y), "ensemble_nll": nll(logp, y), "brier": brier}


def ece15(logp, y):
    """Expected calibration error over 15 bins of equal width."""
    top, bins = np.exp(logp.max(1)), np.ceil(15 * np.exp(logp.max(1)))
    return sum(abs(np.sum((logp.argmax(1) == y) - top, where=bins == b)) for b in range(1, 16)) / len(y)


def debiased_ce15(logp, y):
    """Calibration error over 15 bins of equal size, less its bias (arXiv:1909.10155)."""
    order = np.argsort(np.exp(logp.max(1)), kind="stable")  # no ties
    gaps = ((logp.argmax(1) == y) - np.exp(logp.max(1)))[order]
    run = np.floor((np.arange(len(y)) + 0.5) * min(15, len(y) // 2) / len(y))
    runs = [gaps[run == number] for number in np.unique(run)]
    square = sum((np.outer(g, g).sum() - np.sum(g * g)) / (len(g) - 1) for g in runs) / len(y)
    return np.sign(square) * abs(square) ** 0.5


def temperature(logp, y):
    """The temperature with the lowest NLL."""

    def loss(log_t):
        return nll(log_softmax(logp / np.exp(log_t), 1), y)

    best: Any = minimize_scalar(loss, (-1, 1), tol=1e-9)
    return np.exp(best.x)


def calibrated(logp, y):
    """Each of five folds, scaled by the temperature that is best on the other four."""
    fold = np.empty(len(y), int)
    fold[np.random.RandomState(0).permutation(len(y))] = np.arange(len(y)) % 5
    t = np.array([temperature(logp[fold != k], y[fold != k]) for k in range(5)])
    return log_softmax(logp / t[fold, None], 1)


def main():
    """Print every row's metrics."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    storage, sweep, *ood_tasks = sys.argv[1:]
    stored = Stored(storage, sweep)
    for row in stored.rows:
        print(json.dumps(stored.metrics(row, ood_tasks)))


if __name__ == "__main__":
    main()
