"""Which stacks take their steps together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs import driver
from jobs.devices import GPUS
from lorae.methods import Lora
from lorae.planning.estimate import FLOOR_SECONDS, Devices, _Lengths, memory, typical
from lorae.planning.placement import USABLE_FRAC
from lorae.planning.plan import Plan, make_plan
from lorae.planning.stack import Stack
from lorae.regularizers import KL, AdapterDropout, DecayB, EarlyStopping
from lorae.store.store import Store
from lorae.trial import Budget, Sweep, in_common

CPU = Devices("cpu", 1, 2)
GPUS_64 = Devices("cuda", 64, 4, 80 * 2**30, 8, GPUS["a100-80"].peak_flops)


def sweep(tiny_trial, **axes) -> Sweep:
    return Sweep(
        base=tiny_trial(budget=Budget(batch_size=4, epochs=300)), axes=axes
    )  # predictions take little


def trained(plan: Plan) -> list[Stack]:
    return [stack for stack in plan.stacks if stack.members]


def num_steps(sweep: Sweep) -> int:
    return sweep.base.budget.num_steps(len(sweep.base.task.examples("train")))


def test_stacks_that_a_floor_bounds_take_their_steps_together(tiny_trial, tmp_path):
    """24 stacks on 64 GPUs: on one of these they end as soon as on 24."""
    cells = sweep(tiny_trial, **{"optimizer.lr": [1e-3 * n for n in range(1, 25)], "members": [5]})
    (stack,) = trained(make_plan(cells, Store(str(tmp_path)), GPUS_64))
    assert stack.num_members == 120 and len(stack.parts) == 24
    assert {len(part.members) for part in stack.parts} == {5}
    floor = num_steps(cells) * 3 * FLOOR_SECONDS["cuda"]  # 3 layers
    plan = make_plan(cells, Store(str(tmp_path)), GPUS_64)
    assert max(e.train_seconds for e in plan.estimates) == pytest.approx(floor)
    told = driver.plan_text(plan)
    assert told.count("in the same steps:") == 23 and all(f"lr {n / 1000:g} " in told for n in range(1, 25))


def test_stacks_share_on_several_gpus_where_predictions_take_long(tiny_trial, tmp_path):
    """24 trainings of ten steps on 8 GPUs: on one GPU predictions would end last, and on 8 hardly sooner
    than on 4."""
    short = tiny_trial(budget=Budget(batch_size=4, epochs=1), members=5)
    cells = Sweep(base=short, axes={"optimizer.lr": [1e-3 * n for n in range(1, 25)]})
    plan = make_plan(cells, Store(str(tmp_path)), replace(GPUS_64, num=8))
    assert [len(s.parts) for s in trained(plan)] == 4 * [6]


def test_only_stacks_that_take_the_same_steps_are_shared(tiny_trial, tmp_path):
    axes = {
        "regularizers": [(), (KL(0.1),), (KL(0.5), DecayB(0.2)), (EarlyStopping(),), (AdapterDropout(0.1),)],
        "optimizer.lr": [1e-2, 1e-3],
        "method": [Lora(), Lora(rank=2)],
        "seed": [0, 1],
        "members": [2],
    }
    stacks = trained(make_plan(sweep(tiny_trial, **axes), Store(str(tmp_path)), GPUS_64))
    assert sum(s.num_members for s in stacks) == 80
    assert sorted(len(s.parts) for s in stacks) == 4 * [4] + 2 * [12]
    for stack in stacks:
        assert len({in_common(part.trial) for part in stack.parts}) == 1


def test_a_cpu_or_a_gpu_of_unknown_memory_shares_nothing(tiny_trial, tmp_path):
    cells = sweep(tiny_trial, **{"optimizer.lr": [1e-2, 1e-3], "seed": [0, 1], "members": [2]})
    for devices in (CPU, replace(GPUS_64, memory_bytes=None)):
        assert not any(s.beside for s in make_plan(cells, Store(str(tmp_path)), devices).stacks)


def test_stacks_share_as_long_as_their_whole_batches_fit_and_steps_get_no_longer(tiny_trial, tmp_path):
    cells = sweep(tiny_trial, **{"optimizer.lr": [1e-3 * n for n in range(1, 25)], "members": [5]})

    def largest(devices: Devices) -> int:
        plan = make_plan(cells, Store(str(tmp_path)), devices)
        usable = USABLE_FRAC * (devices.memory_bytes or 0)
        assert max(e.memory_bytes for e in plan.estimates) <= usable
        assert all(where.micro_batch is None for where in plan.placements)
        assert sorted(m for s in trained(plan) for m in s.member_ids()) == sorted(plan.needed)
        return max(s.num_members for s in trained(plan))

    (whole,) = trained(make_plan(cells, Store(str(tmp_path)), GPUS_64))
    all_120 = memory(typical(whole), 4, 1).total
    assert largest(replace(GPUS_64, memory_bytes=all_120)) < 120
    assert largest(replace(GPUS_64, memory_bytes=2 * all_120)) == 120
    slow = GPUS_64.peak_flops / 1e6  # no step is then bounded by its floor
    assert largest(replace(GPUS_64, peak_flops=slow)) <= 5


def test_rows_of_several_seeds_are_padded_to_the_longest(tiny_trial):
    """Eight lengths, each as likely: of two draws the longer one is k with the chance (2k - 1) / 64."""
    lengths = _Lengths(8, 36, 8, eighths=tuple(map(float, range(1, 9))))
    assert lengths.padding(1) == pytest.approx(1.0)
    assert lengths.padding(2) == pytest.approx(sum(k * (2 * k - 1) for k in range(1, 9)) / 64 / 4.5)
    assert lengths.padding(1000) == pytest.approx(8 / 4.5)
