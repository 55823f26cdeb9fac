"""Numbers as answers: heads that are exact in stacks and against PEFT, what is stored and read again, a sweep
from pairs to verdicts, and what a label that is no number gets."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoders import write_encoder
from pairs import Alike, Others, Same, pair_rows
from peft import VeraConfig, get_peft_model
from peft_loop import peft_parameters
from stacks import featured, largest_difference
from torch.nn.functional import gaussian_nll_loss, mse_loss
from toys import write_split
from transformers import AutoModelForSequenceClassification

from analysis.audit import audit
from analysis.data import load_trials
from analysis.glue import content
from analysis.report import write_report
from jobs.driver import run_sweep
from jobs.request import Request
from lorae import metrics
from lorae.backbone.loading import load_backbone
from lorae.draws import TFB
from lorae.engine.adapters import Adapters, initial_head
from lorae.engine.ensembles import Ensemble
from lorae.engine.order import DataOrder
from lorae.engine.prediction import draws_nll, labels, predict
from lorae.engine.training import TrainingData, learning_rate, train_stack
from lorae.methods import Full, LastLayer, Lora, Vera, Xavier, drawn_state, frozen_tensors
from lorae.regularizers import AdapterDropout, ClassWeights, EarlyStopping
from lorae.sources import Files
from lorae.store.names import member_folder
from lorae.store.predictions import prediction_bytes, prediction_file
from lorae.store.store import Store
from lorae.tasks.base import Example, Head, Value
from lorae.tasks.data import csv
from lorae.tasks.encoding import encode
from lorae.trial import AdamW, Budget, Sweep, Trial

BOTH = [Value(), Value(variance=True, pool="mean")]
LORA = Lora(rank=4, alpha=4, targets=("q", "v"), init=Xavier(2))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for name, seed in (("same", 0), ("others", 5)):
        write_split(folder / name, "train", pair_rows("train", 60, seed))
        write_split(folder / name, "test", pair_rows("test", 30, seed + 1))
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(str(write_encoder(tmp_path_factory.mktemp("bert"), "bert")))


@pytest.fixture
def value_trial(bert: Files, root: Path):
    def make(**changes: Any) -> Trial:
        settings: dict[str, Any] = {
            "backbone": bert,
            "task": Alike(scoring=changes.pop("scoring", BOTH[1])).located(root),
            "method": LORA,
            "optimizer": AdamW(lr=1e-2, eps=1e-4),
            "budget": Budget(batch_size=4, steps=6, max_tokens=32),
            "precision": "fp32",
        }
        return Trial(**(settings | changes))

    return make


def prepared(trial: Trial):
    backbone, task = load_backbone(trial.backbone, "fp32", "cpu"), trial.task
    splits = (task.examples("train"), task.examples("validation"))
    data = TrainingData(*(encode(backbone.tokenizer, task, s, 32) for s in splits))
    return backbone, featured(trial, backbone, data)


# Exact members


@pytest.mark.parametrize("scoring", BOTH, ids=lambda scoring: scoring.label)
@pytest.mark.parametrize("method", [LORA, Vera(rank=8, targets=("q", "v")), Full(), LastLayer()])
def test_a_member_of_a_stack_equals_the_member_trained_alone(value_trial, scoring, method):
    rules = () if isinstance(method, LastLayer) else (AdapterDropout(0.1),)
    rules = () if isinstance(method, Full) else rules
    trial = value_trial(
        scoring=scoring, method=method, regularizers=(*rules, EarlyStopping(patience=9, every=2))
    )
    backbone, data = prepared(trial)
    together = train_stack(backbone, trial, [0, 1], data)
    for m, run in enumerate(together):
        alone = train_stack(backbone, trial, [m], data)[0]
        assert run.error is None and largest_difference(run, alone) < 1e-5
        assert math.isfinite(run.best_nll) and run.best_step == alone.best_step
    assert together[0].state["head.weight"].shape == (scoring.num_outputs, 32)
    assert largest_difference(*together) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("scoring", BOTH, ids=lambda scoring: scoring.label)
def test_vera_on_pairs_equals_a_plain_peft_loop(value_trial, scoring):
    """PEFT's VeRA, torch's own losses, and the head's own learning rate, one pair at a time."""
    optimizer = AdamW(lr=1e-2, head_lr=3e-2, eps=1e-4)
    trial = value_trial(scoring=scoring, method=Vera(rank=8, targets=("q", "v")), optimizer=optimizer)
    backbone, data = prepared(trial)
    ours, key = train_stack(backbone, trial, [0, 1], data)[1], trial.member_key(1)
    config = VeraConfig(r=8, target_modules=["query", "value"], save_projection=True)
    plain = get_peft_model(AutoModelForSequenceClassification.from_pretrained(trial.backbone.path), config)
    layers = trial.method.adapted_layers(backbone.linears, "bert")
    theirs = peft_parameters(plain)
    for name, value in initial_head(scoring.num_outputs, 32, key["init"]).items():
        theirs[name] = torch.nn.Parameter(value.clone())
    with torch.no_grad():
        for name, value in drawn_state(trial.method, layers, key["init"]).items():
            theirs[name].copy_(value)
        for name, value in zip("AB", frozen_tensors(trial.method, layers, key["init"])):
            getattr(plain.base_model, f"vera_{name}")["default"].copy_(value)
    head = [p for name, p in theirs.items() if name.startswith("head.")]
    others = [p for name, p in theirs.items() if not name.startswith("head.")]
    descent = torch.optim.AdamW([{"params": others}, {"params": head}], weight_decay=0.0, eps=1e-4)
    order = DataOrder(key["order"], trial.seed, np.array([len(r.tokens) for r in data.train]), 4)
    for step in range(6):
        rows, read = [data.train[n] for n in order.batch(step)], []
        for row in rows:
            types = torch.tensor([row.types])
            hidden = plain.base_model.model.bert(torch.tensor([row.tokens]), token_type_ids=types)[0][0]
            read.append(hidden.mean(0) if scoring.pool == "mean" else hidden[0])
        outputs = torch.stack(read) @ theirs["head.weight"].T + theirs["head.bias"]
        gold = torch.tensor([row.value for row in rows])
        descent.zero_grad()
        if scoring.variance:
            gaussian_nll_loss(outputs[:, 0], gold, outputs[:, 1].exp(), full=True).backward()
        else:
            mse_loss(outputs[:, 0], gold).backward()
        torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        for group, ratio in zip(descent.param_groups, (1, 3)):
            group["lr"] = learning_rate(trial.optimizer, step, 6) * ratio
        descent.step()
    assert theirs.keys() == ours.state.keys()
    for name, value in ours.state.items():
        assert torch.allclose(value, theirs[name].detach(), atol=2e-5), name


def test_a_rate_of_heads_is_hashed_where_it_is_set_and_refused_without_heads(value_trial, tiny_trial):
    trial = value_trial()
    other = replace(trial, optimizer=replace(trial.optimizer, head_lr=3e-2))
    assert "head_lr" not in json.dumps(trial.recipe()) and other.member_id(0) != trial.member_id(0)
    with pytest.raises(ValueError, match="members train no head"):
        tiny_trial(optimizer=AdamW(head_lr=1e-2))


# Stored outputs


@pytest.fixture(scope="module")
def swept(root: Path, bert: Files, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sweep of two tasks, of numbers and of classes, by two methods, with an OOD set."""
    trial = Trial(
        backbone=bert,
        task=Alike(scoring=BOTH[1]).located(root),
        method=LORA,
        optimizer=AdamW(lr=1e-2, head_lr=2e-2),
        budget=Budget(batch_size=8, epochs=2, max_tokens=32),
        precision="fp32",
    )
    sweep = Sweep(
        base=trial,
        axes={"members": [1, 2], "seed": [0, 1]},
        rivals=[
            replace(trial, task=Alike(scoring=BOTH[0]).located(root), members=2),
            replace(trial, members=2, combine="weights"),
        ],
        ood=[Others().located(root)],
    )
    storage = tmp_path_factory.mktemp("store")
    request = Request("alike", sweep, str(storage), "lorae sweep alike", None)
    assert run_sweep(request, local=True, tracking_uri=f"sqlite:///{storage}/mlflow.db") == 0
    return str(storage)


@pytest.mark.process
def test_a_row_is_what_its_members_outputs_say(swept):
    store = Store(swept)
    rows = store.read_table("alike").to_pylist()
    assert [row["status"] for row in rows] == ["done"] * 8
    for row in rows:
        if row["combine"] == "weights":
            continue
        name = json.loads(row["eval_sets"])["test"]
        stored = store.predictions([member_folder(m) for m in row["member_ids"]], name)
        assert stored.logits_MNC.shape == (row["members"], 30, 2 if "variance" in row["scoring"] else 1)
        found = metrics.value_summary(stored.logits_MNC, stored.labels_N)
        assert {name: row[name] for name in found} == found
        assert row["acc"] is None and row["ece15"] is None and 0 <= row["conformal_picp90"] <= 1
        ood = row["auroc_epistemic_variance__others"]
        assert (ood is None) == (row["members"] == 1) and row["auroc_msp__others"] is None
        unknown = store.predictions(
            [member_folder(row["member_ids"][0])], json.loads(row["eval_sets"])["others"]
        )
        assert np.isnan(unknown.labels_N).all()
    assert not [finding for finding in audit(swept) if finding.status == "failed"]


@pytest.mark.process
def test_the_table_compares_numbers_with_verdicts(swept):
    trials = load_trials(swept, "alike")
    single, pair = (
        next(c for c in trials.cells if c.members == m and "mean" in c.factors["scoring"]) for m in (1, 2)
    )
    for column in ("rmse", "mae", "crps", "pearson", "ensemble_nll", "auroc_total_variance__others"):
        assert trials.estimates.of(single, column).is_comparable, column
        difference = trials.estimates.family([single, pair], column).difference(pair, single)
        assert difference.lo <= difference.value <= difference.hi and difference.verdict, column
    assert trials.estimates.of(pair, "rmse").mean > 0
    glue, *_ = [table for table in content(trials).tables if table.name == "glue"]
    line = next(line for line in glue.blocks[0] if line["model"].value.startswith("single"))
    own = [row["acc"] for row in single.rows]
    assert own == [None, None] and line["mean over tasks"].value is None, "accuracy of numbers is no number"


@pytest.mark.process
def test_a_report_of_numbers_leaves_out_what_needs_classes(swept, tmp_path):
    text = write_report(swept, "alike", tmp_path).read_text()
    assert "RMSE" in text and "Reliability" not in text


@pytest.mark.process
def test_an_ensemble_of_numbers_is_not_loaded_as_one_of_classes(swept):
    with pytest.raises(ValueError, match="answer by a value, not a class"):
        Ensemble.load(swept, sweep="alike")


def test_outputs_are_read_as_they_were_stored(value_trial, tmp_path):
    trial = value_trial()
    backbone, data = prepared(trial)
    outputs = predict_of(backbone, trial, data)
    gold = labels(data.validation)
    assert gold.dtype == np.float64 and gold == pytest.approx([row.value for row in data.validation])
    name, ids = "same__validation__0123abcd", [row.id for row in data.validation]
    gold[2] = math.nan
    known = [0 if math.isfinite(value) else -1 for value in gold]
    content = prediction_bytes("a" * 16, name, ids, known, [2] * len(ids), outputs[None], "", gold.tolist())
    store = Store(str(tmp_path))
    store.write_entry(member_folder("a" * 16), {prediction_file(name): content})
    found = store.predictions([member_folder("a" * 16)], name)
    assert np.array_equal(found.labels_N, gold, equal_nan=True)
    assert np.array_equal(found.logits_MNC[0], outputs.astype(np.float32))


def predict_of(backbone, trial: Trial, data: TrainingData) -> np.ndarray:
    key = trial.member_key(0)["init"]
    with Adapters(backbone, trial.method, [key], answer_ids=range(2)):
        return predict(backbone, data.validation)[0]


def test_a_member_is_stopped_by_the_nll_of_its_gaussians(value_trial):
    trial = value_trial()
    backbone, data = prepared(trial)
    outputs, gold = predict_of(backbone, trial, data), labels(data.validation)
    nll = gaussian_nll_loss(*map(torch.tensor, (outputs[:, 0], gold, np.exp(outputs[:, 1]))), full=True)
    assert draws_nll(outputs[None], gold) == pytest.approx(nll.item(), rel=1e-5)
    assert math.isnan(draws_nll(np.full_like(outputs, np.nan)[None], gold))


# Bad input


@pytest.mark.parametrize("cell", ["high", "nan", "inf", "", "1e400"])
def test_a_label_that_is_no_number_is_refused_with_its_line_and_column(tmp_path, cell):
    class Written(Alike):
        test = csv("test.csv")

    (tmp_path / "same").mkdir()
    (tmp_path / "same" / "test.csv").write_text(f"id,one,two,value\na,w1,w2,1.5\nb,w3,w4,{cell}\n")
    with pytest.raises(ValueError, match=r"value is .*column value.*finite number.* line 3 of .*test.csv"):
        Written().located(tmp_path).examples("test")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"label": None}, "its label is None and its value 2.0"),
        ({"value": None}, "its label is 0 and its value None"),
        ({"options": ("a", "b")}, "2 options; must be 1 to 1"),
    ],
)
def test_a_number_goes_with_one_option_and_its_label(tmp_path, changes, fault):
    write_split(tmp_path / "same", "test", [{"id": "a", "one": "w1", "two": "w2", "value": 2.0}])

    class Broken(Alike):
        def example(self, row: dict[str, Any]) -> Example:
            return replace(super().example(row), **changes)

    with pytest.raises(ValueError, match=fault):
        Broken().located(tmp_path).examples("test")


def test_a_value_of_a_task_of_classes_is_refused(tmp_path):
    write_split(tmp_path / "same", "test", pair_rows("test", 2, 0))

    class Valued(Same):
        def example(self, row: dict[str, Any]) -> Example:
            return replace(super().example(row), value=1.0)

    with pytest.raises(ValueError, match="others have no value"):
        Valued().located(tmp_path).examples("test")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"combine": "logits", "members": 2}, 'combine="probs"'),
        ({"draws": TFB(2)}, "fitted to classes"),
        ({"regularizers": (ClassWeights(0.9),)}, "a value has no class"),
        ({"members": 0}, "no head"),
    ],
)
def test_what_makes_no_sense_for_numbers_is_refused(value_trial, changes, fault):
    with pytest.raises(ValueError, match=fault):
        value_trial(**changes)


def test_an_ood_task_of_classes_is_refused(value_trial, root):
    trial = value_trial()
    sweep = Sweep(base=trial, ood=[replace(Others(), scoring=Head()).located(root)])
    with pytest.raises(ValueError, match="predict numbers"):
        sweep.eval_tasks(trial)
