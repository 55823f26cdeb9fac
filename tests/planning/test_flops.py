"""Operations by the shapes are those that torch counts, for every method, and add up in a trial's row."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from stacks import Recorder, prepared
from torch.utils.flop_counter import FlopCounterMode

from lorae.draws import TFB
from lorae.engine.clock import Stopwatch
from lorae.engine.prediction import with_features
from lorae.engine.run import run_stack
from lorae.engine.training import MemberRun, train_stack
from lorae.methods import BatchEnsemble, Blob, Full, LastLayer, Lora, PVera, Rank1BNN, Vera
from lorae.planning.stack import Stack
from lorae.regularizers import KL, EarlyStopping, Masksembles
from lorae.results import COUNTED, trials_table
from lorae.store.names import RECORD, fit_file, member_folder
from lorae.store.store import Store
from lorae.tasks import OptionLikelihood
from lorae.trial import Budget, Diversity, Trial

QV, ALL = ("q_proj", "v_proj"), ("q", "k", "v", "o", "gate_proj", "up_proj", "down_proj")
METHODS = {
    "lora": Lora(rank=4, targets=QV),
    "lora on all layers": Lora(rank=4, targets=ALL),
    "lora above attention": Lora(rank=2, targets=("o_proj",)),
    "lora in one layer": Lora(rank=2, targets=("layers.1.mlp.down_proj",)),
    "vera": Vera(rank=16, targets=QV),
    "pvera": PVera(rank=16, targets=QV),
    "blob": Blob(rank=4, targets=QV),
    "batch ensemble": BatchEnsemble(targets=QV),
    "rank-1 bnn": Rank1BNN(targets=("down_proj",)),
    "full": Full(),
    "last layer": LastLayer(),
}


def counted(function: Callable[[], Any]) -> tuple[Any, int]:
    """What a function returns, and the operations that torch counts in it."""
    with FlopCounterMode(display=False) as counter:
        return function(), counter.get_total_flops()


def one_by_one(trial: Trial, **changes: Any) -> Trial:
    """All members read the same row in each step, so that torch, too, counts no padding and no beginning that
    rows share."""
    return replace(
        trial, budget=Budget(batch_size=1, steps=5), diversity=Diversity(order="shared"), **changes
    )


def total(runs: Sequence[MemberRun]) -> float:
    """Without what was done before the training."""
    return sum(run.train_flops - run.shared_flops for run in runs)


@pytest.mark.slow
@pytest.mark.parametrize("options", [False, True], ids=["label words", "options"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_training_costs_what_torch_counts(tiny_trial, method, options):
    """But for a key's gradient in the first adapted layer, which is counted where only queries have one."""
    trial = one_by_one(tiny_trial(method=method))
    if options and not isinstance(method, LastLayer):
        trial = replace(trial, task=replace(trial.task, scoring=OptionLikelihood()))
    backbone, data = prepared(trial)
    runs, flops = counted(lambda: train_stack(backbone, trial, [0, 1], data))
    of_the_key = 0.01 if getattr(method, "targets", ()) == QV else 1e-9
    assert total(runs) == pytest.approx(flops, rel=of_the_key)
    assert runs[0].train_flops == runs[1].train_flops


@pytest.mark.parametrize("masks", [(), (Masksembles(3, 1.5),)], ids=["plain", "masks"])
def test_evaluations_for_early_stopping_are_counted(tiny_trial, masks):
    """With every mask; the backbone's logits for KL are stored once for all."""
    stopping = EarlyStopping(patience=9, every=2)
    method = Lora(rank=4, targets=("o_proj",))
    trial = one_by_one(tiny_trial(method=method), regularizers=(stopping, *(masks or (KL(0.1),))))
    backbone, data = prepared(trial)
    data = replace(data, validation=data.validation[:1])
    runs, flops = counted(lambda: train_stack(backbone, trial, [0, 1], data))
    assert [r["split"] for r in runs[0].curve].count("validation") == 3
    assert total(runs) == pytest.approx(flops, rel=1e-9)


@pytest.mark.slow
def test_features_of_last_layers_are_counted_once(tiny_trial, tmp_path):
    trial = tiny_trial(method=LastLayer(std=0.1), members=3, budget=Budget(steps=2))
    backbone, data = prepared(trial)
    rows = [*data.train, *data.validation]
    flops = sum(counted(lambda row=row: with_features(backbone, [row]))[1] for row in rows)
    run_stack(Stack(trial, (0, 1, 2)), str(tmp_path))
    store = Store(str(tmp_path))
    costs = [store.record(member_folder(m), {})["cost"] for m in trial.member_ids()]
    heads = [cost["train_flops"] - cost["shared_flops"] for cost in costs]
    assert [cost["shared_flops"] for cost in costs] == pytest.approx([flops] * 3, rel=1e-9)
    assert min(heads) > 0 and max(heads) < 0.1 * flops
    (row,) = trials_table(store, "toy", [(trial, ())], {}).to_pylist()
    assert row["train_flops"] == pytest.approx(flops + sum(heads), rel=1e-9)


def test_a_resumed_training_counts_all_of_it(tiny_trial):
    trial = tiny_trial(budget=Budget(batch_size=4, steps=6), regularizers=(EarlyStopping(9, every=2),))
    backbone, data = prepared(trial)
    recorder = Recorder()
    (whole,) = train_stack(backbone, trial, [0], data, checkpoints=recorder)
    tensors, header = recorder.all[4]
    (resumed,) = train_stack(backbone, trial, [0], data, checkpoints=Recorder((tensors, header)))
    before = header["runs"][0]
    assert resumed.train_flops == whole.train_flops > before["train_flops"] > 0
    assert resumed.process_seconds > before["process_seconds"] > 0
    for name in ("train_flops", "shared_flops", "process_seconds"):  # a checkpoint of an older lorae
        del header["runs"][0][name]
    (unknown,) = train_stack(backbone, trial, [0], data, checkpoints=Recorder((tensors, header)))
    assert math.isnan(unknown.train_flops) and math.isnan(unknown.process_seconds)
    assert unknown.train_tokens == whole.train_tokens


def test_a_row_sums_what_its_members_and_their_draws_took(tiny_trial, tmp_path):
    """And has none where one of them was stored by a lorae that did not count."""
    trial = tiny_trial(members=2, budget=Budget(batch_size=4, steps=3))
    drawn = replace(trial, draws=TFB(2))
    run_stack(Stack(trial, (0, 1), draws=(None, TFB(2)), draw_members=(2, 2)), str(tmp_path))
    store = Store(str(tmp_path))

    def rows() -> list[dict[str, Any]]:
        return trials_table(store, "toy", [(trial, ()), (drawn, ())], {}).to_pylist()

    def forget(name: str, *keys: str) -> None:
        folder = member_folder(trial.member_id(1))
        record = json.loads(store.read(folder, name))
        for key in keys:
            del record.get("cost", record)[key]
        store.write_entry(folder, {name: json.dumps(record).encode()})

    plain, sampled = rows()
    costs = [store.record(member_folder(m), {})["cost"] for m in trial.member_ids()]
    fits = [store.fit_record(m, TFB(2)) for m in trial.member_ids()]
    for name in COUNTED:
        assert plain[name] == pytest.approx(sum(cost[name] for cost in costs)) and plain[name] > 0
        searched = sum(fit[name.replace("train", "search")] for fit in fits)
        assert sampled[name] == pytest.approx(plain[name] + searched) and searched > 0
    assert fits[0]["search_flops"] > 7 * 2 * costs[0]["train_flops"] / (3 * 4), "14 passes over 40 rows"
    forget(fit_file(TFB(2)), "search_flops")
    before, (plain, sampled) = plain, rows()
    assert plain == before | {"stored_bytes": plain["stored_bytes"]}
    assert sampled["train_flops"] is None and sampled["train_process_seconds"] is not None
    forget(RECORD, "train_flops", "train_process_seconds", "shared_flops")
    for row in rows():
        assert row["status"] == "done" and row["train_flops"] is row["train_process_seconds"] is None
        assert row["train_seconds"] > 0 and row["train_tokens"] == plain["train_tokens"]


def test_the_backbones_row_costs_nothing(tiny_trial, tmp_path):
    trial = replace(tiny_trial(), members=0)
    run_stack(Stack(trial, ()), str(tmp_path))
    (row,) = trials_table(Store(str(tmp_path)), "toy", [(trial, ())], {}).to_pylist()
    assert row["status"] == "done" and [row[name] for name in COUNTED] == [0, 0]


def test_sleeping_takes_no_time_of_the_process():
    watch = Stopwatch(torch.device("cpu"))
    while watch.stop().process_seconds < 0.05:
        sum(range(10_000))
    busy = watch.process_seconds
    assert watch.seconds > 0.9 * busy
    time.sleep(0.3)
    assert watch.stop().seconds > 0.3 and watch.process_seconds < busy + 0.1
    twice = Stopwatch(torch.device("cpu"), num_processes=2)
    sum(range(1_000_000))
    once = twice.stop().process_seconds / 2
    assert 0 < once <= twice.seconds + 0.05
