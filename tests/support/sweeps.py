"""A stored sweep of random logits, for tests of the analysis: nothing is trained, torch is not loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from toys import Colours, Greys, colour_rows, write_split

from lorae.results import trials_table
from lorae.sources import Files
from lorae.store.names import member_folder, pool_folders, reference_folder
from lorae.store.predictions import prediction_bytes, prediction_file
from lorae.store.store import Store
from lorae.tasks.base import Task
from lorae.trial import Budget, Sweep, Trial

COMMAND = "lorae sweep pipelines/toy.py --storage results"
NUM_EXAMPLES = {"colours": 90, "greys": 40}


def make_sweep(root: Path, axes: dict[str, list[Any]], failing: Sequence[int] = ()) -> str:
    """A storage with the sweep "toy" over `axes`, its members' logits random; returns its path.

    Members see the truth through noise of their own and noise that all share; the untouched backbone hardly
    sees it. The members of the trials at the places `failing` are not stored.
    """
    store, trials = Store(str(root / "results")), toy_trials(root, axes)
    failed = {member for place in failing for member in trials[place][0].member_ids()}
    for trial, ood in trials:
        sets = [(trial.task, "validation"), (trial.task, "test"), *((task, "test") for task in ood)]
        if not trial.members:
            _store(store, reference_folder(trial.reference_id()), sets, signal=0.3, noise=0.5, tokens=0)
        for member in set(trial.member_ids()) - failed:
            noise = 1.0 if trial.regularizers else 2.5
            _store(store, member_folder(member), sets, signal=3.0, noise=noise, tokens=1000)
    for member in failed:
        store.write_failure(member, "NaN at step 3\nin train-7")
    tabulate(store, trials)
    return str(root / "results")


def predict_later(storage: str, rows: Iterable[dict[str, Any]], name: str, num_examples: int = 30) -> None:
    """Store random predictions of a further set `<task>__test__<hash>` by all members of the rows."""
    store, ids = Store(storage), [f"far-{n}" for n in range(num_examples)]
    for folder in {f for row in rows for f in pool_folders(row["member_ids"], row["reference_id"], False)}:
        identity = folder.rsplit("/", 1)[-1]
        logits_KNC = np.random.default_rng(int(identity, 16)).normal(size=(1, num_examples, 3))
        content = prediction_bytes(identity, name, ids, [-1] * num_examples, [3] * num_examples, logits_KNC)
        store.write_entry(folder, {prediction_file(name): content})


def tabulate(store: Store, trials: Sequence[tuple[Trial, Sequence[Task]]]) -> None:
    """Write the table of the sweep "toy" from what is stored."""
    provenance = {"command": COMMAND, "commit": "abc123"}
    store.write_table("toy", trials_table(store, "toy", trials, provenance))


def toy_trials(root: Path, axes: dict[str, list[Any]]) -> list[tuple[Trial, list[Task]]]:
    """Trials over `axes` with their OOD tasks, and the data that they need."""
    (root / "backbone").mkdir(parents=True, exist_ok=True)
    (root / "backbone" / "config.json").write_text("{}")
    for number, (name, size) in enumerate(NUM_EXAMPLES.items()):
        write_split(root / "data" / name, "test", colour_rows("test", size, 2 * number))
        write_split(root / "data" / name, "train", colour_rows("train", 120, 2 * number + 1))
    base = Trial(
        backbone=Files(str(root / "backbone")), task=Colours(), budget=Budget(epochs=1), precision="fp32"
    )
    sweep = Sweep(base=base, axes=axes, ood=[Greys()]).located(root / "data")
    return [(trial, sweep.eval_tasks(trial)) for trial in sweep.trials()]


def _store(
    store: Store, folder: str, sets: Sequence[tuple[Task, Any]], *, signal: float, noise: float, tokens: int
) -> None:
    identity = folder.rsplit("/", 1)[-1]
    rng = np.random.default_rng(int(identity, 16))
    cost = {"train_tokens": tokens, "train_seconds": 1.5, "predict_seconds": 0.5, "trainable_parameters": 64}
    cost |= {"train_flops": 1e6 * tokens, "train_process_seconds": 1.25, "shared_flops": 0.0}
    files = {"member.json": json.dumps({"cost": cost}).encode()}
    for task, split in sets:
        examples = task.examples(split)
        labels = np.array([-1 if e.label is None else e.label for e in examples])
        hard_NC = np.random.default_rng(len(examples)).normal(size=(len(examples), 3))  # for all members
        logits_NC = 1.5 * hard_NC + noise * rng.normal(size=hard_NC.shape)
        logits_NC += signal * (labels[:, None] == np.arange(3))
        ids, name = [e.id for e in examples], task.eval_set(split)
        content = prediction_bytes(identity, name, ids, labels.tolist(), [3] * len(ids), logits_NC[None])
        files[f"predictions/{name}.parquet"] = content
    store.write_entry(folder, files)
