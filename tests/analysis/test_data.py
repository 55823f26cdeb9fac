"""Reading a sweep: what is one cell, what is missing, and what a wrong path answers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.special
import scipy.stats
from sweeps import COMMAND, make_sweep, predict_later, tabulate, toy_trials

from analysis.cells import Cell
from analysis.data import load_trials
from analysis.differences import ensembling
from analysis.pooling import Estimates
from analysis.rows import eval_sets, fill_command
from analysis.table import comparison
from lorae.regularizers import KL
from lorae.store.names import member_folder
from lorae.store.store import Store

SEEDS = {"regularizers": [(), (KL(),)], "members": [1, 3], "seed": [0, 1, 2]}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_sweep(tmp_path_factory.mktemp("sweep"), SEEDS)


def cell_of(cells: Sequence[Cell], **factors: Any) -> Cell:
    (cell,) = [c for c in cells if all(c.factors[name] == value for name, value in factors.items())]
    return cell


# Cells ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
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


def test_a_cost_is_the_mean_and_standard_error_of_its_rows(storage):
    trials = load_trials(storage, "toy")
    cell = cell_of(trials.cells, members=3, regularizers="none")
    values = [row["train_tokens"] for row in cell.rows]
    values = [value + seed for seed, value in enumerate(values)]
    rows = [row | {"train_tokens": value} for row, value in zip(cell.rows, values, strict=True)]
    found = trials.estimates.of(replace(cell, rows=tuple(rows)), "train_tokens")
    assert found is not None
    assert (found.mean, found.stderr) == pytest.approx((np.mean(values), scipy.stats.sem(values)))


def test_a_cell_of_single_members_is_the_mean_over_all_trainings_of_its_recipe(storage):
    trials = load_trials(storage, "toy")
    single = cell_of(trials.cells, members=1, regularizers="none")
    logits_PNC, labels_N = [], None
    for row in cell_of(trials.cells, members=3, regularizers="none").rows:
        test = trials.predictions(row)
        logits_PNC += list(test.logits_MNC.astype(float))
        labels_N = test.labels_N
    logp_PNC = scipy.special.log_softmax(logits_PNC, axis=2)
    nll_P = -logp_PNC[:, np.arange(90), labels_N].mean(axis=1)
    found = trials.estimates.of(single, "ensemble_nll")
    assert found is not None and found.num_trainings == 9 == trials.estimates.num_trainings(single)
    assert (found.mean, found.stderr) == pytest.approx((nll_P.mean(), scipy.stats.sem(nll_P)))


def test_rows_whose_logits_are_not_stored_tell_of_themselves_without_verdicts(storage, tmp_path):
    content = Store(storage).storage.read("sweeps/toy/trials.parquet")
    Store(str(tmp_path)).storage.write("sweeps/toy/trials.parquet", content)
    trials = load_trials(str(tmp_path), "toy")
    cell = cell_of(trials.cells, members=3, regularizers="none")
    found = trials.estimates.of(cell, "ensemble_nll")
    assert found is not None and found.mean == pytest.approx(np.mean([r["ensemble_nll"] for r in cell.rows]))
    table = comparison(trials)
    assert all(line["ensemble_nll"].mark is None for block in table.blocks for line in block)
    assert any("without verdicts" in note for note in table.notes)


def test_what_is_undefined_or_infinite_is_not_averaged(storage):
    trials = load_trials(storage, "toy")
    single = cell_of(trials.cells, members=1, regularizers="none")
    assert trials.estimates.of(single, "disagreement") is None
    cell = cell_of(trials.cells, members=3, regularizers="none")
    worst = replace(cell, rows=(cell.rows[0] | {"train_seconds": np.inf}, *cell.rows[1:]))
    found = trials.estimates.of(worst, "train_seconds")
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


# Sets that were predicted later ---------------------------------------------------------------------------


def test_a_set_that_some_seeds_lack_is_no_column_and_splits_no_cell(tmp_path):
    storage = make_sweep(tmp_path, {"members": [1, 2], "seed": [0, 1]})
    trials = load_trials(storage, "toy")
    predict_later(storage, [row for row in trials.rows if row["seed"] == 0], "blues__test__aa")
    found = trials.with_stored_ood()
    assert [(c.name, len(c.rows)) for c in found.cells] == [(c.name, len(c.rows)) for c in trials.cells]
    assert not any("blues" in eval_sets(row) for row in found.rows), "the backbone alone has it"
    ((line,),) = ensembling(found).blocks
    nll = {cell.members: trials.estimates.of(cell, "ensemble_nll").mean for cell in trials.cells}
    assert line["ensemble_nll"].value == pytest.approx(nll[2] - nll[1])

    predict_later(storage, [row for row in trials.rows if row["seed"] == 1], "blues__test__bb")
    assert not any("blues" in eval_sets(row) for row in trials.with_stored_ood().rows)
    predict_later(storage, trials.rows, "blues__test__bb")
    found = trials.with_stored_ood()
    assert {eval_sets(row)["blues"] for row in found.rows} == {"blues__test__bb"}
    assert all(row["auroc_msp__blues"] is not None for row in found.rows)


def test_a_column_is_of_one_version_of_a_further_set(tmp_path):
    storage = make_sweep(tmp_path, {"members": [1, 2]})
    trials = load_trials(storage, "toy")
    zero, one, two = trials.rows
    predict_later(storage, [zero, one], "blues__test__bb")
    predict_later(storage, [one, two], "blues__test__cc")
    predict_later(storage, [one], "blues__test__aa")
    found = trials.with_stored_ood().rows
    assert [eval_sets(row).get("blues") for row in found] == [None, "blues__test__cc", "blues__test__cc"]
    predict_later(storage, [two], "blues__test__bb")
    assert {eval_sets(row)["blues"] for row in trials.with_stored_ood().rows} == {"blues__test__bb"}


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
    whole = Store(storage).read_table("toy")
    short = shutil.copytree(storage, tmp_path / "short")
    Store(str(short)).write_table("toy", whole.slice(0, whole.num_rows - 1))
    with pytest.raises(ValueError, match=r"regularizers=kl-0.1 members=3 seed=2: not in the table"):
        load_trials(str(short), "toy")


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


def test_a_trial_that_is_there_twice_is_refused_by_name(storage, tmp_path):
    table = Store(storage).read_table("toy")
    twice = shutil.copytree(storage, tmp_path / "twice")
    Store(str(twice)).write_table("toy", pa.concat_tables([table, table.slice(3, 1)]))
    with pytest.raises(ValueError, match=r"1 trials more than once \(.*members=1 seed=2\)"):
        load_trials(str(twice), "toy")


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
        ("rank-1-bnn", "posterior-2", 4, "rank-1 BNN of 4, each x2"),
        ("blob", "none", 1, "single BLoB"),
        ("blob", "posterior-10", 1, "BLoB x10"),
        ("blob", "posterior-10", 3, "BLoB ensemble of 3, each x10"),
        ("blob", "tfb-4x0.003", 1, "TFB x4, tolerance 0.003 (BLoB)"),
        ("full", "mc-10", 1, "MC dropout x10 (full fine-tuning)"),
        ("lora", "tfb-10x0.003", 1, "TFB x10, tolerance 0.003"),
        ("lora", "laplace-100x10", 1, "Laplace x100, rank 10"),
        ("lora", "tfb-4x0.003", 2, "LoRA ensemble of 2, each a TFB x4, tolerance 0.003"),
        ("lora", "masks-4x2.5", 1, "Masksembles of 4, scale 2.5"),
        ("vera", "snapshots-5", 2, "VeRA ensemble of 2, each a snapshot ensemble of 5"),
        ("full", "none", 4, "explicit ensemble of 4"),
        ("last-layer", "none", 4, "last-layer ensemble of 4"),
        ("batchensemble", "none", 4, "BatchEnsemble of 4"),
    ],
)
def test_models_have_the_names_of_the_field(method, draws, members, name):
    factors = {"method": method, "draws": draws, "members": members, "combine": "probs"}
    assert Cell(factors, ()).name == name


@pytest.mark.parametrize(
    "method,members,name",
    [
        ("lora", 4, "LoRA soup of 4"),
        ("batchensemble", 2, "BatchEnsemble soup of 2"),
        ("full", 4, "full fine-tuning soup of 4"),
    ],
)
def test_mean_weights_are_a_soup(method, members, name):
    factors = {"method": method, "draws": "none", "members": members, "combine": "weights"}
    assert Cell(factors, ()).name == name


# Estimates ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_numbers_do_not_depend_on_which_is_asked_first(storage):
    """Also the untested columns are computed beside others, which must not take their place."""
    one, other = load_trials(storage, "toy"), load_trials(storage, "toy")
    names = ["debiased_ce15", "acc", "ensemble_nll", "ece15", "validation_nll"]
    for cell, same in zip(one.cells, other.cells, strict=True):
        first = {name: one.estimates.of(cell, name) for name in names}
        last = {name: other.estimates.of(same, name) for name in reversed(names)}
        for name in names:
            a, b = first[name], last[name]
            assert a is not None and b is not None and a.mean == b.mean, name
            assert len(a.examples) == len(b.examples), name


def test_a_soup_is_no_pool_of_its_members(storage):
    trials = load_trials(storage, "toy")
    rows = [row for row in trials.rows if row["regularizers"] == "none" and row["seed"] == 0]
    (three,) = (row for row in rows if row["members"] == 3)
    soup_first = [three | {"combine": "weights", "trial_id": "soup"}, *rows]
    single = cell_of(trials.cells, members=1, regularizers="none")
    alone = replace(single, rows=single.rows[:1])
    plain, mixed = Estimates(trials.store, rows, {}), Estimates(trials.store, soup_first, {})
    assert plain.of(alone, "acc").mean == mixed.of(alone, "acc").mean
    assert mixed.num_trainings(alone) == 3
