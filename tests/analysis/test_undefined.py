"""A metric without a value is "-" in a table, and a note says why."""

from __future__ import annotations

import numpy as np
import pytest
from sweeps import tabulate, toy_trials

from analysis.data import load_trials
from analysis.render import markdown
from analysis.table import comparison
from lorae.store.names import pool_folders
from lorae.store.predictions import prediction_bytes, prediction_file
from lorae.store.store import Store


@pytest.fixture
def constant(tmp_path):
    """A sweep whose one member finds the same class most probable everywhere, and a backbone."""
    store, trials = Store(str(tmp_path / "results")), toy_trials(tmp_path, {"members": [1]})
    for trial, ood in trials:
        sets = [(trial.task, "validation"), (trial.task, "test"), *((task, "test") for task in ood)]
        (folder,) = pool_folders(trial.member_ids(), trial.reference_id(), None)
        identity = folder.rpartition("/")[2]
        files = {"member.json": b'{"cost": {"train_tokens": 1, "train_seconds": 1.0, "predict_seconds": 1.0, '
                 b'"trainable_parameters": 1}}'}  # fmt: skip
        for task, split in sets:
            examples = task.examples(split)
            logits = np.random.default_rng(0).normal(size=(1, len(examples), 3))
            logits[:, :, 0] += 9.0 * trial.members
            labels = [-1 if e.label is None else e.label for e in examples]
            name, ids = task.eval_set(split), [e.id for e in examples]
            files[prediction_file(name)] = prediction_bytes(
                identity, name, ids, labels, [3] * len(ids), logits
            )
        store.write_entry(folder, files)
    tabulate(store, trials)
    return load_trials(store.storage.uri, "toy")


def test_constant_predictions_have_no_matthews_correlation_and_the_table_says_why(constant):
    table = comparison(constant, ["acc", "mcc", "disagreement"])
    shown = {line["model"].value: line["mcc"].value for block in table.blocks for line in block}
    assert shown["single LoRA"] is None and shown["zero-shot"] is not None
    (note,) = [note for note in table.notes if "Matthews" in note]
    assert note == (
        "no Matthews correlation of single LoRA: all examples are predicted, or gold, to be of one class"
    )
    assert "nan" not in markdown(table).lower()
    assert not [note for note in table.notes if "disagreement" in note], "a single member has none, as said"
