"""Reading a sweep: what is one cell, what is missing, and what a wrong path answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.special
import scipy.stats
from toys import Colours, Greys, colour_rows, write_split

from analysis.data import Cell, fill_command, load_trials
from lorae.predictions import prediction_bytes
from lorae.regularizers import KL
from lorae.results import trials_table
from lorae.sources import Files
from lorae.store import Store, member_folder, reference_folder
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


SEEDS = {"regularizers": [(), (KL(),)], "members": [1, 3], "seed": [0, 1, 2]}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_sweep(tmp_path_factory.mktemp("sweep"), SEEDS)


def cell_of(cells: Sequence[Cell], **factors: Any) -> Cell:
    (cell,) = [c for c in cells if all(c.factors[name] == value for name, value in factors.items())]
    return cell


# Cells ----------------------------------------------------------------------------------------------------


def test_rows_that_differ_only_in_seed_are_one_cell(storage):
    trials = load_trials(storage, "toy")
    assert [(c.name, c.factors["regularizers"], len(c.rows)) for c in trials.cells] == [
        ("zero-shot", None, 1),
        ("single LoRA", "none", 3),
        ("LoRA ensemble of 3", "none", 3),
        ("single LoRA", "kl-0.1", 3),
        ("LoRA ensemble of 3", "kl-0.1", 3),
    ]
    assert trials.varying == ("regularizers",)
    assert trials.constant["rank"] == 8 and trials.ood_tasks == ("greys",)


def test_a_cell_is_the_mean_and_standard_error_of_its_rows(storage):
    cell = cell_of(load_trials(storage, "toy").cells, members=3, regularizers="none")
    values = [row["ensemble_nll"] for row in cell.rows]
    assert len(set(values)) == 3
    found = cell.over_seeds("ensemble_nll")
    assert found is not None
    assert (found.mean, found.stderr, found.n) == pytest.approx((np.mean(values), scipy.stats.sem(values), 3))


def test_what_is_undefined_or_infinite_is_not_averaged(storage):
    trials = load_trials(storage, "toy")
    assert cell_of(trials.cells, members=1, regularizers="none").over_seeds("disagreement") is None
    cell = cell_of(trials.cells, members=3, regularizers="none")
    worst = replace(cell, rows=(cell.rows[0] | {"ensemble_nll": np.inf}, *cell.rows[1:]))
    found = worst.over_seeds("ensemble_nll")
    assert found is not None and (found.mean, found.stderr) == (np.inf, None)


def test_settings_without_a_column_still_tell_cells_apart(tmp_path):
    storage = make_sweep(tmp_path, {"optimizer.eps": [1e-8, 1e-6], "members": [1], "seed": [0, 1]})
    trials = load_trials(storage, "toy")
    assert trials.varying == ("optimizer.eps",)
    assert [(c.factors["optimizer.eps"], len(c.rows)) for c in trials.cells] == [
        (None, 1),
        (1e-8, 2),
        (1e-6, 2),
    ]


def test_stored_logits_give_the_row(storage):
    trials = load_trials(storage, "toy")
    row = cell_of(trials.cells, members=3, regularizers="kl-0.1").rows[1]
    test = trials.predictions(row)
    p_NC = scipy.special.softmax(test.logits_MNC.astype(float), axis=2).mean(axis=0)
    assert test.logits_MNC.shape == (3, 90, 3)
    assert row["acc"] == np.mean(p_NC.argmax(axis=1) == test.labels_N)
    assert len(trials.predictions(trials.cells[0].rows[0], "greys").labels_N) == 40


# What is missing ------------------------------------------------------------------------------------------


def test_an_incomplete_sweep_is_refused_with_what_lacks_and_how_to_fill_it(tmp_path):
    storage = make_sweep(tmp_path, {"members": [1, 2], "seed": [0, 1]}, failing=[2])
    with pytest.raises(ValueError, match="lacks 2 trials") as refused:
        load_trials(storage, "toy")
    message = str(refused.value)
    assert "members=1 seed=1" in message and "members=2 seed=1" in message
    assert "NaN at step 3 in train-7" in message and message.endswith(COMMAND)
    trials = load_trials(storage, "toy", allow_missing=True)
    assert len(trials.rows) == 3 and len(trials.missing) == 2
    assert fill_command(trials.rows[0]) == COMMAND


def test_a_seed_that_the_table_does_not_know_is_missing_too(storage, tmp_path):
    store, table = Store(storage), Store(storage).read_table("toy")
    last_kept = table.slice(0, table.num_rows - 1)
    store.write_table("short", last_kept)
    with pytest.raises(ValueError, match=r"regularizers=kl-0.1 members=3 seed=2: not in the table"):
        load_trials(storage, "short")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


BREAKS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no DONE.json": (lambda member: (member / "DONE.json").unlink(), "has no predictions"),
    "older schema": (
        lambda member: (member / "DONE.json").write_text('{"schema": 0, "files": {}}'),
        "has schema 0, this lorae reads",
    ),
    "lost file": (lambda member: next(member.glob("predictions/colours__test*")).unlink(), "is missing"),
    "flipped bit": (
        lambda member: flip(next(member.glob("predictions/greys*"))),
        "differs from its checksum",
    ),
    "damaged record": (lambda member: flip(member / "member.json"), "member.json differs from its checksum"),
}


@pytest.mark.parametrize("how", BREAKS)
def test_trials_of_a_broken_member_are_named_and_never_left_out_silently(tmp_path, how):
    axes = {"members": [1, 2], "seed": [0, 1]}
    storage, trials = make_sweep(tmp_path, axes), toy_trials(tmp_path, axes)
    breaks, said = BREAKS[how]
    second_of_seed_1 = trials[-1][0].member_ids()[1]
    breaks(tmp_path / "results" / member_folder(second_of_seed_1))
    tabulate(Store(storage), trials)
    with pytest.raises(ValueError, match="lacks 1 trials") as refused:
        load_trials(storage, "toy")
    message = str(refused.value)
    assert "members=2 seed=1" in message and second_of_seed_1 in message and said in message
    assert message.endswith(COMMAND)
    whole = load_trials(storage, "toy", allow_missing=True)
    assert len(whole.rows) == 4 and len(whole.missing) == 1 and said in whole.missing[0]


def test_a_trial_that_is_there_twice_is_refused_by_name(storage):
    table = Store(storage).read_table("toy")
    Store(storage).write_table("twice", pa.concat_tables([table, table.slice(3, 1)]))
    with pytest.raises(ValueError, match=r"1 trials more than once \(.*members=1 seed=2\)"):
        load_trials(storage, "twice")


def test_a_wrong_place_names_the_sweeps_that_are_there(storage, tmp_path):
    with pytest.raises(ValueError, match=r"sweeps: .*toy"):
        load_trials(storage, "demo")
    with pytest.raises(ValueError, match="sweeps: none"):
        load_trials(str(tmp_path / "nowhere"), "demo")


def test_another_schema_says_which_version_reads_it(storage):
    table = Store(storage).read_table("toy")
    Store(storage).write_table("old", table.replace_schema_metadata({"lorae_schema": "0"}))
    with pytest.raises(ValueError, match="schema 0"):
        load_trials(storage, "old")
    Store(storage).write_table("older", table.drop_columns(["scoring"]))
    with pytest.raises(ValueError, match=r"no column scoring.*repeat the sweep"):
        load_trials(storage, "older")


@pytest.mark.parametrize(
    "method,draws,members,name",
    [
        ("lora", "none", 1, "single LoRA"),
        ("lora", "none", 4, "LoRA ensemble of 4"),
        ("lora", "mc-10", 1, "MC dropout x10"),
        ("full", "mc-10", 1, "MC dropout x10 (full fine-tuning)"),
        ("lora", "masks-4x2.5", 1, "Masksembles of 4, scale 2.5"),
        ("vera", "snapshots-5", 2, "VeRA ensemble of 2, each a snapshot ensemble of 5"),
        ("full", "none", 4, "explicit ensemble of 4"),
        ("last-layer", "none", 4, "last-layer ensemble of 4"),
        ("batchensemble", "none", 4, "BatchEnsemble of 4"),
    ],
)
def test_models_have_the_names_of_the_field(method, draws, members, name):
    assert Cell({"method": method, "draws": draws, "members": members}, ()).name == name
