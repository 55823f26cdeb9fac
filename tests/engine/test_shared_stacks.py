"""Members of several recipes and seeds in one stack: each is the member trained alone, and is stored, fails
and goes on like any other."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stacks import Recorder, largest_difference, prepared

from lorae.engine.run import run_stack
from lorae.engine.training import train_stack
from lorae.methods import Blob, Lora, Vera
from lorae.planning.estimate import Devices
from lorae.planning.plan import make_plan
from lorae.planning.stack import Stack, Stopped, joined
from lorae.regularizers import KL, AdapterDropout, ClassWeights, DecayB, EarlyStopping
from lorae.store.names import WEIGHTS, member_folder
from lorae.store.store import Store
from lorae.trial import AdamW, Budget, Sweep, Trial, in_common

ONE_CPU = Devices("cpu", 1, 2)


def mixed(trial: Trial) -> list[Trial]:
    """Trials that differ in all that may differ within a stack."""
    spec, lr = trial.optimizer, trial.optimizer.lr
    own = [r for r in trial.regularizers if r.is_noise or r.keeps_best]
    return [
        replace(trial, regularizers=(*own, KL(0.3), ClassWeights(0.9))),
        replace(trial, regularizers=(*own, KL(0.05, "forward")), optimizer=replace(spec, lr=lr / 10)),
        replace(trial, seed=1, optimizer=replace(spec, weight_decay=0.5, max_grad_norm=None)),
        replace(trial, seed=7, optimizer=replace(spec, lr=lr / 3, betas=(0.8, 0.99), max_grad_norm=0.05)),
    ]


@pytest.mark.parametrize(
    ("method", "lr", "micro_batch", "regularizers"),
    [
        (Lora(rank=4), 1e-2, 3, (AdapterDropout(0.1), EarlyStopping(patience=1, every=6))),
        (Vera(rank=16), 1e-1, 3, ()),
        (Blob(rank=4), 1e-2, None, ()),  # rounding by micro-batches moves it by 4e-5, in any stack
    ],
    ids=["lora", "vera", "blob"],
)
def test_members_of_several_recipes_and_seeds_are_those_trained_alone(
    tiny_trial, method, lr, micro_batch, regularizers
):
    trials = mixed(
        tiny_trial(
            method=method,
            regularizers=regularizers,
            optimizer=AdamW(lr=lr, max_grad_norm=0.5),
            budget=Budget(batch_size=4, steps=24),
        )
    )
    if method.zero_factor:
        trials[1] = replace(trials[1], regularizers=(*trials[1].regularizers, DecayB(2.0)))
    backbone, data = prepared(trials[0], dtype=torch.float64)  # fp32 rounding moves a member by more
    which = [(trials[0], 2), (trials[0], 0), *((trial, 0) for trial in trials[1:])]
    recipes, numbers = zip(*which)
    together = train_stack(backbone, recipes, numbers, data, micro_batch=micro_batch)
    for ours, (trial, m) in zip(together, which):
        (alone,) = train_stack(backbone, trial, [m], data)
        assert largest_difference(ours, alone) < 1e-5
        assert [r["lr"] for r in ours.curve] == [r["lr"] for r in alone.curve]
        assert [r["step"] for r in ours.curve] == [r["step"] for r in alone.curve]
        assert ours.train_tokens == alone.train_tokens and ours.best_step == alone.best_step
    ends = [run.state for run in together]
    assert all((a[n] - b[n]).abs().max() > 1e-4 for a, b in itertools.pairwise(ends) for n in a if ".B" in n)


def test_a_member_that_diverges_leaves_the_others_as_they_are(tiny_trial):
    trial = tiny_trial(budget=Budget(batch_size=4, steps=10))
    wild = replace(trial, optimizer=AdamW(lr=1e38, max_grad_norm=None, warmup_frac=0.0))
    backbone, data = prepared(trial)
    trials = [replace(trial, optimizer=replace(wild.optimizer, lr=1e-2)), wild, replace(trial, seed=3)]
    trials[2] = replace(trials[2], optimizer=replace(wild.optimizer, lr=1e-3))
    first, lost, last = train_stack(backbone, trials, [0, 0, 0], data)
    assert lost.error and first.error is None and last.error is None
    for ours, trial in ((first, trials[0]), (last, trials[2])):
        assert largest_difference(ours, train_stack(backbone, trial, [0], data)[0]) < 1e-5


def test_any_step_of_a_shared_stack_goes_on_to_the_same_bytes(tiny_trial):
    trials = mixed(tiny_trial(regularizers=(EarlyStopping(patience=1, every=4),)))
    backbone, data = prepared(trials[0])
    recorder = Recorder()
    whole = train_stack(backbone, trials, [0, 1, 0, 0], data, checkpoints=recorder)
    step = [*recorder.all][len(recorder.all) // 2]
    resumed = train_stack(backbone, trials, [0, 1, 0, 0], data, checkpoints=Recorder(recorder.all[step]))
    assert all(largest_difference(one, other) == 0 for one, other in zip(whole, resumed))


@pytest.mark.parametrize(
    "change",
    [
        {"method": Lora(rank=2)},
        {"budget": Budget(batch_size=4, epochs=2)},
        {"optimizer": AdamW(schedule="cosine")},
        {"regularizers": (AdapterDropout(0.2),)},
        {"regularizers": (EarlyStopping(),)},
        {"precision": "bf16"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_all_members_must_do_alike_is_not_mixed(tiny_trial, change):
    assert in_common(tiny_trial(seed=5)) == in_common(tiny_trial())
    assert in_common(tiny_trial(**change)) != in_common(tiny_trial())
    backbone, data = prepared(tiny_trial())
    with pytest.raises(AssertionError):
        train_stack(backbone, [tiny_trial(), tiny_trial(**change)], [0, 0], data)


# Stored
# ----------------------------------------------------------------------------------------------------------


def grid(tiny_trial) -> Sweep:
    base = tiny_trial(budget=Budget(batch_size=4, steps=12), members=2)
    axes = {"optimizer.lr": [1e-2, 1e-3], "regularizers": [(), (KL(0.3),)], "seed": [0, 1]}
    return Sweep(base=base, axes=axes)


def shared(sweep: Sweep, storage: Path) -> Stack:
    plan = make_plan(sweep, Store(str(storage)), ONE_CPU)
    return joined([stack for stack in plan.pending if stack.members])


def members(storage: Path, stack: Stack) -> list[dict[str, object]]:
    """What is stored of each member: weights, and logits of the test set."""
    store = Store(str(storage))
    found = []
    for part in stack.parts:
        for member_id in part.member_ids():
            folder = member_folder(member_id)
            logits = store.predictions([folder], part.trial.task.eval_set("test")).logits_MNC
            found.append(load_file(storage / folder / WEIGHTS) | {"logits": logits})
    return found


def test_a_shared_stack_stores_what_its_parts_would_alone(tiny_trial, tmp_path):
    stack = shared(grid(tiny_trial), tmp_path)
    assert len(stack.parts) == 8 and stack.num_members == 16
    result = run_stack(stack, str(tmp_path / "shared"))
    assert sorted(result.trained) == sorted(stack.member_ids()) and not result.failed
    for part in stack.parts:
        run_stack(part, str(tmp_path / "alone"))
    pairs = zip(members(tmp_path / "shared", stack), members(tmp_path / "alone", stack), strict=True)
    for ours, alone in pairs:
        assert ours.keys() == alone.keys()
        assert all(np.abs(np.asarray(ours[name]) - np.asarray(alone[name])).max() < 1e-4 for name in ours)
    record = Store(str(tmp_path / "shared")).record(member_folder(result.trained[0]), {"cost": {}})
    assert record["cost"]["stacked_with"] == 16
    assert make_plan(grid(tiny_trial), Store(str(tmp_path / "shared")), ONE_CPU).is_done
    again = run_stack(stack, str(tmp_path / "shared"))
    assert sorted(again.found) == sorted(stack.member_ids()) and not again.trained


@pytest.mark.parametrize("whole", [True, False], ids=["shared", "alone"])
def test_a_stack_that_was_killed_goes_on_as_it_was_to_the_same_bytes(tiny_trial, tmp_path, whole):
    """Shared or not, whatever the plan would join now."""
    sweep, steps = grid(tiny_trial), []
    stack = shared(sweep, tmp_path) if whole else shared(sweep, tmp_path).parts[3]
    run_stack(stack, str(tmp_path / "whole"))
    with pytest.raises(Stopped):
        run_stack(
            stack,
            str(tmp_path / "killed"),
            on_progress=lambda p: steps.append(p.step) if p.phase == "train" else None,
            should_stop=lambda: bool(steps) and steps[-1] >= 5,
        )
    plan = make_plan(sweep, Store(str(tmp_path / "killed")), ONE_CPU)
    (begun,) = plan.begun
    assert begun.member_ids() == stack.member_ids() and begun.id == stack.id
    assert sum(s.num_members for s in (*plan.begun, *plan.pending)) == 16
    steps.clear()
    run_stack(
        begun,
        str(tmp_path / "killed"),
        on_progress=lambda p: steps.append(p.step) if p.phase == "train" and p.step else None,
    )
    assert steps == list(range(steps[0], 13)) and steps[0] > 5, "it goes on, not anew"
    for ours, other in zip(members(tmp_path / "killed", stack), members(tmp_path / "whole", stack)):
        assert all(np.array_equal(np.asarray(ours[name]), np.asarray(other[name])) for name in ours)
    assert not Store(str(tmp_path / "killed")).begun()


def test_a_failed_member_of_a_shared_stack_is_remembered_and_the_others_stored(tiny_trial, tmp_path):
    spec = AdamW(lr=1e-2, max_grad_norm=None, warmup_frac=0.0)
    base = tiny_trial(optimizer=spec, budget=Budget(batch_size=4, steps=8), members=2)
    sweep = Sweep(base=base, axes={"optimizer.lr": [1e-2, 1e38]})
    stack = shared(sweep, tmp_path)
    result = run_stack(stack, str(tmp_path))
    store, wild = Store(str(tmp_path)), next(p for p in stack.parts if p.trial.optimizer.lr > 1)
    assert sorted(result.failed) == sorted(wild.member_ids())
    assert all(store.failure(m) for m in wild.member_ids())
    assert len(result.trained) == 2 and all(map(store.is_member, result.trained))
    assert not store.begun()
