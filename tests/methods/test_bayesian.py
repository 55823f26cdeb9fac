"""BLoB and rank-1 BNNs: a stacked member is the one trained alone and the one of a plain loop by the paper's
algorithm; its samples are those of its Gaussians, in the store as in memory."""

from __future__ import annotations

import itertools
import math
from collections import Counter
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
from lorae.draws import TFB, MCDropout, Posterior
from lorae.engine.adapters import Adapters
from lorae.engine.order import DataOrder
from lorae.engine.predict_task import predict_task
from lorae.engine.prediction import predict, predict_draws
from lorae.engine.run import run_stack
from lorae.engine.training import learning_rate, train_stack
from lorae.methods import Blob, Lora, Rank1BNN, Vera, drawn_state
from lorae.methods.gaussian_weights import WeightNoise
from lorae.noise import make_noise
from lorae.planning.stack import Stack
from lorae.regularizers import KL, AdapterDropout, ClassWeights, DecayB, EarlyStopping, Masksembles
from lorae.results import trials_table
from lorae.store.names import POSTERIOR, member_folder
from lorae.store.peft_format import read_stages
from lorae.store.store import Store
from lorae.trial import AdamW, Budget, Trial

BLOB = Blob(rank=4, alpha=8, std_root=0.3, gamma=1000)  # cycles of 25 steps, of which the last ones count
RANK1 = Rank1BNN(noise_std=0.2)
BOTH = pytest.mark.parametrize("method", [BLOB, RANK1], ids=lambda method: method.label)


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
    noise, std = WeightNoise([(0, m, "posterior") for m in range(2)], flipout=True), torch.rand(2, 3, 6) + 0.1
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


def test_weights_of_blobs_kl_divergence_double_and_sum_to_one():
    spec, num_train, batch = Blob(), 640, 8
    cycle = int(100 * num_train ** (math.pi / 8) / batch)
    weights = [spec.kl_weight(step, num_train, batch) for step in range(2 * cycle)]
    assert weights[:cycle] == weights[cycle:] and sum(weights[:cycle]) == pytest.approx(1)
    assert all(b == pytest.approx(2 * a) for a, b in itertools.pairwise(weights[:cycle]))
    assert weights[cycle - 1] == pytest.approx(0.5)
    assert [Blob(gamma=1e9).kl_weight(step, 10, 100) for step in (0, 1)] == pytest.approx([2 / 3] * 2)


def test_the_kl_divergence_of_a_rank_1_bnn_is_annealed():
    weights = [Rank1BNN(annealed_frac=0.5).kl_weight(step, 8, 10) for step in range(8)]
    assert weights == pytest.approx([0.025, 0.05, 0.075, *[0.1] * 5])
    assert Rank1BNN(annealed_frac=0).kl_weight(0, 8, 10) == 0.1


@pytest.mark.slow
@BOTH
def test_member_of_a_stack_equals_the_member_trained_alone(tiny_trial, method):
    decay = (DecayB(0.1),) if method == BLOB else ()
    trial = tiny_trial(
        method=method,
        optimizer=AdamW(lr=5e-3, max_grad_norm=0.5),
        budget=Budget(batch_size=4, steps=30),
        regularizers=(KL(0.05), ClassWeights(0.9), EarlyStopping(patience=1, every=6), *decay),
    )
    backbone, data = prepared(trial)
    together = train_stack(backbone, trial, range(3), data, micro_batch=3)
    for m, run in enumerate(together):
        (alone,) = train_stack(backbone, trial, [m], data)
        assert run.error is None and run.best_step == alone.best_step
        assert largest_difference(run, alone) < 1e-5
    assert largest_difference(*together[:2]) > 1e-3


@BOTH
def test_a_restart_changes_nothing(tiny_trial, method):
    trial = tiny_trial(method=method, budget=Budget(batch_size=4, steps=8))
    backbone, data = prepared(trial)
    recorder = Recorder()
    runs = train_stack(backbone, trial, [0, 1], data, checkpoints=recorder)
    again = train_stack(backbone, trial, [0, 1], data, checkpoints=Recorder(recorder.all[5]))
    assert all(largest_difference(a, b) == 0 for a, b in zip(runs, again))


class Plain:
    """A member as its paper's algorithm trains it, on the model itself, one example at a time."""

    def __init__(self, trial: Trial, member: int) -> None:
        backbone, self.data = prepared(trial)
        self.trial, self.key = trial, trial.member_key(member)
        self.layers = list(shapes := trial.method.adapted_layers(backbone.linears, "tiny"))
        self.before = drawn_state(trial.method, shapes, self.key["init"])
        self.states = {n: torch.nn.Parameter(v.clone()) for n, v in self.before.items()}
        self.lm = AutoModelForCausalLM.from_pretrained(trial.backbone.path).requires_grad_(False)
        self.step = self.row = 0
        for number, layer in enumerate(self.layers):
            self.lm.get_submodule(layer).register_forward_hook(self._hook(layer, number))

    def _hook(self, layer, number):
        factors = [self.states[f"{layer}.{factor}"] for factor in self.trial.method.factors]
        return lambda module, inputs, y: self.output(module.weight, inputs[0], number, *factors)

    def normals(self, *shape, name):
        key = torch.tensor(seeds.key32(*self.key["posterior"], self.step), dtype=torch.int32)
        return seeds.normals(key ^ seeds.key32(*name), *shape)

    def train(self, term=lambda step: 0.0, after=lambda step, rate: None):
        """Minimise the mean NLL of a batch and a term, by AdamW."""
        trial, train = self.trial, self.data.train
        optimizer = torch.optim.AdamW(self.states.values(), weight_decay=0.0)
        lengths, num_steps = np.array([len(r.tokens) for r in train]), trial.budget.num_steps(len(train))
        order = DataOrder(self.key["order"], trial.seed, lengths, trial.budget.batch_size)
        for self.step in range(num_steps):
            losses = []
            for row, n in enumerate(order.batch(self.step)):
                self.row = row
                logits = self.lm(torch.tensor([train[n].tokens])).logits[0, -1, list(train[n].answer_ids)]
                losses.append(F.cross_entropy(logits, torch.tensor(train[n].label)))
            optimizer.zero_grad()
            (torch.stack(losses).mean() + term(self.step)).backward()
            torch.nn.utils.clip_grad_norm_(self.states.values(), 1.0)
            rate = learning_rate(trial.optimizer, self.step, num_steps)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            after(self.step, rate / trial.optimizer.lr)

    def against_ours(self, member: int) -> tuple[float, float]:
        """Largest difference from the member of a stack; the least that a tensor of that one has moved."""
        runs = train_stack(prepared(self.trial)[0], self.trial, range(member + 1), self.data)
        ours = runs[member].state
        differences = [(value - self.states[name]).abs().max().item() for name, value in ours.items()]
        moved = [(value - self.before[name]).abs().max().item() for name, value in ours.items()]
        return max(differences), min(moved)


class PlainBlob(Plain):
    def output(self, weight, x, number, A, B, G):
        noise = self.normals(*A.shape, name=("layer", number))
        flips = torch.outer(self.signs(len(A), number, "out"), self.signs(A.shape[1], number, "in"))
        return x @ weight.T + 2.0 * x @ (A + G * G * noise * flips).T @ B.T

    def signs(self, width, number, side):
        row = torch.tensor([seeds.key32(*self.key["posterior"], self.step, self.row)], dtype=torch.int32)
        own = row ^ seeds.key32("layer", number, side)
        return seeds.keep_mask(own, torch.zeros_like(own), width, 0.5)[0] * 2.0 - 1


class PlainRank1(Plain):
    def output(self, weight, x, number, r, s, r_rho, s_rho):
        r, s = (
            mean + F.softplus(rho) * self.normals(1, len(mean), name=("layer", number, side))[0]
            for side, (mean, rho) in enumerate([(r, r_rho), (s, s_rho)])
        )
        return ((x * r) @ weight.T) * s


@pytest.mark.slow
def test_blob_equals_a_plain_loop_by_the_papers_algorithm(tiny_trial):
    """AdamW on the NLL, then SGD on autograd's gradient of the KL divergence between torch's normals."""
    plain = PlainBlob(
        tiny_trial(method=BLOB, optimizer=AdamW(lr=5e-3), budget=Budget(batch_size=4, steps=27)), 1
    )
    states = plain.states
    descent = torch.optim.SGD([v for n, v in states.items() if not n.endswith(".B")])

    def descend(step, schedule):
        i = step % 25 + 1
        descent.param_groups[0]["lr"] = 0.01 * schedule * 2**i / (2**26 - 1)
        descent.zero_grad()
        posteriors = (Normal(states[f"{x}.A"], states[f"{x}.G"] ** 2) for x in plain.layers)
        torch.stack([kl_divergence(q, Normal(0.0, 0.2)).sum() for q in posteriors]).sum().backward()
        descent.step()

    plain.train(after=descend)
    difference, moved = plain.against_ours(1)
    assert difference < 2e-5 and moved > 1e-2


@pytest.mark.slow
def test_rank_1_bnn_equals_a_plain_loop_on_the_elbo(tiny_trial):
    plain = PlainRank1(
        tiny_trial(method=RANK1, optimizer=AdamW(lr=5e-3), budget=Budget(batch_size=4, steps=20)), 1
    )

    def elbo_term(step):
        pairs = [(f"{x}.{factor}", f"{x}.{factor}_rho") for x in plain.layers for factor in "rs"]
        posteriors = (Normal(plain.states[m], F.softplus(plain.states[rho])) for m, rho in pairs)
        divergence = torch.stack([kl_divergence(q, Normal(1.0, 0.1)).sum() for q in posteriors]).sum()
        return min(1.0, (step + 1) / 16) * divergence / len(plain.data.train)

    plain.train(term=elbo_term)
    difference, moved = plain.against_ours(1)
    assert difference < 2e-5 and moved > 1e-2


def trained(trial: Trial):
    """The backbone, the data and the states of two members."""
    backbone, data = prepared(trial)
    return backbone, data, [run.state for run in train_stack(backbone, trial, [0, 1], data)]


@pytest.mark.slow
@BOTH
def test_a_draw_is_the_model_with_a_sample_merged_into_its_weights(tiny_trial, method):
    trial = tiny_trial(method=method, members=2, draws=Posterior(3), budget=Budget(batch_size=4, steps=20))
    backbone, data, states = trained(trial)

    def drawn(members, rows):
        streams = [trial.member_key(m) for m in members]
        noise = make_noise(trial.method, trial.regularizers, streams)
        with Adapters(backbone, trial.method, [s["init"] for s in streams], noise) as adapters:
            adapters.load([states[m] for m in members])
            return predict_draws(backbone, rows, trial.draws), predict(backbone, rows)

    def merged(weight, number, own, key):
        """A layer's weight in one draw; without a key in the mean."""

        def normals(*shape, name):
            return seeds.normals(key ^ seeds.key32(*name), *shape) if key is not None else torch.zeros(shape)

        if method == BLOB:
            A, B, G = (own[factor] for factor in "ABG")
            return weight + 2 * B @ (A + G**2 * normals(*A.shape, name=("layer", number)))
        r, s = (
            own[f] + F.softplus(own[f"{f}_rho"]) * normals(1, len(own[f]), name=("layer", number, side))[0]
            for side, f in enumerate("rs")
        )
        return weight * torch.outer(s, r)

    logits_MKNC, mean_MNC = drawn([0, 1], data.validation)
    layers = method.adapted_layers(backbone.linears, "tiny")
    for m, k in [(0, 0), (1, 0), (1, 2), (1, None)]:
        lm = AutoModelForCausalLM.from_pretrained(trial.backbone.path)
        key = torch.tensor(seeds.key32(0, m, "posterior", "draw", k or 0), dtype=torch.int32)
        with torch.no_grad():
            for n, layer in enumerate(layers):
                own = {factor: states[m][f"{layer}.{factor}"] for factor in method.factors}
                weight = lm.get_submodule(layer).weight
                weight.copy_(merged(weight, n, own, None if k is None else key))
            logits = (lm(torch.tensor([r.tokens])).logits[0, -1] for r in data.validation)
            expected = [values[list(r.answer_ids)] for values, r in zip(logits, data.validation)]
        found = mean_MNC[m] if k is None else logits_MKNC[m, k]
        np.testing.assert_allclose(found, torch.stack(expected).numpy(), atol=1e-4)
    for a, b in itertools.combinations([*logits_MKNC[0], logits_MKNC[1, 0], mean_MNC[0]], 2):
        assert np.abs(a - b).max() > 1e-3
    alone, _ = drawn([1], data.validation[::-1][:5])
    assert np.allclose(alone[0], logits_MKNC[1][:, ::-1][:, :5], atol=1e-5)


@pytest.mark.slow
@BOTH
def test_stored_members_draw_again_later(tiny_trial, data_root, tmp_path, method):
    trial = tiny_trial(method=method, members=2, budget=Budget(batch_size=4, steps=6))
    drawn, greys = replace(trial, draws=Posterior(2)), Greys().located(data_root)
    assert drawn.member_ids() == trial.member_ids()
    store, once = Store(str(tmp_path / "store")), Store(str(tmp_path / "once"))
    assert not run_stack(Stack(trial, (0, 1), draws=(None, Posterior(2))), store.storage.uri).failed
    states = read_stages(store, trial.member_ids())[-1]
    assert Counter(name.rsplit(".", 1)[1] for name in states[0]) == dict.fromkeys(method.factors, 6)

    rows = [(t, ()) for t in (trial, drawn)]
    store.write_table("toy", trials_table(store, "toy", rows, {"command": "pytest", "commit": "none"}))
    mean, samples = trials_table(store, "toy", rows, {}).to_pylist()
    assert (mean["draws"], samples["draws"]) == ("none", "posterior-2")
    assert (mean["forwards_per_prediction"], samples["forwards_per_prediction"]) == (2, 4)
    assert mean["trainable_parameters"] == sum(v.numel() for state in states for v in state.values())
    assert [f for f in audit(store.storage.uri) if f.status == "failed"] == []

    assert predict_task(store, trial.member_ids(), greys, draws=Posterior(2)) == 2
    run_stack(Stack(drawn, (0, 1), (greys,)), once.storage.uri)
    folders, name = [member_folder(m) for m in trial.member_ids()], drawn.eval_set(greys, "test")
    found, expected = (s.predictions(folders, name).logits_MNC for s in (store, once))
    assert len(found) == 4
    np.testing.assert_array_equal(found, expected)


def test_blob_is_a_peft_adapter_by_its_mean(tiny_trial, tmp_path):
    trial = tiny_trial(method=BLOB, budget=Budget(batch_size=4, steps=6))
    store, folder = Store(str(tmp_path / "store")), member_folder(trial.member_id(0))
    run_stack(Stack(trial, (0,)), store.storage.uri)
    assert POSTERIOR in store.files(folder)
    out = export_member(store.storage.uri, trial.member_id(0), str(tmp_path / "out"))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(trial.backbone.path), str(out))
    plain = store.predictions([folder], trial.eval_set(trial.task, "validation")).logits_MNC[0]
    for row, logits in zip(prepared(trial)[1].validation, plain):
        with torch.no_grad():
            theirs = model(torch.tensor([row.tokens])).logits[0, -1, list(row.answer_ids)]
        np.testing.assert_allclose(logits, theirs.numpy(), atol=1e-4)


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
        ({"draws": Posterior()}, r"no distribution of its weights is learned; write"),
        ({"draws": Posterior(), "method": Vera()}, "no distribution"),
        ({"method": Rank1BNN(), "regularizers": (AdapterDropout(),)}, "its weights have noise"),
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
        (lambda: Rank1BNN(noise_std=0), "noise_std=0"),
        (lambda: Rank1BNN(annealed_frac=2), r"annealed_frac=2: must be in \[0, 1\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
    trial = tiny_trial(method=Lora(), budget=Budget(steps=1))
    run_stack(Stack(trial, (0,)), str(tmp_path))
    with pytest.raises(ValueError, match="some members learned no distribution of weights"):
        predict_task(Store(str(tmp_path)), trial.member_ids(), trial.task, draws=Posterior(2))
