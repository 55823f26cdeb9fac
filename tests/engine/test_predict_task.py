"""Adding a prediction set to stored members gives what the sweep would have stored."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toys import Colours, Greys

from jobs.predict import read_task, run_predict
from lorae.backbone.loading import load_backbone
from lorae.engine.predict_task import predict_task
from lorae.engine.prediction import with_features
from lorae.engine.run import run_stack
from lorae.methods import LastLayer, Lora, Vera
from lorae.planning.estimate import Devices
from lorae.planning.plan import make_plan
from lorae.planning.stack import Stack
from lorae.sources import Files
from lorae.store.names import RECORD, WEIGHTS, member_folder, reference_folder
from lorae.store.store import Store
from lorae.tasks import MMLU, TREC
from lorae.trial import Budget, Sweep


@pytest.mark.slow
@pytest.mark.parametrize("method", [Lora(rank=2), Vera(rank=4)], ids=["lora", "vera"])
def test_a_later_prediction_equals_the_sweeps(tiny_trial, data_root, tmp_path, method):
    trial, greys = tiny_trial(method=method), Greys().located(data_root)
    run_stack(Stack(trial, (0, 1, 2), (greys,)), str(tmp_path / "at-once"))
    run_stack(Stack(trial, (0, 1, 2)), str(tmp_path / "later"))
    at_once, later = Store(str(tmp_path / "at-once")), Store(str(tmp_path / "later"))
    members = [trial.member_id(m) for m in range(3)]
    folders = [*map(member_folder, members), reference_folder(trial.reference_id())]

    assert predict_task(later, members, greys) == 3
    expected = at_once.predictions(folders, greys.eval_set("test"))
    found = later.predictions(folders, greys.eval_set("test"))
    np.testing.assert_array_equal(found.logits_MNC, expected.logits_MNC)
    assert found.example_ids == expected.example_ids
    assert predict_task(later, members, greys) == 0, "nothing is predicted twice"
    assert not any(map(later.damage, folders))


@pytest.mark.slow
def test_members_of_different_recipes_are_grouped(tiny_trial, data_root, tmp_path):
    trials = [tiny_trial(), tiny_trial(method=Lora(rank=3)), tiny_trial(seed=5)]
    for trial in trials:
        run_stack(Stack(trial, (0,)), str(tmp_path))
    greys = Greys().located(data_root)
    assert predict_task(Store(str(tmp_path)), [t.member_id(0) for t in trials], greys) == 3
    for trial in trials:
        Store(str(tmp_path)).predictions([member_folder(trial.member_id(0))], greys.eval_set("test"))


@pytest.mark.slow
def test_bad_input_is_refused_before_anything_is_predicted(tiny_trial, tiny_llama, data_root, tmp_path):
    class Other(Greys):
        template = "different : {question}"

    trial, store = tiny_trial(), Store(str(tmp_path / "store"))
    run_stack(Stack(trial, (0,)), store.storage.uri)
    members = [trial.member_id(0)]
    with pytest.raises(ValueError, match="prompt template"):
        predict_task(store, members, Other().located(data_root))
    other = tmp_path / "other"
    shutil.copytree(tiny_llama.path, other)
    config = json.loads((other / "config.json").read_text()) | {"rope_theta": 5.0}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="not the backbone that the members were trained on"):
        predict_task(store, members, Greys().located(data_root), backbone=Files(str(other)))
    with pytest.raises(ValueError, match="no stored members"):
        run_predict(str(tmp_path / "empty"), "TREC", None, _trec(tmp_path), None)


def damaged(path):
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    os.utime(path, (0, 0))


@pytest.mark.parametrize("file", [WEIGHTS, RECORD])
def test_a_damaged_member_is_trained_again_by_the_repeated_sweep(tiny_trial, data_root, tmp_path, file):
    """As the message says, though the sweep's plan, which reads records alone, had believed the weights."""
    trial, store = tiny_trial(budget=Budget(batch_size=4, steps=1), members=2), Store(str(tmp_path))
    run_stack(Stack(trial, (0, 1)), store.storage.uri)
    damaged(tmp_path / member_folder(trial.member_id(1)) / file)
    sweep, cpu = Sweep(base=trial), Devices("cpu", 1, 1)
    assert make_plan(sweep, store, cpu).num_to_train == (file == RECORD)
    with pytest.raises(ValueError, match="differs from its checksum; repeat the sweep that made it"):
        predict_task(store, trial.member_ids(), Greys().located(data_root))
    assert [s.members for s in make_plan(sweep, store, cpu).stacks] == [(1,)]


class Pairs(Greys):
    """Greys with two classes, or with three others."""

    words = "red", "green"

    def example(self, row):
        return replace(super().example(row), options=self.words)


class Others(Pairs):
    words = "red", "green", "w1"


def test_heads_of_the_last_layer_predict_a_task_with_the_same_answers(
    tiny_trial, data_root, tmp_path, monkeypatch
):
    """Other answers are refused before anything is stored; the features are computed once for all stacks."""
    trial = tiny_trial(method=LastLayer(std=0.1), budget=Budget(batch_size=4, steps=1), members=3)
    store = Store(str(tmp_path))
    run_stack(Stack(trial, (0, 1, 2)), store.storage.uri)
    entries = [*map(member_folder, trial.member_ids()), reference_folder(trial.reference_id())]
    files = [store.files(entry) for entry in entries]
    for task in (Pairs(), Others()):
        with pytest.raises(ValueError, match=r"greys grey-\d+ has the answers .* the members' heads have"):
            predict_task(store, trial.member_ids(), task.located(data_root))
    assert [store.files(entry) for entry in entries] == files
    calls = []
    monkeypatch.setattr("lorae.engine.stored.STACK_MEMBERS", 1)
    monkeypatch.setattr(
        "lorae.engine.stored.with_features", lambda *args: calls.append(1) or with_features(*args)
    )
    assert predict_task(store, trial.member_ids(), Greys().located(data_root)) == 3
    assert len(calls) == 1

    record = json.loads(store.read(entries[0], RECORD))
    del record["answers"]
    store.write_entry(entries[0], {RECORD: json.dumps(record).encode()})
    with pytest.raises(ValueError, match=r"stored by an older lorae; predict with a sweep's ood"):
        predict_task(store, trial.member_ids(), Greys().located(data_root))


def test_predictions_on_a_gpu_have_the_sweeps_products(tiny_trial, data_root, tmp_path, monkeypatch):
    """TF32 where the backbone is bf16, as its members were trained."""
    products = SimpleNamespace(allow_tf32=None)
    monkeypatch.setattr(torch.backends.cuda, "matmul", products)
    monkeypatch.setattr("lorae.engine.stored.load_backbone", lambda *args: load_backbone(*args[:2], "cpu"))
    for precision in ("bf16", "fp32"):
        trial = tiny_trial(precision=precision, budget=Budget(batch_size=4, steps=1))
        run_stack(Stack(trial, (0,)), str(tmp_path))
        products.allow_tf32 = precision == "fp32"
        predict_task(Store(str(tmp_path)), [trial.member_id(0)], Greys().located(data_root), device="cuda")
        assert products.allow_tf32 == (precision == "bf16")


def _trec(folder):
    (folder / "trec").mkdir()
    return str(folder)


def test_the_task_is_read_from_words_not_executed(tmp_path):
    assert read_task("TREC") == TREC()
    assert read_task("MMLU('college_physics', num_test=7)") == MMLU("college_physics", num_test=7)
    file = tmp_path / "mine.py"
    file.write_text("from toys import Colours\n")
    assert read_task(f"{file}:Colours(num_test=3)") == Colours(num_test=3)
    for text, message in [
        ("Trecc", r"no such task; did you mean TREC\? lorae has "),
        ("MMLU", "missing 1 required positional"),
        ("TREC(__import__('os'))", "malformed"),
        ("__import__('os').system('true')", "no such task"),
        ("Task", "no such task"),
        ("TREC(", "was never closed"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_task(text)
