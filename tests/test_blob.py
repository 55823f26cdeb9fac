"""BLoB: a stacked member is the one trained alone and the one of a plain loop by the paper's algorithm; its
samples are those of its Gaussian, in the store as in memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from scipy import stats
from stacks import Recorder, largest_difference, prepared
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F
from toys import Greys
from transformers import AutoModelForCausalLM

from analysis.audit import audit
from jobs.export import export_member
from lorae import seeds
from lorae.adapters import Adapters, initial_state
from lorae.draws import TFB, MCDropout, Posterior
from lorae.methods import Blob, Lora, Vera, adapted_layers
from lorae.noise import WeightNoise, make_noise
from lorae.order import DataOrder
from lorae.peft_format import read_stages
from lorae.predict_task import predict_task
from lorae.prediction import predict, predict_draws
from lorae.regularizers import KL, AdapterDropout, ClassWeights, DecayB, EarlyStopping, Masksembles
from lorae.results import trials_table
from lorae.run import run_stack
from lorae.stack import Stack
from lorae.store import POSTERIOR, Store, member_folder
from lorae.training import learning_rate, train_stack
from lorae.trial import AdamW, Budget, Trial

BLOB = Blob(rank=4, alpha=8, std_root=0.3, gamma=1000)  # cycles of 25 steps, of which the last ones count


def test_normals_are_normal_and_each_a_function_of_its_place():
    keys = torch.tensor([seeds.key32("a", n) for n in range(8)], dtype=torch.int32)
    drawn = seeds.normals(keys, 16, 1024)
    assert drawn.shape == (8, 16, 1024) and drawn.dtype == torch.float32
    assert stats.kstest(drawn.flatten().double().numpy(), "norm").pvalue > 0.01
    rows = drawn.flatten(0, 1).double().numpy()
    between = np.corrcoef(rows)[np.triu_indices(len(rows), 1)]
    assert np.abs(between).max() < 6 / math.sqrt(1024), "rows and keys are independent"
    for shift in (1, 2, 16):
        assert abs(np.corrcoef(rows[:, shift:].ravel(), rows[:, :-shift].ravel())[0, 1]) < 0.02
    assert torch.equal(seeds.normals(keys[3], 5, 100), drawn[3, :5, :100])


def test_every_row_of_a_step_has_a_sample_of_its_own():
    """Read off by unit vectors: the noise of all rows has the same sizes, and signs of rank one."""
    noise, std = WeightNoise([(0, m, "posterior") for m in range(2)]), torch.rand(2, 3, 6) + 0.1
    noise.train(7, [0, 1, 2])
    rows = torch.arange(6).repeat_interleave(6).view(2, 18)  # three rows of each member, six tokens each
    noise.locate(rows, torch.zeros_like(rows))
    x = torch.eye(6).repeat(3, 1).expand(2, 18, 6)
    found = noise.added(x, std, 5).view(2, 3, 6, 3).transpose(2, 3)  # (M, row, R, D)
    key = seeds.key32("layer", 5)
    for m in range(2):
        sample = seeds.normals(torch.tensor(seeds.key32(0, m, "posterior", 7), dtype=torch.int32) ^ key, 3, 6)
        for row in found[m]:
            assert torch.allclose(row.abs(), (sample * std[m]).abs(), atol=1e-6)
            assert torch.linalg.matrix_rank((row / (sample * std[m])).double().round()) == 1
    assert len({tuple(row.sign().flatten().tolist()) for row in found.flatten(0, 1)}) == 6
    noise.off()
    assert noise.added(x, std, 5) == 0


def test_weights_of_the_kl_divergence_double_and_sum_to_one():
    spec, num_train, batch = Blob(), 640, 8
    cycle = int(100 * num_train ** (math.pi / 8) / batch)
    weights = [spec.kl_weight(step, num_train, batch) for step in range(2 * cycle)]
    assert weights[:cycle] == weights[cycle:] and sum(weights[:cycle]) == pytest.approx(1)
    assert all(b == pytest.approx(2 * a) for a, b in itertools.pairwise(weights[:cycle]))
    assert weights[cycle - 1] == pytest.approx(0.5)
    assert [Blob(gamma=1e9).kl_weight(step, 10, 100) for step in (0, 1)] == pytest.approx([2 / 3] * 2)


def test_member_of_a_stack_equals_the_member_trained_alone(tiny_trial):
    trial = tiny_trial(
        method=BLOB,
        optimizer=AdamW(lr=5e-3, max_grad_norm=0.5),
        budget=Budget(batch_size=4, steps=30),
        regularizers=(KL(0.05), DecayB(0.1), ClassWeights(0.9), EarlyStopping(patience=1, every=6)),
    )
    backbone, data = prepared(trial)
    together = train_stack(backbone, trial, range(3), data, micro_batch=3)
    for m, run in enumerate(together):
        (alone,) = train_stack(backbone, trial, [m], data)
        assert run.error is None and run.best_step == alone.best_step
        assert largest_difference(run, alone) < 1e-5
    assert largest_difference(*together[:2]) > 1e-3


def test_a_restart_changes_nothing(tiny_trial):
    trial = tiny_trial(method=BLOB, budget=Budget(batch_size=4, steps=8))
    backbone, data = prepared(trial)
    recorder = Recorder()
    runs = train_stack(backbone, trial, [0, 1], data, checkpoints=recorder)
    again = train_stack(backbone, trial, [0, 1], data, checkpoints=Recorder(recorder.all[5]))
    assert all(largest_difference(a, b) == 0 for a, b in zip(runs, again))


def with_branches(lm, states, layers, scale: float, sampled: Callable):
    """Add to each adapted layer of a plain model its branch, whose A is `sampled(layer, number)`."""

    def hook(layer, number):
        return lambda module, inputs, y: (
            y + scale * inputs[0] @ sampled(layer, number).T @ states[f"{layer}.B"].T
        )

    return [lm.get_submodule(layer).register_forward_hook(hook(layer, n)) for n, layer in enumerate(layers)]


def test_member_equals_a_plain_loop_by_the_papers_algorithm(tiny_trial):
    """The model's own logits, one example at a time; AdamW on the NLL, then SGD on autograd's gradient of the
    KL divergence between torch's normal distributions."""
    trial = tiny_trial(method=BLOB, optimizer=AdamW(lr=5e-3), budget=Budget(batch_size=4, steps=27))
    backbone, data = prepared(trial)
    ours = train_stack(backbone, trial, [0, 1], data)[1].state
    lm = AutoModelForCausalLM.from_pretrained(trial.backbone.path).requires_grad_(False)
    key, layers = trial.member_key(1), adapted_layers(BLOB, backbone.linears, "tiny")
    states = {n: torch.nn.Parameter(v) for n, v in initial_state(BLOB, layers, key["init"]).items()}
    optimizer = torch.optim.AdamW(states.values(), weight_decay=0.0)
    descent = torch.optim.SGD([v for n, v in states.items() if not n.endswith(".B")])
    order = DataOrder(key["order"], trial.seed, np.array([len(r.tokens) for r in data.train]), 4)
    at = [0, 0]

    def signs(width, side, number):
        row = torch.tensor([seeds.key32(*key["posterior"], *at)], dtype=torch.int32)
        own = row ^ seeds.key32(seeds.key32("layer", number), side)
        return seeds.keep_mask(own, torch.zeros_like(own), width, 0.5)[0] * 2.0 - 1

    def sampled(layer, number):
        A, G = states[f"{layer}.A"], states[f"{layer}.G"]
        step_key = torch.tensor(seeds.key32(*key["posterior"], at[0]), dtype=torch.int32)
        noise = seeds.normals(step_key ^ seeds.key32("layer", number), *A.shape)
        flips = torch.outer(signs(len(A), 2, number), signs(A.shape[1], 1, number))
        return A + G * G * noise * flips

    with_branches(lm, states, layers, 2.0, sampled)
    for step in range(27):
        losses = []
        for b, n in enumerate(order.batch(step)):
            at[:], row = [step, b], data.train[n]
            logits = lm(torch.tensor([row.tokens])).logits[0, -1, list(row.answer_ids)]
            losses.append(F.cross_entropy(logits, torch.tensor(row.label)))
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(states.values(), 1.0)
        rate = learning_rate(trial.optimizer, step, 27)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        i = step % 25 + 1
        descent.param_groups[0]["lr"] = 0.01 * rate / 5e-3 * 2**i / (2**26 - 1)
        descent.zero_grad()
        prior = Normal(0.0, 0.2)
        divergence = [
            kl_divergence(Normal(states[f"{x}.A"], states[f"{x}.G"] ** 2), prior).sum() for x in layers
        ]
        torch.stack(divergence).sum().backward()
        descent.step()
    before = initial_state(BLOB, layers, key["init"])
    for name, value in ours.items():
        assert torch.allclose(value, states[name], atol=2e-5), name
        assert (value - before[name]).abs().max() > 1e-2, name


def trained(trial: Trial):
    """The backbone, the data and the states of two members."""
    backbone, data = prepared(trial)
    return backbone, data, [run.state for run in train_stack(backbone, trial, [0, 1], data)]


def test_a_draw_is_the_model_with_a_sample_merged_into_its_weights(tiny_trial):
    trial = tiny_trial(method=BLOB, members=2, draws=Posterior(3), budget=Budget(batch_size=4, steps=20))
    backbone, data, states = trained(trial)

    def drawn(members, rows):
        streams = [trial.member_key(m) for m in members]
        noise = make_noise(trial.method, trial.regularizers, streams)
        with Adapters(backbone, trial.method, [s["init"] for s in streams], noise) as adapters:
            adapters.load([states[m] for m in members])
            return predict_draws(backbone, rows, trial.draws), predict(backbone, rows)

    logits_MKNC, mean_MNC = drawn([0, 1], data.validation)
    layers = adapted_layers(BLOB, backbone.linears, "tiny")
    for m, k in [(0, 0), (1, 0), (1, 2), (1, None)]:
        lm = AutoModelForCausalLM.from_pretrained(trial.backbone.path)
        draw = torch.tensor(seeds.key32(0, m, "posterior", "draw", k or 0), dtype=torch.int32)
        with torch.no_grad():
            for n, layer in enumerate(layers):
                A, B, G = (states[m][f"{layer}.{factor}"] for factor in "ABG")
                noise = seeds.normals(draw ^ seeds.key32("layer", n), *A.shape)
                lm.get_submodule(layer).weight += 2 * B @ (A + (k is not None) * G**2 * noise)
            logits = (lm(torch.tensor([r.tokens])).logits[0, -1] for r in data.validation)
            expected = [values[list(r.answer_ids)] for values, r in zip(logits, data.validation)]
        found = mean_MNC[m] if k is None else logits_MKNC[m, k]
        np.testing.assert_allclose(found, torch.stack(expected).numpy(), atol=1e-4)
    for a, b in itertools.combinations([*logits_MKNC[0], logits_MKNC[1, 0], mean_MNC[0]], 2):
        assert np.abs(a - b).max() > 1e-3
    alone, _ = drawn([1], data.validation[::-1][:5])
    assert np.allclose(alone[0], logits_MKNC[1][:, ::-1][:, :5], atol=1e-5)


def test_stored_members_are_peft_adapters_by_their_mean_and_draw_again_later(tiny_trial, data_root, tmp_path):
    trial = tiny_trial(method=BLOB, members=2, budget=Budget(batch_size=4, steps=6))
    drawn, greys = replace(trial, draws=Posterior(2)), Greys().located(data_root)
    assert drawn.member_ids() == trial.member_ids()
    store, once = Store(str(tmp_path / "store")), Store(str(tmp_path / "once"))
    result = run_stack(Stack(trial, (0, 1), draws=(None, Posterior(2))), store.storage.uri)
    assert not result.failed
    states = read_stages(store, trial.member_ids())[-1]
    factors = [x.rsplit(".", 1)[1] for x in states[0]]
    assert factors.count("A") == factors.count("B") == factors.count("G") == 6
    folder = member_folder(trial.member_id(1))
    assert POSTERIOR in store.files(folder)

    rows = [(t, ()) for t in (trial, drawn)]
    store.write_table("toy", trials_table(store, "toy", rows, {"command": "pytest", "commit": "none"}))
    mean, samples = trials_table(store, "toy", rows, {}).to_pylist()
    assert (mean["draws"], samples["draws"]) == ("none", "posterior-2")
    assert (mean["forwards_per_prediction"], samples["forwards_per_prediction"]) == (2, 4)
    assert mean["trainable_parameters"] == sum(v.numel() for state in states for v in state.values())
    assert [f for f in audit(store.storage.uri) if f.status == "failed"] == []

    out = export_member(store.storage.uri, trial.member_id(1), str(tmp_path / "out"))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(trial.backbone.path), str(out))
    _, data = prepared(trial)
    plain = store.predictions([folder], trial.eval_set(trial.task, "validation")).logits_MNC[0]
    for row, logits in zip(data.validation, plain):
        with torch.no_grad():
            theirs = model(torch.tensor([row.tokens])).logits[0, -1, list(row.answer_ids)]
        np.testing.assert_allclose(logits, theirs.numpy(), atol=1e-4)

    assert predict_task(store, trial.member_ids(), greys, draws=Posterior(2)) == 2
    run_stack(Stack(drawn, (0, 1), (greys,)), once.storage.uri)
    folders, name = [member_folder(m) for m in trial.member_ids()], drawn.eval_set(greys, "test")
    found, expected = (s.predictions(folders, name).logits_MNC for s in (store, once))
    assert len(found) == 4
    np.testing.assert_array_equal(found, expected)


def test_tfb_samples_around_the_mean(tiny_trial, tmp_path):
    trial = tiny_trial(method=BLOB, budget=Budget(batch_size=4, steps=4))
    store = Store(str(tmp_path))
    result = run_stack(Stack(trial, (0,), draws=(Posterior(2), TFB(2))), store.storage.uri)
    assert len(result.trained) == 1
    folder = member_folder(trial.member_id(0))
    sets = [replace(trial, draws=d).eval_set(trial.task, "test") for d in (Posterior(2), TFB(2))]
    ours, around = (store.predictions([folder], name).logits_MNC for name in sets)
    assert np.abs(ours - around).max() > 1e-3


def test_bad_recipes_say_what_to_do(tiny_trial, tmp_path):
    for changes, message in [
        ({"draws": Posterior()}, r"no distribution of its weights is learned; write Blob\(\)"),
        ({"draws": Posterior(), "method": Vera()}, "no distribution"),
        ({"method": Blob(), "regularizers": (AdapterDropout(),)}, "its weights have noise"),
        ({"method": Blob(), "regularizers": (Masksembles(),)}, "its weights have noise"),
        ({"method": Blob(), "draws": MCDropout()}, "without AdapterDropout"),
        ({"method": Blob(), "draws": Posterior(), "members": 2, "combine": "weights"}, "predicts once"),
    ]:
        with pytest.raises(ValueError, match=message):
            tiny_trial(**changes)
    for make, message in [
        (lambda: Posterior(0), "samples=0"),
        (lambda: Blob(std_root=0), r"std_root=0: must be > 0; write Blob\(std_root=0.05\)"),
        (lambda: Blob(gamma=-1), "gamma=-1"),
        (lambda: Blob(kl_lr=0.1), r"must be < 2 prior_std\^2"),
        (lambda: Blob(rank=0), "rank=0"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
    trial = tiny_trial(method=Lora(), budget=Budget(steps=1))
    run_stack(Stack(trial, (0,)), str(tmp_path))
    with pytest.raises(ValueError, match="some members learned no distribution of weights"):
        predict_task(Store(str(tmp_path)), trial.member_ids(), trial.task, draws=Posterior(2))
