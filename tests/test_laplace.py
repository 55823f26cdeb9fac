"""Laplace: its logits have the mean and covariance of the definition, written out densely and one example at
a time, for every kind of backbone; they depend on the member alone; what is kept of a factor are its largest
eigenvalues; the prior is the most probable one."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from stacks import prepared

from lorae import seeds
from lorae.backbone.loading import read_backbone
from lorae.draws import Laplace, read_draws
from lorae.draws.laplace.linearised import Linearised, Products, prior_precision
from lorae.engine.adapters import HEAD, Adapters
from lorae.engine.batches import class_logits, collate, features
from lorae.engine.prediction import predict
from lorae.engine.training import train_stack
from lorae.methods import Lora
from lorae.regularizers import AdapterDropout
from lorae.tasks.base import LabelWords, OptionLikelihood
from lorae.tasks.encoding import Row
from lorae.trial import Budget

WHOLE = Laplace(4, rank=64)  # no factor of the tiny models is wider


@pytest.fixture
def trained(tiny_trial):
    """A backbone with data, a trial of two members, and their trained states."""
    budget = Budget(batch_size=4, epochs=3)
    trial = tiny_trial(method=Lora(rank=4, alpha=8), regularizers=(AdapterDropout(0.1),), budget=budget)
    return trained_on(trial, *prepared(trial))


def trained_on(trial, backbone, data):
    states = [run.state for run in train_stack(backbone, trial, [0, 1], data)]
    return SimpleNamespace(trial=trial, backbone=backbone, data=data, states=states)


def drawn(trained, members, rows, spec=WHOLE, rows_at_once=8):
    """The sampler that was fitted to some members, and their logits (M, K, N, C)."""
    keys = [trained.trial.member_key(m)["init"] for m in members]
    states = [trained.states[m] for m in members]
    with Adapters(trained.backbone, trained.trial.method, keys, None, rows[0].answer_ids) as adapters:
        adapters.load(states)
        ids = [trained.trial.member_id(m) for m in members]
        sampler = Linearised(adapters, states, ids, spec, rows_at_once)
        sampler.fit(trained.data.train)
        return sampler, sampler.predict(rows)


class Dense:
    """The approximation around one member with all its matrices, from one example at a time."""

    def __init__(self, trained, member):
        self.backbone, self.state, self.method = (
            trained.backbone,
            trained.states[member],
            trained.trial.method,
        )
        self.layers = [name.removesuffix(".A") for name in self.state if name.endswith(".A")]
        self.names = [f"{layer}.{factor}" for layer in self.layers for factor in "AB"]
        self.factors = {name: self.state[name].clone().requires_grad_() for name in self.names}
        self.reads, self.gives = {}, {}
        reads, sent = dict.fromkeys(self.names, 0.0), dict.fromkeys(self.names, 0.0)
        for row in trained.data.train:
            logits = self.logits(row)
            p = logits.detach().double().softmax(0)
            for name in self.names:
                reads[name] += outer(self.reads[name])
            for c in range(len(p)):
                loss = -logits.log_softmax(0)[c]
                grads = torch.autograd.grad(loss, [self.gives[n] for n in self.names], retain_graph=True)
                for name, grad in zip(self.names, grads):
                    sent[name] += p[c] * outer(grad)
        self.H = {name: torch.kron(sent[name], reads[name]) / len(trained.data.train) for name in self.names}
        eigenvalues = torch.cat([torch.linalg.eigvalsh(H) for H in self.H.values()]).clamp(min=0).numpy()
        norm = sum(factor.detach().double().square().sum().item() for factor in self.factors.values())

        def evidence(log_prior):
            prior = math.exp(log_prior)
            return -0.5 * (prior * norm - len(eigenvalues) * log_prior + np.log(eigenvalues + prior).sum())

        found = minimize_scalar(
            lambda x: -evidence(x), bounds=(-8, 15), method="bounded", options={"xatol": 1e-9}
        )
        self.prior = math.exp(found.x)

    def logits(self, row):
        """Of one example, by LoRA written out on the backbone's own layers."""
        hooks = [
            self.backbone.lm.get_submodule(layer).register_forward_hook(self.hook(layer))
            for layer in self.layers
        ]
        batch = collate([row], row.num_classes, self.backbone)
        if self.backbone.is_encoder:
            weight, bias = (self.state[name] for name in HEAD)
            logits = features(self.backbone, batch) @ weight.T + bias
        else:
            logits = class_logits(self.backbone, batch)
        for hook in hooks:
            hook.remove()
        return logits[0]

    def hook(self, layer):
        def add(module, inputs, y):
            a, b = f"{layer}.A", f"{layer}.B"
            self.reads[a] = inputs[0].detach().flatten(0, -2)
            self.gives[a] = inputs[0] @ self.factors[a].T
            self.reads[b] = self.gives[a].detach().flatten(0, -2)
            self.gives[b] = self.gives[a] @ self.factors[b].T
            return y + self.method.scale * self.gives[b]

        return add

    def gaussian(self, row):
        """Mean and covariance of an example's logits."""
        logits = self.logits(row)
        by_class = [torch.autograd.grad(f, [*self.factors.values()], retain_graph=True) for f in logits]
        covariance = torch.zeros(len(logits), len(logits), dtype=torch.float64)
        for name, *jacobian in zip(self.names, *by_class):
            J = torch.stack([j.double().flatten() for j in jacobian])
            covariance += J @ torch.linalg.solve(self.H[name] + self.prior * torch.eye(J.shape[1]), J.T)
        return logits.detach().numpy(), covariance.numpy()

    def drawn(self, row, member_id, num_draws):
        mean, covariance = self.gaussian(row)
        values, vectors = np.linalg.eigh(covariance)
        noise = seeds.stream(member_id, "laplace", row.id).normal(size=(num_draws, len(mean)))
        return mean + noise @ (vectors * np.sqrt(values)) @ vectors.T


def outer(x):
    x = x.detach().flatten(0, -2).double()
    return x.T @ x


def assert_is_the_definition(trained, rows):
    """Fits, and the draws of these rows."""
    sampler, logits_MKNC = drawn(trained, [0, 1], rows)
    for m, fit in enumerate(sampler.fits):
        dense = Dense(trained, m)
        assert fit.record["prior_precision"] == pytest.approx(dense.prior, rel=1e-3)
        for n, row in enumerate(rows):
            expected = dense.drawn(row, trained.trial.member_id(m), WHOLE.samples)
            assert np.abs(expected - dense.gaussian(row)[0]).max() > 1e-2, "it is noise that is compared"
            np.testing.assert_allclose(
                logits_MKNC[m, :, n, : row.num_classes], expected, rtol=1e-3, atol=1e-3
            )


@pytest.mark.slow
def test_logits_are_those_of_the_definition(trained):
    assert_is_the_definition(trained, trained.data.validation[:5])


def test_logits_of_options_are_those_of_the_definition(tiny_trial):
    budget = Budget(batch_size=4, steps=12)
    trial = tiny_trial(method=Lora(rank=2), budget=budget)
    trial = replace(trial, task=replace(trial.task, scoring=OptionLikelihood()))
    trained = trained_on(trial, *prepared(trial))
    assert_is_the_definition(trained, trained.data.validation[:4])


def test_draws_depend_on_neither_the_other_members_nor_the_other_examples(trained):
    rows = trained.data.validation
    (fitted, together), (alone_fitted, alone) = (
        drawn(trained, [0, 1], rows, Laplace(3, 2), 8),
        drawn(trained, [1], rows[::-1][:5], Laplace(3, 2), 3),
    )
    fits = fitted.fits[1].record, alone_fitted.fits[0].record
    assert fits[0]["prior_precision"] == pytest.approx(fits[1]["prior_precision"], rel=1e-4)
    np.testing.assert_allclose(alone[0], together[1][:, ::-1][:, :5], atol=1e-4)
    distinct = [together[0, 0], together[0, 1], together[0, 2], together[1, 0]]
    assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(distinct) for b in distinct[:i])


def test_layers_may_be_computed_again(trained):
    """For the gradients of every class."""
    rows, again = trained.data.validation[:5], SimpleNamespace(**vars(trained))
    again.backbone = read_backbone(trained.trial.backbone, "fp32", "cpu", recompute=True)
    found, expected = (drawn(of, [0, 1], rows)[1] for of in (again, trained))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_members_are_as_before(trained):
    rows = trained.data.validation
    keys = [trained.trial.member_key(m)["init"] for m in (0, 1)]
    with Adapters(trained.backbone, trained.trial.method, keys) as adapters:
        adapters.load(trained.states)
        before = predict(trained.backbone, rows)
        sampler = Linearised(adapters, trained.states, ["a", "b"], WHOLE)
        sampler.fit(trained.data.train)
        sampler.predict(rows)
        np.testing.assert_array_equal(before, predict(trained.backbone, rows))
    assert sampler.search_seconds > 0 and not adapters.gradients()


def test_a_member_that_is_not_finite_spoils_no_other(trained):
    broken = {name: torch.full_like(value, math.nan) for name, value in trained.states[0].items()}
    rows = trained.data.validation
    spoiled = SimpleNamespace(**vars(trained) | {"states": [broken, trained.states[1]]})
    _, both = drawn(spoiled, [0, 1], rows, Laplace(2, 2))
    _, alone = drawn(trained, [1], rows, Laplace(2, 2))
    assert np.isnan(both[0]).all() and np.allclose(both[1], alone[0], atol=1e-4)


def test_more_draws_begin_with_the_fewer(trained):
    few, more = (drawn(trained, [0], trained.data.validation, Laplace(n, 3))[1] for n in (2, 5))
    np.testing.assert_allclose(more[:, :2], few, atol=1e-6)


def test_the_largest_eigenvalues_of_a_factor_are_kept():
    """Of one whose spectrum falls as that of a layer's inputs; the parts that are summed do not matter."""
    rng, spec = np.random.default_rng(0), Laplace(1, rank=5)
    scales = np.array([10.0 * 0.5**n for n in range(60)])
    tokens = torch.from_numpy(rng.normal(size=(2, 40, 7, 60)) * scales)
    found = []
    for parts in (tokens.split(40, 1), tokens.split(9, 1)):
        products = Products(2, 60, spec, "layer.A", torch.device("cpu"))
        for part in parts:
            products.add(part)
        found.append(products.largest(1))
    assert products.probe.shape == (60, 20)
    (values, vectors), (again, _) = found
    np.testing.assert_allclose(values, again, rtol=1e-9)
    exact, basis = np.linalg.eigh(outer(tokens[1]).numpy())
    np.testing.assert_allclose(values, exact[::-1][:5], rtol=1e-6)
    np.testing.assert_allclose((vectors.numpy() @ basis[:, ::-1][:, :5]) ** 2, np.eye(5), atol=1e-6)


@pytest.mark.parametrize("num_tokens", [5, 20])
def test_the_trace_exceeds_the_exact_one_about_as_many_times_as_a_row_has_tokens(trained, num_tokens):
    """Tokens are treated as examples of their own, as `Laplace` says."""
    rng, ids = np.random.default_rng(0), trained.data.train[0].answer_ids
    texts = rng.integers(5, 45, (8, num_tokens)).tolist()
    rows = [Row(f"r{n}", 0, 3, tuple(text), ids, scoring=LabelWords()) for n, text in enumerate(texts)]
    dense = Dense(SimpleNamespace(**vars(trained) | {"data": replace(trained.data, train=rows)}), 0)
    exact = 0.0
    for row in rows:
        logits = dense.logits(row)
        for p, logp in zip(logits.detach().softmax(0), logits.log_softmax(0)):
            grads = torch.autograd.grad(-logp, [*dense.factors.values()], retain_graph=True)
            exact += p.item() * sum(grad.double().square().sum().item() for grad in grads)
    ratio = sum(H.trace().item() for H in dense.H.values()) / exact
    assert 0.6 * num_tokens < ratio < 1.2 * num_tokens


def test_a_factor_of_no_tokens_has_no_eigenvalues():
    products = Products(1, 60, Laplace(1, rank=5), "layer.A", torch.device("cpu"))
    values, vectors = products.largest(0)
    assert not values.any() and not vectors.any() and vectors.shape == (5, 60)


@pytest.mark.parametrize("norm", [1e-3, 1.0, 50.0])
def test_the_prior_has_the_largest_evidence(norm):
    curvature = np.random.default_rng(0).exponential(3.0, 200) ** 3

    def loss(log_prior):
        prior = math.exp(log_prior)
        return prior * norm - len(curvature) * log_prior + np.log(curvature + prior).sum()

    best = math.log(prior_precision(curvature, norm))
    assert all(loss(best) < loss(best + step) for step in (-0.1, -1e-3, 1e-3, 0.1))
    assert math.isnan(prior_precision(np.array([1.0, math.nan]), norm))


def test_the_prior_of_no_curvature_is_the_widest():
    assert 0 < prior_precision(np.zeros(5), 1.0) <= 1e-8


@pytest.mark.parametrize("draws", [Laplace(), Laplace(7, 3)])
def test_a_label_names_its_draws(draws):
    assert read_draws(draws.label) == draws


@pytest.mark.parametrize("label", ["laplace-4", "laplace-4x0", "laplace-0x4", "laplace-4x0.5", "laplace"])
def test_other_labels_name_none(label):
    assert read_draws(label) is None


@pytest.mark.parametrize("setting", ["samples", "rank"])
def test_numbers_below_one_are_refused(setting):
    with pytest.raises(ValueError, match=f"{setting}=0: must be >= 1"):
        Laplace(**{setting: 0})
