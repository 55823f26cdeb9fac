"""A storage of any size with random logits, written as a sweep writes it, for benchmarks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lorae.sources import Hub
from lorae.store.names import member_folder, reference_folder
from lorae.store.predictions import prediction_bytes, prediction_file
from lorae.store.store import Store
from lorae.tasks import CommonsenseQA, OpenBookQA
from lorae.tasks.base import Task
from lorae.trial import Sweep, Trial

NUM_CLASSES = 5
COMMIT = "0" * 40  # nothing is fetched
COST = {"train_tokens": 1000, "train_seconds": 1.0, "predict_seconds": 1.0, "trainable_parameters": 64}


def synthetic_storage(
    storage: str, axes: dict[str, list[Any]], num_examples: int
) -> list[tuple[Trial, Sequence[Task]]]:
    """Store random predictions of every member of a sweep over `axes`; returns its trials with their OOD
    tasks.

    There are five classes, a fifth as many validation as test examples, and as many OOD as test examples,
    which no member recognises. Members see the truth through their own noise, so ensembles gain.
    """
    task = replace(CommonsenseQA(), source=Hub("synthetic/test", COMMIT))
    ood = replace(OpenBookQA(), source=Hub("synthetic/ood", COMMIT))
    sweep = Sweep(base=Trial(backbone=Hub("synthetic/backbone", COMMIT), task=task), axes=axes, ood=[ood])
    trials = sweep.trials()
    truths = {
        task.eval_set("validation"): _truth(num_examples // 5, seed=1),
        task.eval_set("test"): _truth(num_examples, seed=2),
        ood.eval_set("test"): np.zeros((num_examples, NUM_CLASSES), np.float32),
    }
    members = [member_folder(m) for trial in trials for m in trial.member_ids()]
    references = [reference_folder(trial.reference_id()) for trial in trials]
    store = Store(storage)
    for folder in dict.fromkeys(members + references):
        store.write_entry(folder, _files(folder.rsplit("/", 1)[-1], truths))
    return [(trial, sweep.eval_tasks(trial)) for trial in trials]


def _truth(num_examples: int, seed: int) -> np.ndarray:
    """Logits (N, C) that favour a random class for each example."""
    return (
        2
        * np.eye(NUM_CLASSES, dtype=np.float32)[
            np.random.default_rng(seed).integers(0, NUM_CLASSES, num_examples)
        ]
    )


def _files(identity: str, truths: dict[str, np.ndarray]) -> dict[str, bytes]:
    """Files of one member: its cost, and its predictions on every set."""
    rng = np.random.default_rng(int(identity, 16))
    files = {"member.json": json.dumps({"cost": COST}).encode()}
    for name, truth_NC in truths.items():
        logits_NC = truth_NC + 2 * rng.standard_normal(truth_NC.shape, dtype=np.float32)
        ids, labels = [f"{name[:4]}-{n}" for n in range(len(truth_NC))], truth_NC.argmax(axis=1).tolist()
        num_classes = [NUM_CLASSES] * len(truth_NC)
        files[prediction_file(name)] = prediction_bytes(
            identity, name, ids, labels, num_classes, logits_NC[None]
        )
    return files
