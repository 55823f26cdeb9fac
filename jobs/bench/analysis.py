"""`lorae bench analysis`: how fast stored logits become metrics, tables and verdicts, and in how much memory.

Five metrics are computed by `lorae.metrics` and by torchmetrics, in one run on the same logits; the rest is
measured on a `synthetic_storage`.
"""

from __future__ import annotations

import itertools
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from analysis.columns import all_metrics
from analysis.data import load_trials
from analysis.page import table_html
from analysis.render import csv_text, latex, markdown
from analysis.table import comparison
from jobs.bench.apart import Measured, apart
from jobs.bench.synthetic import NUM_CLASSES, synthetic_storage
from lorae import metrics
from lorae.results import trials_table
from lorae.store.store import Store
from lorae.tasks.base import Task
from lorae.trial import Trial

MEMBERS = 20
GROWTH = (1, 10, 100)
TABLE_ROWS = 1000
RENDERED_CELLS = 20  # whose lines are repeated
COMPARED_ROWS = (2, 20)
SWEEP = "bench"

Side = Callable[[np.ndarray, np.ndarray, np.ndarray], dict[str, float]]


def measure(num_examples: int) -> dict[str, Any]:
    """All figures as plain data; takes two to three minutes for 1,000 examples on one core.

    Args:
        num_examples: test examples at size 1x, and of the storage's trials.
    Raises:
        ValueError: torchmetrics is not installed.
    """
    try:
        torchmetrics = version("torchmetrics")
    except PackageNotFoundError:
        raise ValueError(
            "torchmetrics, which lorae is measured against, is not installed; pip install 'lorae[dev]'"
        ) from None
    found: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "torchmetrics": torchmetrics,
        "num_examples": num_examples,
        "metrics": [_metrics(num_examples * times) for times in GROWTH],
    }
    with tempfile.TemporaryDirectory() as storage:
        axes = {
            "optimizer.lr": [1e-5 * n for n in range(1, GROWTH[-1] // 2 + 1)],
            "combine": ["probs", "logits"],
        }
        trials = synthetic_storage(storage, axes | {"members": [MEMBERS]}, num_examples)[1:]  # no zero-shot
        found["trials_table"] = [
            {"trials": num, **_cost(apart(tabulate, storage, trials[:num]))} for num in GROWTH
        ]
        found["rendering"] = {"rows": TABLE_ROWS, **_cost(apart(render, storage, TABLE_ROWS))}
        found["verdicts"] = [{"rows": num, **_cost(apart(compare, storage, num))} for num in COMPARED_ROWS]
    return found


def _cost(measured: Measured) -> dict[str, float]:
    return {"seconds": measured.seconds, "peak_bytes": measured.peak_bytes}


# Metrics, against torchmetrics -----------------------------------------------------------------------------


def _metrics(num_examples: int) -> dict[str, Any]:
    ours, theirs = (apart(repeat, side, num_examples) for side in (by_lorae, by_torchmetrics))
    (our_values, our_seconds), (their_values, their_seconds) = ours.result, theirs.result
    return {
        "examples": num_examples,
        "lorae": {"metrics_per_second": len(our_values) / our_seconds, "peak_bytes": ours.peak_bytes},
        "torchmetrics": {
            "metrics_per_second": len(their_values) / their_seconds,
            "peak_bytes": theirs.peak_bytes,
        },
        "speed_ratio": their_seconds / our_seconds,
        "largest_difference": max(abs(our_values[name] - their_values[name]) for name in our_values),
    }


def repeat(side: Side, num_examples: int) -> tuple[dict[str, float], float]:
    """A side's values on random predictions, and the seconds of its fastest call within about two seconds."""
    rng = np.random.default_rng(0)
    labels_N = rng.integers(0, NUM_CLASSES, num_examples)
    shape = (MEMBERS, num_examples, NUM_CLASSES)
    ood_MNC = rng.standard_normal(shape, dtype=np.float32)
    logits_MNC = rng.standard_normal(shape, dtype=np.float32)
    logits_MNC += 2 * (labels_N[:, None] == np.arange(NUM_CLASSES))
    values = side(logits_MNC, labels_N, ood_MNC)  # imports too
    seconds: list[float] = []
    while sum(seconds) < 2:
        started = time.perf_counter()
        side(logits_MNC, labels_N, ood_MNC)
        seconds.append(time.perf_counter() - started)
    return values, min(seconds)


def by_lorae(logits_MNC: np.ndarray, labels_N: np.ndarray, ood_MNC: np.ndarray) -> dict[str, float]:
    """Five metrics of an ensemble by `lorae.metrics`."""
    logp_NC, ood_NC = metrics.combine(logits_MNC), metrics.combine(ood_MNC)
    return {
        "acc": metrics.acc(logp_NC, labels_N),
        "ensemble_nll": metrics.ensemble_nll(logp_NC, labels_N),
        "ece15": metrics.ece15(logp_NC, labels_N),
        "brier": metrics.brier(logp_NC, labels_N),
        "auroc_msp": metrics.auroc(metrics.score_msp(logp_NC), metrics.score_msp(ood_NC)),
    }


def by_torchmetrics(logits_MNC: np.ndarray, labels_N: np.ndarray, ood_MNC: np.ndarray) -> dict[str, float]:
    """The same by torchmetrics' functions, also in double precision; the NLL is the log of a perplexity, the
    Brier score a mean squared error times the number of classes."""
    import torch
    from torchmetrics.functional import classification, mean_squared_error
    from torchmetrics.functional.text import perplexity

    p_NC, ood_NC = (torch.from_numpy(x).double().softmax(dim=2).mean(dim=0) for x in (logits_MNC, ood_MNC))
    labels = torch.from_numpy(labels_N)
    onehot_NC = torch.nn.functional.one_hot(labels, NUM_CLASSES).double()
    scores = 1 - torch.cat([p_NC, ood_NC]).amax(dim=1)
    is_ood = torch.arange(len(scores)) >= len(p_NC)
    found = {
        "acc": classification.multiclass_accuracy(p_NC, labels, NUM_CLASSES, average="micro"),
        "ensemble_nll": perplexity(p_NC.log()[None], labels[None]).log(),
        "ece15": classification.multiclass_calibration_error(p_NC, labels, NUM_CLASSES, n_bins=15),
        "brier": mean_squared_error(p_NC, onehot_NC) * NUM_CLASSES,
        "auroc_msp": classification.binary_auroc(scores, is_ood.long()),
    }
    return {name: value.item() for name, value in found.items()}


# A storage -------------------------------------------------------------------------------------------------


def tabulate(storage: str, trials: Sequence[tuple[Trial, Sequence[Task]]]) -> None:
    """Compute every metric of the trials from their logits, and write trials.parquet."""
    store = Store(storage)
    store.write_table(SWEEP, trials_table(store, SWEEP, trials, {"command": "lorae bench analysis"}))


def render(storage: str, num_rows: int) -> None:
    """Every metric of `num_rows` cells as Markdown, CSV, LaTeX and HTML; the stored rows are repeated."""
    trials = load_trials(storage, SWEEP)
    few = replace(trials, rows=trials.rows[:RENDERED_CELLS])
    table = comparison(few, all_metrics(few))
    lines = itertools.islice(itertools.cycle(line for block in table.blocks for line in block), num_rows)
    table = replace(table, blocks=(tuple(lines),))
    for rendering in (markdown, csv_text, latex, table_html):
        rendering(table)


def compare(storage: str, num_rows: int) -> None:
    """Estimates and verdicts of `num_rows` rows on the default metrics."""
    trials = load_trials(storage, SWEEP)
    few = replace(trials, rows=trials.rows[:num_rows])
    comparison(few)


# For people ------------------------------------------------------------------------------------------------


def text(found: dict[str, Any]) -> str:
    """The figures as a small table."""
    num, lines = found["num_examples"], []
    lines.append(f"{found['machine']}; peak: resident memory of a fresh process, imports included")
    lines.append(
        f"\nfive metrics of {MEMBERS} members x N examples x {NUM_CLASSES} classes, metrics per second"
    )
    lines.append(
        f"{'N':>10} {'lorae':>10} {'torchmetrics':>13} {'ratio':>6} {'peaks':>16} {'difference':>11}"
    )
    for at in found["metrics"]:
        ours, theirs = at["lorae"], at["torchmetrics"]
        lines.append(
            f"{at['examples']:>10,} {ours['metrics_per_second']:>10.1f} "
            f"{theirs['metrics_per_second']:>13.1f} {at['speed_ratio']:>6.2f} "
            f"{_mib(ours):>7} {_mib(theirs):>8} {at['largest_difference']:>11.0e}"
        )
    lines.append(
        f"lorae: lorae.metrics, numpy float64; torchmetrics: {found['torchmetrics']}, torch float64 on CPU"
    )
    lines.append(
        f"\ntrials of {MEMBERS} members x {num:,} test, as many OOD and a fifth as many validation examples"
    )
    for at in found["trials_table"]:
        lines.append(_line(f"trials table, {at['trials']} trials", at))
    lines.append(_line(f"rendering {found['rendering']['rows']:,} rows in four formats", found["rendering"]))
    for at in found["verdicts"]:
        lines.append(_line(f"estimates and verdicts, {at['rows']} rows", at))
    return "\n".join(lines)


def _line(what: str, at: dict[str, float]) -> str:
    return f"{what:<48} {at['seconds']:>8.1f} s {_mib(at):>9}"


def _mib(at: dict[str, float]) -> str:
    return f"{at['peak_bytes'] / 2**20:.0f} MiB"
