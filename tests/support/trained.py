"""A storage with trained ensembles, for what predicts with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from toys import Colours

from lorae.engine.run import run_stack
from lorae.planning.stack import Stack
from lorae.results import trial_id, trials_table
from lorae.sources import Files
from lorae.store.store import Store
from lorae.trial import AdamW, Budget, Trial

TEXTS = ["w3 w17 w5", "w1 w2", "w8 w0 w30 w4"]


def swept(root: Path, *trials) -> str:
    """A storage in which the members of some trials are trained, with their table "toy"."""
    for trial in trials:
        run_stack(Stack(trial, tuple(range(trial.members))), str(root))
        if trial.soup:
            run_stack(Stack(trial, tuple(range(trial.members)), soup=trial.soup), str(root))
    store = Store(str(root))
    store.write_table("toy", trials_table(store, "toy", [(t, []) for t in trials], {}))
    return str(root)


def files(root: str) -> dict[str, int]:
    return {
        str(p): p.stat().st_mtime_ns for p in Path(root).rglob("*") if p.is_file() and "locks" not in str(p)
    }


@pytest.fixture(scope="session")
def stored(tiny_llama: Files, data_root, tmp_path_factory) -> SimpleNamespace:
    """A storage with ensembles of one and three members."""
    base = Trial(
        backbone=tiny_llama,
        task=Colours().located(data_root),
        optimizer=AdamW(lr=1e-2),
        budget=Budget(batch_size=4, epochs=3),
        precision="fp32",
    )
    trials = [replace(base, members=members) for members in (1, 3)]
    storage = swept(tmp_path_factory.mktemp("stored"), *trials)
    return SimpleNamespace(trials=trials, storage=storage, trial=trial_id(trials[1]))
