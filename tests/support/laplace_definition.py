"""Laplace's definition written out densely, and members to hold it against."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from lorae import seeds
from lorae.draws import Laplace
from lorae.draws.laplace.linearised import Linearised
from lorae.engine.adapters import HEAD, Adapters
from lorae.engine.batches import class_logits, collate, features
from lorae.engine.training import train_stack

WHOLE = Laplace(4, rank=64)  # no factor of the tiny models is wider


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
