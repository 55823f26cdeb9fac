"""Every metric of a table, recomputed from the stored Parquet files by a script that knows nothing of lorae."""

from __future__ import annotations

import csv
import subprocess
import sys

import pytest
from test_analysis_data import make_sweep

from analysis.data import load_trials
from analysis.render import csv_text
from analysis.resampling import resample
from analysis.table import comparison
from lorae.regularizers import KL

SCRIPT = """
import json, sys
import numpy as np, pyarrow.parquet as pq
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp, softmax

def predictions(row, where):                                 # logits (members, examples, classes) and labels
    folders = [f"members/{m}" for m in row["member_ids"]] or [f"reference/{row['reference_id']}"]
    name = json.loads(row["eval_sets"])[where]
    tables = [pq.read_table(f"{storage}/{folder}/predictions/{name}.parquet") for folder in folders]
    return np.array([t["logits"].to_pylist() for t in tables], float), tables[0]["label"].to_numpy()

def scores(logp, y):                                                                     # NLL, ECE-15, right
    p, right = np.exp(logp), logp.argmax(1) == y
    gap, bins = right - p.max(1), np.ceil(15 * p.max(1))
    return -logp[range(len(y)), y].mean(), sum(abs(gap[bins == b].sum()) for b in range(16)) / len(y), right

def pooled(logits):                                                             # log of the mean probability
    return logsumexp(log_softmax(logits, axis=2), axis=0) - np.log(len(logits))

storage, found = sys.argv[1], []
for row in pq.read_table(f"{storage}/sweeps/toy/trials.parquet").to_pylist():
    (test, y), (val, val_y), (ood, _) = (predictions(row, where) for where in ("test", "validation", "greys"))
    logp, sure, unsure = pooled(test), softmax(test, 2).mean(0).max(1), softmax(ood, 2).mean(0).max(1)
    nll, ece, right = scores(logp, y)
    brier = ((np.exp(logp) - np.eye(logp.shape[1])[y]) ** 2).sum(1).mean()
    auroc = ((sure[:, None] > unsure).mean() + (sure[:, None] >= unsure).mean()) / 2
    at = lambda log_t, z=pooled(val), y=val_y: scores(log_softmax(z / np.exp(log_t), axis=1), y)[0]
    t = np.exp(minimize_scalar(at, bounds=np.log([0.05, 20]), method="bounded", options={"xatol": 1e-9}).x)
    ts_nll, ts_ece, _ = scores(log_softmax(logp / t, axis=1), y)
    found.append([row["trial_id"], right.mean(), nll, ece, brier, auroc, ts_nll, ts_ece])
print(json.dumps(found))
"""
