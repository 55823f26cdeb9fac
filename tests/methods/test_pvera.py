"""PVeRA: its training by PEFT with the same noise, exact stacks, samples, and files that PEFT loads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from peft.tuners.pvera.layer import PveraLayer
from stacks import Recorder, largest_difference, prepared
from torch.nn import functional as F
from toys import Greys
from transformers import AutoModelForCausalLM

from analysis.audit import audit
from jobs.export import export_member
from lorae import seeds
from lorae.draws import Posterior
from lorae.engine.adapters import Adapters
from lorae.engine.order import DataOrder
from lorae.engine.predict_task import predict_task
from lorae.engine.prediction import predict, predict_draws
from lorae.engine.run import run_stack
from lorae.engine.training import learning_rate, train_stack
from lorae.methods import PVera, Vera, drawn_state, frozen_tensors
from lorae.noise import make_noise
from lorae.planning.stack import Stack
from lorae.regularizers import KL, AdapterDropout, DecayB, EarlyStopping
from lorae.results import trials_table
from lorae.store.names import ADAPTER_CONFIG, WEIGHTS, member_folder
from lorae.store.peft_format import adapter_files, read_stages, read_update
from lorae.store.store import Store
from lorae.trial import AdamW, Budget

METHOD = PVera(rank=16)
NAMES = {"pvera_lambda_d.default": "d", "pvera_lambda_b.default": "b"}


@pytest.fixture
def noisy_peft(monkeypatch):
    """PEFT's layers with our noise: `row_keys` of the rows of the batch, and each token's index as its
    place."""

    def install(model, layers):
        numbers = {model.get_submodule(f"base_model.model.{name}"): n for n, name in enumerate(layers)}
        row_keys: list[int] = []

        def sampled(layer, mean, logvar, adapter):
            if not (layer.training or layer.sample_at_inference[adapter]):
                return mean
            keys = torch.tensor(row_keys, dtype=torch.int32)[:, None] ^ seeds.key32("layer", numbers[layer])
            places = torch.arange(mean.shape[1]).expand(mean.shape[:2])
            noise = seeds.normals_at(keys.expand(mean.shape[:2]), places, mean.shape[2])
            return mean + torch.exp(0.5 * logvar) * noise.to(mean.dtype)

        monkeypatch.setattr(PveraLayer, "_reparametrize", sampled)
        return row_keys

    return install


@pytest.mark.slow
@pytest.mark.parametrize("dtype,bound", [(torch.float64, 1e-6), (torch.float32, 1e-4)], ids=["fp64", "fp32"])
def test_member_equals_a_plain_peft_loop_with_the_same_noise(tiny_trial, noisy_peft, dtype, bound):
    trial = tiny_trial(method=METHOD, optimizer=AdamW(lr=3e-2), budget=Budget(batch_size=4, steps=12))
    backbone, data = prepared(trial, dtype=dtype)
    ours = train_stack(backbone, trial, [0, 1, 2], data, micro_batch=3)[2]
    layers, key = METHOD.adapted_layers(backbone.linears, "tiny"), trial.member_key(2)
    lm = AutoModelForCausalLM.from_pretrained(trial.backbone.path).to(dtype)
    config = peft.PveraConfig(r=16, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(lm, config).to(dtype).train()
    parameters = {
        f"{name.removeprefix('base_model.model.').removesuffix(f'.{theirs}')}.{factor}": p
        for name, p in model.named_parameters()
        for theirs, factor in NAMES.items()
        if name.endswith(theirs)
    }
    with torch.no_grad():
        for name, value in drawn_state(METHOD, layers, key["init"]).items():
            assert torch.equal(parameters[name].float(), value), "d and b begin as PEFT's"
            parameters[name].copy_(value)
        a, b = frozen_tensors(METHOD, layers, key["init"])
        model.base_model.pvera_A["default"].copy_(a)
        model.base_model.pvera_B["default"].copy_(b)
    row_keys = noisy_peft(model, layers)
    optimizer = torch.optim.AdamW(parameters.values(), weight_decay=trial.optimizer.weight_decay)
    order = DataOrder(key["order"], trial.seed, np.array([len(r.tokens) for r in data.train]), 4)
    for step in range(12):
        rows = [data.train[n] for n in order.batch(step)]
        row_keys[:] = [seeds.key32(*key["posterior"], step, b) for b in range(len(rows))]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(r.tokens) for r in rows], batch_first=True)
        mask = torch.tensor([[n < len(r.tokens) for n in range(ids.shape[1])] for r in rows])
        logits = model(input_ids=ids, attention_mask=mask.long()).logits
        answers = torch.stack([logits[n, len(r.tokens) - 1, list(r.answer_ids)] for n, r in enumerate(rows)])
        optimizer.zero_grad()
        F.cross_entropy(answers, torch.tensor([r.label for r in rows])).backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), trial.optimizer.max_grad_norm)
        optimizer.param_groups[0]["lr"] = learning_rate(trial.optimizer, step, 12)
        optimizer.step()
    assert max((value - parameters[name]).abs().max().item() for name, value in ours.state.items()) < bound
    assert all(value[16:].std() > 1e-3 for name, value in ours.state.items() if name.endswith(".d"))


@pytest.mark.slow
def test_member_of_a_stack_equals_the_member_trained_alone(tiny_trial):
    trial = tiny_trial(
        method=METHOD,
        optimizer=AdamW(lr=1e-1, max_grad_norm=0.5),
        budget=Budget(batch_size=4, steps=24),
        regularizers=(KL(0.05), DecayB(0.1), EarlyStopping(patience=1, every=6)),
    )
    backbone, data = prepared(trial)
    together = train_stack(backbone, trial, range(3), data, micro_batch=3)
    for m, run in enumerate(together):
        (alone,) = train_stack(backbone, trial, [m], data)
        assert run.error is None and run.best_step == alone.best_step
        assert largest_difference(run, alone) < 1e-5
    assert largest_difference(*together[:2]) > 1e-3


def test_a_restart_changes_nothing(tiny_trial):
    trial = tiny_trial(method=METHOD, budget=Budget(batch_size=4, steps=8))
    backbone, data = prepared(trial)
    recorder = Recorder()
    runs = train_stack(backbone, trial, [0, 1], data, checkpoints=recorder)
    again = train_stack(backbone, trial, [0, 1], data, checkpoints=Recorder(recorder.all[5]))
    assert all(largest_difference(a, b) == 0 for a, b in zip(runs, again))


@pytest.mark.slow
def test_stored_member_is_a_peft_adapter_that_predicts_its_mean_and_draws(tiny_trial, noisy_peft, tmp_path):
    trial = tiny_trial(method=METHOD, optimizer=AdamW(lr=1e-1))
    drawn = replace(trial, draws=Posterior(2))
    run_stack(Stack(trial, (0, 1), draws=(None, Posterior(2))), str(tmp_path / "store"))
    store = Store(str(tmp_path / "store"))
    folder = export_member(store.storage.uri, trial.member_id(1), str(tmp_path / "out"))
    lm = AutoModelForCausalLM.from_pretrained(trial.backbone.path)
    model = peft.PeftModel.from_pretrained(lm, str(folder)).eval()
    mean, samples = (
        store.predictions([member_folder(trial.member_id(1))], t.eval_set(t.task, "validation")).logits_MNC
        for t in (trial, drawn)
    )
    row_keys = noisy_peft(model, METHOD.adapted_layers(prepared(trial)[0].linears, "tiny"))
    layers = [layer for layer in model.modules() if isinstance(layer, PveraLayer)]

    def theirs(row) -> np.ndarray:
        with torch.no_grad():
            return model(torch.tensor([row.tokens])).logits[0, -1, list(row.answer_ids)].numpy()

    rows = prepared(trial)[1].validation
    np.testing.assert_allclose(mean[0], np.stack([theirs(row) for row in rows]), atol=1e-5)
    for layer in layers:
        layer.sample_at_inference["default"] = True
    for draw, logits in enumerate(samples):
        for row, expected in zip(rows, logits):
            row_keys[:] = [seeds.key32(*trial.member_key(1)["posterior"], "draw", draw, row.id)]
            np.testing.assert_allclose(expected, theirs(row), atol=1e-4)
    assert min(np.abs(a - b).max() for a, b in [(mean[0], samples[0]), (samples[0], samples[1])]) > 1e-2


def test_draws_of_a_member_depend_on_neither_stack_nor_batch(tiny_trial):
    trial = tiny_trial(method=METHOD, optimizer=AdamW(lr=1e-1), budget=Budget(batch_size=4, steps=10))
    backbone, data = prepared(trial)
    states = [run.state for run in train_stack(backbone, trial, [0, 1], data)]

    def drawn(members, rows):
        streams = [trial.member_key(m) for m in members]
        noise = make_noise(METHOD, (), streams)
        with Adapters(backbone, METHOD, [s["init"] for s in streams], noise) as adapters:
            adapters.load([states[m] for m in members])
            return predict_draws(backbone, rows, Posterior(2)), predict(backbone, rows)

    (together, _), (alone, _) = drawn([0, 1], data.validation), drawn([1], data.validation[::-1][:5])
    np.testing.assert_allclose(alone[0], together[1][:, ::-1][:, :5], atol=1e-5)


def test_its_mean_is_vera_with_the_first_half_of_d_and_a(tiny_trial):
    """Also as a stored update."""
    trial, vera = tiny_trial(method=METHOD), Vera(rank=16)
    backbone, data = prepared(trial)
    init = trial.member_key(0)["init"]
    layers = METHOD.adapted_layers(backbone.linears, "tiny")
    (a, b), (mean_a, mean_b) = (frozen_tensors(method, layers, init) for method in (METHOD, vera))
    assert a.shape == (32, 32) and torch.equal(a[:16], mean_a) and torch.equal(b, mean_b)
    (run,) = train_stack(backbone, replace(trial, optimizer=AdamW(lr=1e-1)), [0], data)
    halved = {name: v[:16] if name.endswith(".d") else v for name, v in run.state.items()}
    logits, updates = [], []
    for method, state, frozen in ((METHOD, run.state, (a, b)), (vera, halved, (mean_a, mean_b))):
        with Adapters(backbone, method, [init]) as adapters:
            adapters.load([state])
            logits.append(predict(backbone, data.validation))
        files = adapter_files(method, trial.backbone, state, frozen)
        update = read_update(files[ADAPTER_CONFIG], files[WEIGHTS])
        updates.append({layer: np.matmul(*update.factors(layer)) for layer in update.layers})
    np.testing.assert_allclose(*logits, atol=1e-5)
    assert np.abs(logits[0] - predict(backbone, data.validation)).max() > 0.1
    assert updates[0].keys() == updates[1].keys() == layers.keys()
    for layer in layers:
        np.testing.assert_allclose(updates[0][layer], updates[1][layer], rtol=1e-6)


@pytest.mark.slow
def test_stored_members_draw_again_later_and_pass_the_audit(tiny_trial, data_root, tmp_path):
    trial = tiny_trial(method=METHOD, members=2, budget=Budget(batch_size=4, steps=6))
    drawn, greys = replace(trial, draws=Posterior(2)), Greys().located(data_root)
    store, once = Store(str(tmp_path / "store")), Store(str(tmp_path / "once"))
    assert not run_stack(Stack(trial, (0, 1), draws=(None, Posterior(2))), store.storage.uri).failed
    rows = [(t, ()) for t in (trial, drawn)]
    store.write_table("toy", trials_table(store, "toy", rows, {"command": "pytest", "commit": "none"}))
    states = read_stages(store, trial.member_ids())[-1]
    (mean, samples) = trials_table(store, "toy", rows, {}).to_pylist()
    assert (mean["method"], samples["draws"], samples["forwards_per_prediction"]) == (
        "pvera",
        "posterior-2",
        4,
    )
    assert mean["trainable_parameters"] == sum(v.numel() for state in states for v in state.values())
    findings = audit(store.storage.uri)
    assert [f for f in findings if f.status == "failed"] == []
    assert predict_task(store, trial.member_ids(), greys, draws=Posterior(2)) == 2
    run_stack(Stack(drawn, (0, 1), (greys,)), once.storage.uri)
    folders, name = [member_folder(m) for m in trial.member_ids()], drawn.eval_set(greys, "test")
    np.testing.assert_array_equal(*(s.predictions(folders, name).logits_MNC for s in (store, once)))


def test_noise_beside_its_own_is_refused(tiny_trial):
    with pytest.raises(ValueError, match="its weights have noise; leave it out"):
        tiny_trial(method=METHOD, regularizers=(AdapterDropout(),))
