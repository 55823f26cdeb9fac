"""Soups: one model with its members' mean weights, made of stored members, for one forward pass."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from stacks import featured, prepared
from toys import Greys

from analysis.audit import audit
from analysis.data import load_trials
from analysis.differences import against_rivals, souping
from analysis.figures import standard_figures
from analysis.gain import correlations, with_gains
from jobs.cli import main
from lorae.backbone.loading import read_backbone
from lorae.draws import MCDropout
from lorae.engine.adapters import Soup
from lorae.engine.prediction import predict, predict_draws
from lorae.engine.run import run_stack
from lorae.engine.training import train_stack
from lorae.methods import BatchEnsemble, Full, LastLayer, Lora, Vera, frozen_tensors
from lorae.planning.estimate import Devices
from lorae.planning.plan import make_plan, soups_of
from lorae.regularizers import AdapterDropout, Masksembles
from lorae.results import read_trials, trials_table
from lorae.search import ASHA
from lorae.store.names import SOUP_RECORD, WEIGHTS, member_folder, soup_folder
from lorae.store.peft_format import read_state, state_bytes
from lorae.store.store import Store
from lorae.trial import AdamW, Budget, Sweep, companions

METHODS = [Lora(rank=2, alpha=8), Vera(rank=4), BatchEnsemble(std=0.1), Full(), LastLayer(std=0.1)]
ONE_CPU = Devices("cpu", 1, 1)


def mean_weight(method, W0_ED, layer, states, keys, layers) -> torch.Tensor:
    """Mean over the members of the weights that they give a layer, written out."""
    each = []
    for state, key in zip(states, keys):
        if isinstance(method, Lora):
            each.append(W0_ED + method.scale * state[f"{layer}.B"] @ state[f"{layer}.A"])
        elif isinstance(method, Vera):
            A_RD, B_ER = frozen_tensors(method, layers, key)
            d_R, b_E = state[f"{layer}.d"], state[f"{layer}.b"]
            d_out, d_in = W0_ED.shape
            each.append(W0_ED + b_E[:, None] * B_ER[:d_out] @ (d_R[:, None] * A_RD[:, :d_in]))
        else:
            each.append(W0_ED * state[f"{layer}.s"][:, None] * state[f"{layer}.r"])
    return torch.stack(each).mean(0)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.label)
def test_a_soup_is_the_model_with_the_mean_of_its_members_weights(tiny_trial, method):
    trial = tiny_trial(method=method, optimizer=AdamW(lr=2e-2), budget=Budget(batch_size=4, steps=6))
    backbone, data = prepared(trial)
    states = [run.state for run in train_stack(backbone, trial, range(3), data)]
    keys = [trial.member_key(m)["init"] for m in range(3)]
    rows = featured(trial, backbone, data).validation
    with Soup(backbone, method, keys, states, rows[0].answer_ids):
        found_NC = predict(backbone, rows)[0]

    merged = read_backbone(trial.backbone, "fp32", "cpu", False)
    if isinstance(method, Full):
        mean = {name: torch.stack([s[name] for s in states]).mean(0) for name in states[0]}
        merged.lm.load_state_dict(mean, strict=False)
    layers = method.adapted_layers(merged.linears, "tiny")
    for layer in layers:
        linear = merged.lm.get_submodule(layer)
        linear.weight.data = mean_weight(method, linear.weight.data, layer, states, keys, layers)
    if isinstance(method, LastLayer):
        W_CD = torch.stack([s["head.weight"] for s in states]).mean(0)
        expected_NC = np.stack([W_CD.numpy() @ row.features for row in rows])
    else:
        expected_NC = predict(merged, rows)[0]
    np.testing.assert_allclose(found_NC, expected_NC, atol=1e-5)
    assert np.abs(found_NC - predict(backbone, data.validation)[0]).max() > 1e-3, "it is not the backbone"
    assert backbone.inserted is None and not any(
        type(m).__name__ in ("_Mean", "Stacked") for m in backbone.lm.modules()
    )


@pytest.mark.slow
def test_a_soup_of_equal_members_is_that_member(tiny_trial):
    trial = tiny_trial()
    backbone, data = prepared(trial)
    (run,) = train_stack(backbone, trial, [0], data)
    key = trial.member_key(0)["init"]
    logits = []
    for states in ([run.state], 4 * [run.state]):
        with Soup(backbone, trial.method, len(states) * [key], states, data.train[0].answer_ids):
            logits.append(predict_draws(backbone, data.validation)[0, 0])
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-5)


@pytest.fixture
def sweep(tiny_trial, data_root) -> Sweep:
    axes = {"combine": ["probs", "weights"], "members": [1, 2, 3]}
    return Sweep(
        base=tiny_trial(budget=Budget(batch_size=4, steps=6)), axes=axes, ood=[Greys().located(data_root)]
    )


FILE = """
from toys import Colours, Greys
from lorae.methods import Lora
from lorae.sources import Files
from lorae.trial import AdamW, Budget, Sweep, Trial
SWEEP = Sweep(
    base=Trial(backbone=Files({backbone!r}), task=Colours(), optimizer=AdamW(lr=1e-2), precision="fp32",
               budget=Budget(batch_size=4, steps=6)),
    axes={{"combine": ["probs", "weights"], "members": [1, 2, 3]}},
)
"""


@pytest.mark.process
def test_soups_are_made_of_members_that_are_trained_once(tiny_llama, data_root, tmp_path, capsys):
    file, storage = tmp_path / "soups.py", tmp_path / "results"
    file.write_text(FILE.format(backbone=tiny_llama.path))
    words = [
        "sweep",
        str(file),
        "--storage",
        str(storage),
        "--data-root",
        str(data_root),
        "--local",
        "--json",
    ]

    def run(*more: str) -> dict:
        capsys.readouterr()
        assert main([*words, *more]) == 0
        return json.loads(capsys.readouterr().out)

    plan = run("--dry-run")
    assert plan["soups"] == 2 and plan["members"]["to_train"] == 3
    assert run()["trained"] == 3
    trials = load_trials(str(storage), "soups")
    assert len(trials.rows) == 6 and len({row["trial_id"] for row in trials.rows}) == 6
    cells = {(cell.name, cell.factors["combine"]): cell for cell in trials.cells}
    soup, ensemble = cells["LoRA soup of 3", "weights"].rows[0], cells["LoRA ensemble of 3", "probs"].rows[0]
    assert soup["member_ids"] == ensemble["member_ids"] and soup["ensemble_nll"] != ensemble["ensemble_nll"]
    assert (soup["forwards_per_prediction"], ensemble["forwards_per_prediction"]) == (1, 3)
    assert soup["train_tokens"] == ensemble["train_tokens"] and soup["predict_seconds"] > 0
    store, folder = Store(str(storage)), soup_folder(soup["member_ids"])
    assert list(store.soup_record(soup["member_ids"])["members"]) == soup["member_ids"]
    assert soup_folder(soup["member_ids"][::-1]) == folder, "the order of a mean does not matter"

    # Again nothing is done; a damaged soup is found and predicted again, and no member is trained
    assert run("--dry-run")["soups"] == 0 and run()["trained"] == 0
    name = next(n for n in sorted(store.files(folder)) if "test" in n)
    path = storage / folder / name
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert "differs from its checksum" in next(f.what for f in audit(str(storage)) if f.status == "failed")
    assert run("--dry-run")["soups"] == 1 and run()["trained"] == 0
    assert [f.what for f in audit(str(storage)) if f.status == "failed"] == []
    repaired = load_trials(str(storage), "soups")
    assert [r["ensemble_nll"] for r in repaired.rows] == [r["ensemble_nll"] for r in trials.rows]

    # A further OOD task is predicted by the members and by the soups
    toys = tmp_path / "greys.py"
    toys.write_text("from toys import Greys\n")
    predict_words = ["predict", str(storage), "--sweep", "soups", "--task", f"{toys}:Greys()"]
    capsys.readouterr()
    assert main([*predict_words, "--data-root", str(data_root)]) == 0
    assert "5 members predicted" in capsys.readouterr().out
    extended = load_trials(str(storage), "soups").with_stored_ood()
    assert all(row["auroc_msp__greys"] is not None for row in extended.rows)

    # Tables and figures take a soup for one model
    lines = souping(trials).blocks[0]
    assert len(lines) == 2
    assert lines[1]["ensemble_nll"].value == pytest.approx(soup["ensemble_nll"] - ensemble["ensemble_nll"])
    assert not against_rivals(trials).blocks, "soups alone are no rivals to be listed"
    assert len(standard_figures(trials)) > 0 and correlations(with_gains(trials))
    assert main(["report", str(storage), "--sweep", "soups", "--out", str(tmp_path / "report")]) == 0


def test_a_soup_waits_for_its_members(sweep, tmp_path):
    store = Store(str(tmp_path))
    plan = make_plan(sweep, store, ONE_CPU)
    assert [len(s.members) for s in plan.soups] == [2, 3] and all(s.soup for s in plan.soups)
    assert not soups_of(plan, store).pending
    two = replace(plan.pending[0], members=(0, 1))
    run_stack(two, store.storage.uri)
    ready = soups_of(plan, store).pending
    assert [len(s.members) for s in ready] == [2]
    run_stack(ready[0], store.storage.uri)
    assert SOUP_RECORD in store.files(soup_folder(ready[0].member_ids()))
    with pytest.raises(ValueError, match="has no"):
        run_stack(plan.soups[1], store.storage.uri)
    assert not store.storage.names(f"members/{plan.soups[1].member_ids()[2]}")


@pytest.mark.slow
def test_a_soup_of_a_member_that_was_trained_again_is_made_again(sweep, tmp_path):
    store = Store(str(tmp_path))
    plan = make_plan(sweep, store, ONE_CPU)
    for stack in (*plan.stacks, *plan.soups):
        run_stack(stack, store.storage.uri)
    ids = plan.soups[1].member_ids()
    store.write_table("soups", trials_table(store, "soups", plan.trials, {}))
    assert [f.what for f in audit(str(tmp_path)) if f.status == "failed"] == []
    before = store.predictions([soup_folder(ids)], plan.soups[1].trial.task.eval_set("test")).logits_MNC
    done = make_plan(sweep, store, ONE_CPU)
    assert not done.soups and not soups_of(done, store).pending
    other = read_state(store.read(member_folder(ids[0]), WEIGHTS))
    files = {WEIGHTS: state_bytes({name: 2 * value for name, value in other.items()})}
    store.write_entry(member_folder(ids[2]), files)  # as if another device had trained it
    assert [s.member_ids() for s in soups_of(done, store).pending] == [ids], "also in the run that trained it"

    said = f"{soup_folder(ids)} is of members that were trained again"
    assert any(said in f.what for f in audit(str(tmp_path)) if f.check == "members are who they say")
    rows = trials_table(store, "soups", plan.trials, {}).to_pylist()
    (failed,) = [row for row in rows if row["status"] == "failed"]
    assert (failed["combine"], failed["members"]) == ("weights", 3) and said in failed["error"]
    again = make_plan(sweep, store, ONE_CPU)
    assert [s.member_ids() for s in again.soups] == [ids], "the soup of the first two is as it was"
    run_stack(again.soups[0], store.storage.uri)
    after = store.predictions([soup_folder(ids)], plan.soups[1].trial.task.eval_set("test")).logits_MNC
    assert np.abs(after - before).max() > 1e-4
    assert not make_plan(sweep, store, ONE_CPU).soups


def test_a_soup_without_a_record_is_named_by_the_audit(sweep, tmp_path):
    store = Store(str(tmp_path))
    soup = make_plan(sweep, store, ONE_CPU).soups[0].member_ids()
    store.write_entry(soup_folder(soup), {"predictions/colours__test__12345678.parquet": b""})
    (fault,) = [f for f in audit(str(tmp_path)) if f.status == "failed"]
    assert (fault.where, fault.what) == (soup_folder(soup), f"lacks {SOUP_RECORD}; repeat the sweep")


def test_a_damaged_member_that_only_its_soup_reads_is_trained_again(sweep, tmp_path):
    """The plan believes it, its own row does not read the weights; the soup does, and fails until then."""
    store = Store(str(tmp_path))
    plan = make_plan(sweep, store, ONE_CPU)
    run_stack(plan.stacks[0], store.storage.uri)
    path = tmp_path / member_folder(plan.needed[2]) / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    os.utime(path, (0, 0))
    assert make_plan(sweep, store, ONE_CPU).num_to_train == 0
    run_stack(plan.soups[0], store.storage.uri)
    with pytest.raises(ValueError, match="differs from its checksum; repeat the sweep"):
        run_stack(plan.soups[1], store.storage.uri)
    trials_table(store, "soups", plan.trials, {})
    assert make_plan(sweep, store, ONE_CPU).num_to_train == 1


def test_an_ood_task_that_is_added_is_predicted_by_the_soup_too(sweep, tmp_path):
    store = Store(str(tmp_path))
    plan = make_plan(replace(sweep, ood=[]), store, ONE_CPU)
    for stack in (*plan.stacks, *plan.soups):
        run_stack(stack, store.storage.uri)
    seconds = store.soup_record(plan.soups[0].member_ids())["cost"]["predict_seconds"]
    later = make_plan(sweep, store, ONE_CPU)
    assert len(later.soups) == 2
    for stack in (*later.stacks, *later.soups):
        run_stack(stack, store.storage.uri)
    assert not make_plan(sweep, store, ONE_CPU).soups
    assert store.soup_record(plan.soups[0].member_ids())["cost"]["predict_seconds"] == seconds
    assert not store.damage(member_folder(plan.soups[0].member_ids()[0]))


@pytest.mark.process
def test_a_soups_row_is_recomputed_from_its_files_alone(sweep, tmp_path):
    store = Store(str(tmp_path))
    plan = make_plan(sweep, store, ONE_CPU)
    for stack in (*plan.stacks, *plan.soups):
        run_stack(stack, store.storage.uri)
    store.write_table("soups", trials_table(store, "soups", plan.trials, {}))
    command = [
        sys.executable,
        "-m",
        "analysis.recompute",
        tmp_path,
        "soups",
        "greys",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    recomputed = [json.loads(line) for line in done.stdout.splitlines()]
    rows = read_trials(store, "soups").to_pylist()
    assert [row["combine"] for row in rows].count("weights") == 2
    assert all((row["mean_member_nll"] is None) == (row["combine"] == "weights") for row in rows)
    for row, found in zip(rows, recomputed, strict=True):
        found.pop("pool")
        assert found == pytest.approx({name: row[name] for name in found}, abs=1e-6)


def test_what_cannot_be_a_soup_is_refused(tiny_trial):
    dropout, soup = (AdapterDropout(0.1),), {"combine": "weights", "members": 2}
    for bad in (
        {"regularizers": dropout, "draws": MCDropout(3)},
        {"regularizers": (Masksembles(2, 1.5),)},
        {"optimizer": AdamW(schedule="cyclic", cycles=2)},
    ):
        with pytest.raises(ValueError, match="a soup predicts once"):
            tiny_trial(**soup, **bad)
    with pytest.raises(ValueError, match="must be one of probs, logits, weights"):
        tiny_trial(combine="sum")
    with pytest.raises(ValueError, match="sweep without search"):
        Sweep(base=tiny_trial(), axes={"combine": ["weights"], "members": [2]}, search=ASHA())
    assert {c.combine for c in companions(tiny_trial(**soup))} == {"probs"}
