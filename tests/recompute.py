"""The main metrics of a sweep's trials from its Parquet files alone, without lorae.

python recompute.py STORAGE SWEEP [OOD_TASK]

A line for each row of trials.parquet, of its own members; under "pool" what tables show: the mean over all
ensembles of so many of the members that its recipe and seed have. Tables then average over seeds. STORAGE may
be an archive of one, such as results/study.

Rows that average probabilities, of one prediction of each member, and soups; other sweeps are refused.
"""

import functools
import glob
import hashlib
import itertools
import json
import sys

import numpy as np
import pyarrow.parquet as pq
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp

storage, sweep, *ood_tasks = sys.argv[1:]

archive = glob.glob(f"{storage}/*/predictions.parquet")


@functools.cache
def predictions(entry, file):
    """A prediction set of a storage, or of an archive of one."""
    if not archive:
        return pq.read_table(f"{storage}/{entry}/{file}")
    return pq.read_table(archive, filters=[("entry", "=", entry), ("file", "=", file)])


def members(row, where):
    """Each member's log-probabilities, or its soup's, and the labels."""
    folders = [f"members/{m}" for m in row["member_ids"]] or [f"reference/{row['reference_id']}"]
    if row["combine"] == "weights" and row["members"] > 1:
        ids = json.dumps(sorted(row["member_ids"]), separators=(",", ":"))
        folders = [f"soups/{hashlib.sha256(ids.encode()).hexdigest()[:16]}"]
    tables = [predictions(f, f"predictions/{json.loads(row['eval_sets'])[where]}.parquet") for f in folders]
    return log_softmax([t["logits"].to_pylist() for t in tables], axis=2), tables[0]["label"].to_numpy()


def pooled(logp):
    """Log of the members' mean probability."""
    return logsumexp(logp, axis=0) - np.log(len(logp))


def nll(logp, y):
    return -logp[range(len(y)), y].mean()


def ece15(logp, y):
    top, bins = np.exp(logp.max(1)), np.ceil(15 * np.exp(logp.max(1)))
    return sum(abs(np.sum((logp.argmax(1) == y) - top, where=bins == b)) for b in range(1, 16)) / len(y)


def debiased_ce15(logp, y):
    order = np.argsort(np.exp(logp.max(1)), kind="stable")  # no ties
    gaps = ((logp.argmax(1) == y) - np.exp(logp.max(1)))[order]
    run = np.floor((np.arange(len(y)) + 0.5) * min(15, len(y) // 2) / len(y))
    runs = [gaps[run == number] for number in np.unique(run)]
    square = sum((np.outer(g, g).sum() - np.sum(g * g)) / (len(g) - 1) for g in runs) / len(y)
    return np.sign(square) * abs(square) ** 0.5


def temperature(logp, y):
    return np.exp(
        minimize_scalar(lambda log_t: nll(log_softmax(logp / np.exp(log_t), 1), y), (-1, 1), tol=1e-9).x
    )


def calibrated(logp, y):
    """Each of five folds by the temperature that is best on the other four."""
    fold = np.empty(len(y), int)
    fold[np.random.RandomState(0).permutation(len(y))] = np.arange(len(y)) % 5
    t = np.array([temperature(logp[fold != k], y[fold != k]) for k in range(5)])
    return log_softmax(logp / t[fold, None], 1)


folder = sweep if archive else f"sweeps/{sweep}"
rows = pq.read_table(f"{storage}/{folder}/trials.parquet").to_pylist()
for row in rows:
    if row["combine"] == "logits" or row["draws"] != "none":
        sys.exit(
            f"error: sweep {sweep} has a row with combine={row['combine']!r} and draws {row['draws']}; this "
            'script recomputes "probs" and "weights" with draws none; give it a sweep of such rows'
        )


def pool_of(row):
    """The row with the most members of the same recipe and seed; itself if it has none, or is a soup."""
    if not row["member_ids"] or (row["combine"] == "weights" and row["members"] > 1):
        return row
    names = ("recipe", "seed", "diversity")
    same = [r for r in rows if [r[n] for n in names] == [row[n] for n in names] and r["combine"] != "weights"]
    return max(same, key=lambda r: r["members"])


def over_subsets(row):
    each, y = members(pool_of(row), "test")
    size = row["members"] if pool_of(row)["members"] > row["members"] > 0 else len(each)
    ensembles = [pooled(each[list(subset)]) for subset in itertools.combinations(range(len(each)), size)]
    found = [
        (np.mean(p.argmax(1) == y), nll(p, y), np.mean(np.sum((np.exp(p) - np.eye(p.shape[1])[y]) ** 2, 1)))
        for p in ensembles
    ]
    return dict(zip(("acc", "ensemble_nll", "brier"), np.mean(found, axis=0)))


for row in rows:
    each, y = members(row, "test")
    logp = pooled(each)
    metrics = {
        "acc": np.mean(logp.argmax(1) == y),
        "ensemble_nll": nll(logp, y),
        "ece15": ece15(logp, y),
        "debiased_ce15": debiased_ce15(logp, y),
        "brier": np.mean(np.sum((np.exp(logp) - np.eye(logp.shape[1])[y]) ** 2, 1)),
    }
    for task in ood_tasks:
        ood = pooled(members(row, task)[0])
        metrics[f"auroc_msp__{task}"] = np.mean(logp.max(1)[:, None] > ood.max(1))  # no ties
    if row["temperature_flag"] is None:
        scaled = calibrated(logp, y)
        metrics |= {"ts_ensemble_nll": nll(scaled, y), "ts_ece15": ece15(scaled, y)}
    if row["members_temperature_flag"] is None:
        scaled = pooled([calibrated(member, y) for member in each])
        metrics |= {"members_ts_ensemble_nll": nll(scaled, y), "members_ts_ece15": ece15(scaled, y)}
    print(json.dumps(metrics | {"pool": over_subsets(row)}))
