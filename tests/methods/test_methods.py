"""The rivals of LoRA ensembles: exact in a stack, what each is by definition, and their draws when stored."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from stacks import Recorder, largest_difference, prepared
from torch import nn
from torch.nn import functional as F
from toys import Greys
from transformers import AutoModelForCausalLM

from jobs.export import export_member
from jobs.plan_text import plan_text
from lorae import seeds
from lorae.draws import TFB, Fitted, Laplace, MCDropout, plain_set
from lorae.draws.tfb import Samples
from lorae.engine.adapters import Adapters, Stacked
from lorae.engine.drawing import read_fit
from lorae.engine.order import DataOrder
from lorae.engine.predict_task import predict_task
from lorae.engine.prediction import predict, predict_draws, with_features
from lorae.engine.run import run_stack
from lorae.engine.training import learning_rate, train_stack
from lorae.methods import BatchEnsemble, Full, LastLayer, Lora, Vera
from lorae.methods.full import full_member_bytes
from lorae.noise import make_noise
from lorae.planning.estimate import Devices, estimate
from lorae.planning.plan import Plan, make_plan, placed
from lorae.planning.stack import Stack
from lorae.regularizers import KL, AdapterDropout, ClassWeights, DecayB, EarlyStopping, Masksembles
from lorae.regularizers.masksembles import BranchMasks
from lorae.results import trials_table
from lorae.sources import backbone_config
from lorae.store import peft_format
from lorae.store.names import ADAPTER_CONFIG, WEIGHTS, member_folder
from lorae.store.peft_format import read_stages
from lorae.store.predictions import prediction_file
from lorae.store.store import Store
from lorae.tasks.base import Head, OptionLikelihood
from lorae.trial import AdamW, Budget, Diversity, Sweep, companions

RIVALS = [BatchEnsemble(init="signs"), BatchEnsemble(std=0.1), LastLayer(std=0.02), Full()]
CYCLIC = AdamW(lr=1e-2, schedule="cyclic", cycles=3)
ONE_CPU = Devices("cpu", 1, 2)


def name_of(value) -> str:
    return getattr(value, "label", str(value)) + getattr(value, "init_label", "")


# Exactness -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method,noise",
    [
        *((method, AdapterDropout(0.2)) for method in RIVALS),
        *((method, Masksembles(2, 1.5)) for method in (LastLayer(), Full(), Lora(rank=2, alpha=None))),
    ],
    ids=name_of,
)
def test_member_of_a_stack_equals_the_member_trained_alone(tiny_trial, method, noise):
    trial = tiny_trial(
        method=method,
        optimizer=AdamW(lr=5e-3, max_grad_norm=0.5),
        budget=Budget(batch_size=4, steps=9),
        regularizers=(noise, KL(0.05), ClassWeights(0.9), EarlyStopping(patience=1, every=3)),
    )
    backbone, data = prepared(trial)
    together = train_stack(backbone, trial, range(3), data, micro_batch=3)
    alone = [train_stack(backbone, trial, [m], data)[0] for m in range(3)]
    for one, other in zip(together, alone):
        assert one.error is None and one.best_step == other.best_step
        assert largest_difference(one, other) < 2e-5
    assert largest_difference(together[0], together[1]) > 1e-3


def test_batchensemble_of_ones_is_the_layer_with_its_bias_and_r_s_scale_it():
    base, x = nn.Linear(6, 5), torch.randn(2 * 3, 4, 6)
    r, s = torch.randn(2, 6), torch.randn(2, 5)
    adapters = SimpleNamespace(
        method=BatchEnsemble(),
        noise=None,
        noisy=lambda x, n: x,
        backbone=SimpleNamespace(gathered=lambda p: torch.no_grad()),
    )
    module = Stacked(base, adapters, "layer", 0)  # type: ignore[arg-type]
    adapters.factors = lambda layer: (torch.ones(2, 6), torch.ones(2, 5))
    assert torch.allclose(module(x), base(x), atol=1e-6)
    adapters.factors = lambda layer: (r, s)
    for m, (own, y) in enumerate(zip(x.view(2, 3, 4, 6), module(x).view(2, 3, 4, 5))):
        assert torch.allclose(y, F.linear(own * r[m], base.weight) * s[m] + base.bias, atol=1e-6)


@pytest.mark.parametrize("method", [BatchEnsemble(std=0), LastLayer(), Full()], ids=name_of)
def test_step_zero_is_the_backbone_which_never_moves(tiny_trial, method):
    trial = tiny_trial(method=method, budget=Budget(batch_size=4, steps=2))
    backbone, data = prepared(trial)
    before = {name: p.clone() for name, p in backbone.lm.named_parameters()}
    plain = predict(backbone, data.validation)
    inits, answer_ids = [trial.member_key(m)["init"] for m in range(2)], data.train[0].answer_ids
    with Adapters(backbone, method, inits, None, answer_ids):
        assert np.allclose(predict(backbone, data.validation), plain, atol=1e-6)
    runs = train_stack(backbone, trial, [0, 1], data)
    with Adapters(backbone, method, inits, None, answer_ids) as adapters:
        adapters.load([run.state for run in runs])
        assert not np.allclose(predict(backbone, data.validation), plain, atol=1e-3)
    assert all(torch.equal(before[n], p) for n, p in backbone.lm.named_parameters())


def test_full_member_equals_a_plain_loop(tiny_trial):
    """Against transformers and torch alone: the model's own logits, one example at a time."""
    trial = tiny_trial(method=Full(), optimizer=AdamW(lr=3e-3), budget=Budget(batch_size=4, steps=4))
    backbone, data = prepared(trial)
    ours = train_stack(backbone, trial, [0, 1], data)[1].state
    lm = AutoModelForCausalLM.from_pretrained(trial.backbone.path)
    optimizer = torch.optim.AdamW(lm.parameters(), weight_decay=0.0)
    lengths = np.array([len(r.tokens) for r in data.train])
    order = DataOrder(trial.member_key(1)["order"], trial.seed, lengths, 4)
    for step in range(4):
        rows = [data.train[n] for n in order.batch(step)]
        logits = [lm(torch.tensor([r.tokens])).logits[0, -1, list(r.answer_ids)] for r in rows]
        optimizer.zero_grad()
        F.cross_entropy(torch.stack(logits), torch.tensor([r.label for r in rows])).backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(trial.optimizer, step, 4)
        optimizer.step()
    theirs = dict(lm.named_parameters())
    assert ours.keys() == theirs.keys()
    assert max((ours[name] - p).abs().max().item() for name, p in theirs.items()) < 1e-4


def test_last_layer_never_runs_the_backbone_on_rows_with_features(tiny_trial):
    trial = tiny_trial(
        method=LastLayer(std=0.1), regularizers=(EarlyStopping(every=2),), budget=Budget(steps=6)
    )
    backbone, data = prepared(trial)
    calls: list[int] = []
    hook = backbone.lm.base_model.register_forward_hook(lambda *_: calls.append(1))
    try:
        runs = train_stack(backbone, trial, range(4), data)
    finally:
        hook.remove()
    assert not calls
    assert {name: tuple(v.shape) for name, v in runs[0].state.items()} == {"head.weight": (3, 32)}


@pytest.mark.slow
def test_last_layers_row_has_the_cost_of_its_features(tiny_trial, tmp_path, monkeypatch):
    def slow(*args):
        time.sleep(0.4)
        return with_features(*args)

    monkeypatch.setattr("lorae.engine.job.with_features", slow)
    trial = tiny_trial(method=LastLayer(std=0.1), members=2, budget=Budget(steps=1))
    run_stack(Stack(trial, (0, 1)), str(tmp_path))
    (row,) = trials_table(Store(str(tmp_path)), "toy", [(trial, ())], {}).to_pylist()
    assert row["train_tokens"] == sum(len(r.tokens) for r in prepared(trial)[1].train)
    assert row["train_seconds"] > 2 * 0.4, "of the training and of the validation rows"
    assert row["forwards_per_prediction"] == 1


def test_examples_with_other_answers_have_no_common_head(tiny_trial):
    trial = tiny_trial(method=LastLayer())
    backbone, data = prepared(trial)
    other = replace(data.train[0], answer_ids=data.train[0].answer_ids[::-1], id="odd")
    with pytest.raises(ValueError, match=r"odd and .* different answer tokens"):
        with_features(backbone, [*data.train, other])


def test_no_scaling_is_alpha_equal_to_rank(tiny_trial):
    trial = tiny_trial(method=Lora(rank=4, alpha=None), budget=Budget(steps=2))
    scaled = replace(trial, method=Lora(rank=4, alpha=4))
    backbone, data = prepared(trial)
    one, other = (train_stack(backbone, t, [0], data)[0] for t in (trial, scaled))
    assert largest_difference(one, other) == 0
    files = peft_format.adapter_files(trial.method, trial.backbone, one.state)
    assert b'"lora_alpha": 4' in files[ADAPTER_CONFIG]


# Draws -----------------------------------------------------------------------------------------------------


def test_passes_of_mc_dropout_differ_and_repeat(tiny_trial):
    trial = tiny_trial(
        method=Lora(b_std=0.3), regularizers=(AdapterDropout(0.3),), draws=MCDropout(3), members=2
    )
    backbone, data = prepared(trial)
    streams = [trial.member_key(m) for m in range(2)]

    def drawn(members, rows):
        noise = make_noise(trial.method, trial.regularizers, [streams[m] for m in members])
        with Adapters(backbone, trial.method, [streams[m]["init"] for m in members], noise):
            return predict_draws(backbone, rows, trial.draws), predict(backbone, rows)

    logits_MKNC, plain_MNC = drawn([0, 1], data.validation)
    assert logits_MKNC.shape[:2] == (2, 3)
    for a, b in itertools.combinations([*logits_MKNC[0], plain_MNC[0]], 2):
        assert np.abs(a - b).max() > 1e-3
    alone, _ = drawn([1], data.validation[::-1][:5])
    assert np.allclose(alone[0], logits_MKNC[1][:, ::-1][:, :5], atol=1e-5), (
        "a pass depends on neither the other members nor the other examples"
    )


def test_a_snapshot_is_the_member_stopped_there_and_survives_a_restart(tiny_trial):
    trial = tiny_trial(optimizer=CYCLIC, budget=Budget(batch_size=4, steps=12))
    backbone, data = prepared(trial)
    recorder = Recorder()
    runs = train_stack(backbone, trial, [0, 1], data, checkpoints=recorder)
    first, second = CYCLIC.snapshot_steps(12)
    rates = [learning_rate(CYCLIC, step, 12) for step in range(12)]
    assert [step for step in range(1, 12) if rates[step] > rates[step - 1]] == [first, second]
    for m, run in enumerate(runs):
        for step, state in zip((first, second), run.snapshots, strict=True):
            stopped, _ = recorder.all[step]
            assert all(torch.equal(v, stopped[f"parameter/{n}"][m]) for n, v in state.items())
    assert not torch.equal(*(s[next(iter(s))] for s in runs[0].snapshots))
    resumed = train_stack(backbone, trial, [0, 1], data, checkpoints=Recorder(recorder.all[first + 1]))
    for run, again in zip(runs, resumed):
        for a, b in zip([*run.snapshots, run.state], [*again.snapshots, again.state], strict=True):
            assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("before,after,points", [(True, True, 6), (True, False, 0), (False, True, 0)])
def test_half_a_path_is_none(tiny_trial, before, after, points):
    trial = tiny_trial(budget=Budget(batch_size=4, steps=10))
    backbone, data = prepared(trial)
    recorder = Recorder()
    train_stack(backbone, trial, [0], data, checkpoints=recorder, path=before)
    (run,) = train_stack(backbone, trial, [0], data, checkpoints=Recorder(recorder.all[6]), path=after)
    assert len(run.path) == points


@pytest.mark.parametrize("masks,scale", [(4, 1.0), (4, 2.0), (2, 3.0), (4, 50.0)])
def test_masks_overlap_as_their_scale_says(masks, scale):
    spec, width = Masksembles(masks, scale), 128
    drawn = spec.generate(width, seeds.stream("test"))
    assert drawn.shape == (masks, width) and drawn.any(axis=0).all()
    (size,) = set(drawn.sum(axis=1).tolist())
    expected = width / (scale * (1 - (1 - 1 / scale) ** masks))
    assert abs(size - expected) < 1
    overlaps = [(a & b).sum() / size for a, b in itertools.combinations(drawn, 2)]
    assert np.mean(overlaps) == pytest.approx(1 / scale, abs=0.1)
    assert np.array_equal(drawn, spec.generate(width, seeds.stream("test")))


def test_every_row_is_trained_with_every_mask_equally_often():
    """Rows are ordered by length, and a batch may have fewer of them than there are masks."""
    noise = BranchMasks(Masksembles(masks=4), [(0, 0, "masks")])
    used = []
    for step in range(8):
        noise.train(step, range(2))
        used.append(noise.of_rows.tolist())
    assert all(Counter(of_row) == dict.fromkeys(range(4), 2) for of_row in zip(*used))


def test_masks_that_do_not_exist_are_refused_by_the_plan(tiny_trial, tmp_path):
    trial = tiny_trial(regularizers=(Masksembles(5, 1000.0),))  # five disjoint masks of 32 inputs
    with pytest.raises(ValueError, match=r"no such masks of \d+ inputs.*lower the scale"):
        make_plan(Sweep(base=trial), Store(str(tmp_path)), ONE_CPU)


def test_class_weights_closed_form():
    weights = ClassWeights(beta=0.9).class_weights([0] * 3 + [1], 3)
    raw = np.array([0.1 / (1 - 0.9**3), 0.1 / (1 - 0.9), 0.0])
    assert np.allclose(weights, 3 * raw / raw.sum())
    assert np.allclose(ClassWeights(beta=0).class_weights([0, 0, 1], 2), 1.0)


def test_class_weights_weigh_the_loss(tiny_trial):
    spec = ClassWeights(beta=0.9)
    trial = tiny_trial(regularizers=(spec,), budget=Budget(batch_size=4, steps=1))
    backbone, data = prepared(trial)
    record = train_stack(backbone, trial, [0], data)[0].curve[0]
    lengths = np.array([len(r.tokens) for r in data.train])
    batch = DataOrder(trial.member_key(0)["order"], trial.seed, lengths, 4).batch(0)
    labels = torch.tensor([data.train[n].label for n in batch])
    nll = F.cross_entropy(torch.from_numpy(data.reference_logits_NC[batch]), labels, reduction="none")
    weights = torch.from_numpy(spec.class_weights([r.label for r in data.train], 3))[labels]
    assert record["nll"] == pytest.approx(nll.mean().item(), abs=1e-5)
    assert record["loss"] == pytest.approx((weights * nll).mean().item(), abs=1e-5)


def test_rivals_have_the_axes_that_they_share(tiny_trial):
    base = tiny_trial(budget=Budget(batch_size=4, epochs=2))
    rivals = [replace(base, method=Full()), replace(base, budget=base.budget.times(3))]
    axes = {"task.num_train": [10, 20], "budget.epochs": [1, 4], "members": [1, 2]}
    trials = Sweep(base=base, axes=axes, rivals=rivals, zero_shot=False).trials()
    longest = [(t.task.num_train, t.budget.epochs) for t in trials if t.budget.epochs not in (1, 4)]
    assert longest == [(10, 3), (10, 12), (20, 3), (20, 12)]
    full = [(t.task.num_train, t.budget.epochs) for t in trials if isinstance(t.method, Full)]
    assert full == [(10, 1), (10, 4), (20, 1), (20, 4)]

    drawn = {"regularizers": (AdapterDropout(),), "draws": MCDropout(3), "combine": "weights"}
    lone = replace(base, **drawn)
    trials = Sweep(base=base, rivals=[lone, replace(base, members=2, combine="weights")]).trials()
    assert [t.combine for t in trials if t.members][-2:] == ["probs", "weights"], "one is no soup"

    whole = {"budget": [Budget(batch_size=8, steps=5)]}
    trials = Sweep(base=base, axes=whole, rivals=rivals, zero_shot=False).trials()
    assert [t.budget.steps for t in trials] == [5, 5, 15]
    other = replace(base, budget=Budget(batch_size=8, epochs=2))
    with pytest.raises(ValueError, match=r"axis 'budget' beside a rival .* is no multiple"):
        Sweep(base=base, axes=whole, rivals=[other])


# In the store ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes,draws,forwards",
    [
        ({"method": BatchEnsemble()}, "none", 2),
        ({"method": LastLayer(std=0.02)}, "none", 1),
        ({"method": Full()}, "none", 2),
        ({"method": Full(), "optimizer": CYCLIC}, "snapshots-3", 6),
        ({"regularizers": (Masksembles(2, 1.5),)}, "masks-2x1.5", 4),
        ({"method": LastLayer(), "regularizers": (Masksembles(2, 1.5),)}, "masks-2x1.5", 1),
    ],
    ids=["batchensemble", "last-layer", "full", "full-snapshots", "masks", "last-layer-masks"],
)
def test_a_later_prediction_equals_the_sweeps_and_rows_have_their_draws(
    tiny_trial, data_root, tmp_path, changes, draws, forwards
):
    trial = tiny_trial(members=2, budget=Budget(batch_size=4, steps=4), **changes)
    greys = Greys().located(data_root)
    store, later = Store(str(tmp_path / "at-once")), Store(str(tmp_path / "later"))
    run_stack(Stack(trial, (0, 1), (greys,)), store.storage.uri)
    run_stack(Stack(trial, (0, 1)), later.storage.uri)
    folders = [member_folder(m) for m in trial.member_ids()]
    assert predict_task(later, trial.member_ids(), greys) == 2
    expected, found = (s.predictions(folders, greys.eval_set("test")).logits_MNC for s in (store, later))
    assert len(expected) == 2 * trial.num_draws
    np.testing.assert_array_equal(found, expected)
    (row,) = trials_table(store, "toy", [(trial, (greys,))], {}).to_pylist()
    assert row["status"] == "done" and row["draws"] == draws
    assert row["forwards_per_prediction"] == forwards and row["rank"] == trial.method.rank
    states = [tensors for stages in read_stages(store, trial.member_ids()) for tensors in stages]
    assert row["trainable_parameters"] == sum(v.numel() for state in states for v in state.values())
    if not isinstance(trial.method, Lora):
        assert "peft_type" not in store.read(folders[0], ADAPTER_CONFIG).decode()
        with pytest.raises(ValueError, match="no PEFT adapter"):
            export_member(store.storage.uri, trial.member_id(0), str(tmp_path / "out"))
        with pytest.raises(ValueError, match="has no low-rank update"):
            peft_format.read_update(*(store.read(folders[0], name) for name in (ADAPTER_CONFIG, WEIGHTS)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "draws,fewer,passes",
    [(MCDropout(3), MCDropout(2), 3), (TFB(3), TFB(2), 3), (Laplace(5), Laplace(2), 4)],
    ids=["mc", "tfb", "laplace"],
)
def test_one_training_serves_plain_and_drawn_predictions(
    tiny_trial, data_root, tmp_path, draws, fewer, passes
):
    trial = tiny_trial(regularizers=(AdapterDropout(0.2),), budget=Budget(batch_size=4, steps=4), members=2)
    drawn = replace(trial, draws=draws)
    assert drawn.member_ids() == trial.member_ids()
    store = Store(str(tmp_path / "store"))
    sweep = Sweep(base=trial, axes={"draws": [None, draws]})
    plan = make_plan(sweep, store, ONE_CPU)
    assert len(plan.stacks) == 1 and plan.num_to_train == 2
    assert sum(t.members == 0 for t, _ in plan.trials) == 1
    run_stack(plan.stacks[0], store.storage.uri)
    assert not make_plan(sweep, store, ONE_CPU).stacks
    rows = {r["draws"]: r for r in trials_table(store, "toy", plan.trials, {}).to_pylist() if r["members"]}
    assert rows.keys() == {"none", draws.label} and rows[draws.label]["forwards_per_prediction"] == 2 * passes
    assert rows["none"]["ensemble_nll"] != rows[draws.label]["ensemble_nll"]
    searched = rows[draws.label]["train_seconds"] - rows["none"]["train_seconds"]
    assert searched > 0 if isinstance(draws, Fitted) else searched == 0
    folder, (plain, own) = (
        member_folder(trial.member_id(0)),
        (t.eval_set(t.task, "test") for t in (trial, drawn)),
    )
    assert {prediction_file(plain), prediction_file(own)} <= store.files(folder)
    assert plain_set(own) == plain == plain_set(plain)
    assert len(store.predictions([folder], own).logits_MNC) == draws.num_draws
    greys = Greys().located(data_root)
    at_once = Stack(trial, (0, 1), (greys,), draws=(draws,))
    assert predict_task(store, trial.member_ids(), greys, draws=draws) == 2
    later = store.predictions([folder], drawn.eval_set(greys, "test")).logits_MNC
    run_stack(at_once, str(tmp_path / "at-once"))
    expected = (
        Store(str(tmp_path / "at-once")).predictions([folder], drawn.eval_set(greys, "test")).logits_MNC
    )
    np.testing.assert_array_equal(later, expected)
    more = make_plan(replace(sweep, axes={"draws": [fewer]}), store, ONE_CPU)
    assert more.num_to_train == 0 and len(more.stacks) == 1, "the members only predict"


def test_a_plan_counts_no_training_of_members_that_only_predict(tiny_trial, tmp_path):
    trial = tiny_trial(budget=Budget(batch_size=4, steps=4))
    store = Store(str(tmp_path / "store"))
    run_stack(Stack(trial, (0,)), store.storage.uri)
    drawn = replace(trial, draws=TFB(2))

    def planned(members: int) -> Plan:
        return make_plan(Sweep(base=replace(drawn, members=members), zero_shot=False), store, ONE_CPU)

    alone, both = planned(1), planned(2)
    (one,), (two,) = alone.stacks, both.stacks
    assert (one.members, one.stored, two.members, two.stored) == ((0,), (0,), (0, 1), (0,))
    fresh = estimate(replace(two, stored=()), ONE_CPU, both.placements[0])
    assert alone.estimates[0].train_tokens == alone.estimates[0].train_seconds == 0
    assert both.estimates[0].train_tokens == fresh.train_tokens // 2 > 0
    assert both.estimates[0].predict_seconds == fresh.predict_seconds
    assert plan_text(alone).splitlines()[1].endswith("to predict")
    assert not plan_text(both).splitlines()[1].endswith("to predict")
    assert two.id == replace(two, stored=()).id


def test_only_the_members_of_a_trial_draw_as_it_asks(tiny_trial, tmp_path):
    """An ensemble of three, and samples of its first member, which are not predicted with the others."""
    trial = tiny_trial(method=Lora(rank=2), budget=Budget(batch_size=4, steps=4), members=3)
    store = Store(str(tmp_path / "store"))
    sweep = Sweep(base=trial, companions=True)
    plan = make_plan(sweep, store, ONE_CPU)
    (stack,) = [s for s in plan.stacks if len(s.members) == 3]
    assert dict(zip(stack.draws, stack.draw_members)) == {None: 3, TFB(3): 1}
    plain = estimate(replace(stack, draws=(), draw_members=()), ONE_CPU, plan.placements[0])
    seconds = [
        estimate(s, ONE_CPU, plan.placements[0]).predict_seconds
        for s in (stack, replace(stack, draw_members=()))
    ]
    sampled = [s - plain.predict_seconds for s in seconds]
    assert sampled[1] == pytest.approx(3 * sampled[0])
    run_stack(stack, store.storage.uri)
    drawn = [[n for n in store.files(member_folder(m)) if "-tfb-" in n] for m in trial.member_ids()]
    assert [len(names) for names in drawn] == [2, 0, 0]
    assert stack.trial not in [s.trial for s in make_plan(sweep, store, ONE_CPU).stacks]


@pytest.mark.slow
def test_samples_of_a_further_set_are_as_wide_as_the_first_ones(tiny_trial, data_root, tmp_path, monkeypatch):
    """And sets that are stored are not predicted again."""
    trial, greys = tiny_trial(budget=Budget(batch_size=4, steps=4), draws=TFB(2)), Greys().located(data_root)
    store, once, predicted = Store(str(tmp_path / "store")), Store(str(tmp_path / "once")), []
    run_stack(Stack(trial, (0, 1)), store.storage.uri)
    monkeypatch.setattr(Samples, "fit", lambda *_: pytest.fail("the fits are stored"))
    real = Samples.predict
    monkeypatch.setattr(
        Samples, "predict", lambda self, rows: predicted.append(len(rows)) or real(self, rows)
    )
    run_stack(Stack(trial, (0, 1), (greys,)), store.storage.uri)
    assert predicted == [len(greys.examples("test"))]
    monkeypatch.undo()
    run_stack(Stack(trial, (0, 1), (greys,)), once.storage.uri)
    folders, name = [member_folder(m) for m in trial.member_ids()], trial.eval_set(greys, "test")
    found, expected = (s.predictions(folders, name).logits_MNC for s in (store, once))
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match=r"has no tfb-3x0.003.json; repeat the sweep"):
        predict_task(store, trial.member_ids(), greys, draws=TFB(3))


@pytest.mark.slow
def test_a_fit_of_other_tensors_is_refused(tiny_trial, data_root, tmp_path):
    """Whole by its checksum, but not what it must be."""
    trial, greys = (
        tiny_trial(budget=Budget(batch_size=4, steps=2), draws=Laplace(2)),
        Greys().located(data_root),
    )
    store, member = Store(str(tmp_path)), trial.member_id(0)
    run_stack(Stack(trial, (0,)), store.storage.uri)
    tensors = read_fit(store, member, Laplace(2)).tensors
    (name, value), *_ = tensors.items()
    for changed in (tensors | {name: value[:, 1:]}, {n: t for n, t in tensors.items() if n != name}):
        store.write_entry(
            member_folder(member), {"laplace-2x10.safetensors": peft_format.state_bytes(changed)}
        )
        message = rf"{member}/laplace-2x10.safetensors is no fit of Laplace\(.*; delete it and repeat"
        with pytest.raises(ValueError, match=message):
            run_stack(Stack(trial, (0,), (greys,)), store.storage.uri)
        with pytest.raises(ValueError, match=message):
            predict_task(store, [member], greys, draws=Laplace(2))


@pytest.mark.parametrize("method", [Full(), LastLayer(), BatchEnsemble(std=0), Vera(projection="shared")])
def test_members_that_would_be_identical_are_refused(tiny_trial, method):
    """In one data order; not where they are one member, nor where something of them is random."""
    trial = tiny_trial(method=method, diversity=Diversity(order="shared"), budget=Budget(steps=1))
    backbone, data = prepared(trial)
    assert largest_difference(*train_stack(backbone, trial, [0, 1], data)) == 0
    with pytest.raises(ValueError, match=r'members=2 of .* with order="shared" would be identical'):
        replace(trial, members=2)
    for differing in [
        {"diversity": Diversity(init="shared", order="shared")},
        {"diversity": Diversity()},
        {"method": Lora()},
        {"regularizers": (AdapterDropout(),)},
        {"task": replace(trial.task, scoring=Head())},
    ]:
        assert replace(trial, **({"members": 2} | differing)).members == 2


# Refusals --------------------------------------------------------------------------------------------------


def test_bad_recipes_say_what_to_do(tiny_trial):
    dropout = (AdapterDropout(0.1),)
    for changes, message in [
        ({"draws": MCDropout()}, "without AdapterDropout"),
        ({"draws": TFB(), "method": Vera()}, "noise is on what LoRA adds"),
        ({"draws": Laplace(), "method": LastLayer()}, "noise is on what LoRA adds"),
        ({"draws": TFB(), "regularizers": (Masksembles(),)}, "its samples are draws already"),
        ({"draws": TFB(), "optimizer": CYCLIC}, "snapshots are draws"),
        ({"draws": TFB(), "members": 2, "combine": "weights"}, "a soup predicts once"),
        ({"regularizers": (*dropout, Masksembles())}, "take the place of dropout"),
        ({"regularizers": dropout, "draws": MCDropout(), "optimizer": CYCLIC}, "snapshots are draws"),
        ({"regularizers": (EarlyStopping(),), "optimizer": CYCLIC}, "snapshots are draws"),
        ({"method": Full(), "regularizers": (DecayB(),)}, "no zero-initialised factor"),
    ]:
        with pytest.raises(ValueError, match=message):
            tiny_trial(**changes)
    for make, message in [
        (lambda: AdamW(schedule="cyclic"), "2 cycles or more"),
        (lambda: AdamW(cycles=3), "no other one has any"),
        (lambda: BatchEnsemble(std=-1), "std=-1"),
        (lambda: Lora(targets=["q_proj"]), "must be a tuple of layer names"),
        (lambda: Masksembles(masks=1), "masks=1"),
        (lambda: ClassWeights(beta=1), "beta=1"),
        (lambda: MCDropout(0), "passes=0"),
        (lambda: TFB(0), "samples=0"),
        (lambda: TFB(tolerance=0), "tolerance=0"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()


def test_the_plan_refuses_what_cannot_be_trained(tiny_trial, tmp_path, monkeypatch):
    def planned(**changes):
        return make_plan(Sweep(base=tiny_trial(**changes)), Store(str(tmp_path)), ONE_CPU)

    scored = replace(tiny_trial().task, scoring=OptionLikelihood())
    with pytest.raises(ValueError, match="not classes of one head"):
        planned(method=LastLayer(), task=scored)
    for devices in (ONE_CPU, Devices("cuda", 2, 1, memory_bytes=2**34, per_node=2)):
        with pytest.raises(ValueError, match=r"--zero 2 with Full.*leave --zero out"):
            parted = replace(devices, stack_devices=2)
            make_plan(Sweep(base=tiny_trial(method=Full())), Store(str(tmp_path)), parted)
    with pytest.raises(ValueError, match=r"cycles=3.*fewer"):
        planned(optimizer=CYCLIC, budget=Budget(steps=2))
    warm = {"optimizer.warmup_frac": [0.5, 0.0]}  # two of four steps are left for three cycles, or all
    with pytest.raises(ValueError, match=r"cycles=3.*fewer"):
        base = tiny_trial(optimizer=CYCLIC, budget=Budget(steps=4))
        make_plan(Sweep(base=base, axes=warm), Store(str(tmp_path)), ONE_CPU)
    trial = tiny_trial(method=Full())
    needed = full_member_bytes(backbone_config(trial.backbone))
    monkeypatch.setattr("lorae.methods.full.MAX_FULL_BYTES", needed - 1)
    with pytest.raises(ValueError, match=r"needs .* GiB for each member's weights.*write Lora\(\)"):
        planned(method=Full())


def test_explicit_ensembles_are_divided_to_fit(tiny_trial, monkeypatch):
    trial = tiny_trial(method=Full())
    needed = full_member_bytes(backbone_config(trial.backbone))
    plan = Plan((), (), (), (), pending=(Stack(trial, tuple(range(6))),))
    assert [len(s.members) for s in placed(plan, ONE_CPU).stacks] == [6]
    monkeypatch.setattr("lorae.planning.placement.MAX_FULL_BYTES", 2 * needed)
    assert sorted(len(s.members) for s in placed(plan, ONE_CPU).stacks) == [1, 1, 2, 2]


def test_companions_skip_what_has_no_meaning(tiny_trial):
    for method in RIVALS:
        assert len(companions(tiny_trial(method=method, members=3))) == 2
    *_, wide, sampled = companions(tiny_trial(method=Lora(rank=2, alpha=None), members=3))
    assert wide.method == Lora(rank=6, alpha=None) and sampled.draws == TFB(3)
    masks = (Masksembles(),)  # draws of which there are no samples
    assert len(companions(tiny_trial(method=Lora(rank=2), members=3, regularizers=masks))) == 3
    assert len(companions(tiny_trial(method=Vera(), members=3))) == 2


def test_cycles_are_equally_long():
    spec = AdamW(lr=1.0, warmup_frac=0.1, schedule="cyclic", cycles=3)
    assert spec.snapshot_steps(100) == [40, 70]
    assert [learning_rate(spec, s, 100) for s in (10, 40, 70)] == [1.0, 1.0, 1.0]
    assert learning_rate(spec, 39, 100) == pytest.approx((1 + math.cos(math.pi * 29 / 30)) / 2)
