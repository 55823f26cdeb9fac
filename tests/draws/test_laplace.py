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
from laplace_definition import (
    WHOLE,
    Dense,
    assert_is_the_definition,
    drawn,
    outer,
    trained_on,
)
from stacks import prepared

from lorae.backbone.loading import read_backbone
from lorae.draws import Laplace, read_draws
from lorae.draws.laplace.linearised import Linearised, Products, prior_precision
from lorae.engine.adapters import Adapters
from lorae.engine.prediction import predict
from lorae.methods import Lora
from lorae.regularizers import AdapterDropout
from lorae.tasks.base import LabelWords, OptionLikelihood
from lorae.tasks.encoding import Row
from lorae.trial import Budget


@pytest.fixture
def trained(tiny_trial):
    """A backbone with data, a trial of two members, and their trained states."""
    budget = Budget(batch_size=4, epochs=3)
    trial = tiny_trial(method=Lora(rank=4, alpha=8), regularizers=(AdapterDropout(0.1),), budget=budget)
    return trained_on(trial, *prepared(trial))


@pytest.mark.slow
def test_logits_are_those_of_the_definition(trained):
    assert_is_the_definition(trained, trained.data.validation[:5])


@pytest.mark.slow
def test_logits_of_options_are_those_of_the_definition(tiny_trial):
    budget = Budget(batch_size=4, steps=12)
    trial = tiny_trial(method=Lora(rank=2), budget=budget)
    trial = replace(trial, task=replace(trial.task, scoring=OptionLikelihood()))
    trained = trained_on(trial, *prepared(trial))
    assert_is_the_definition(trained, trained.data.validation[:4])


@pytest.mark.slow
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


@pytest.mark.slow
def test_layers_may_be_computed_again(trained):
    """For the gradients of every class."""
    rows, again = trained.data.validation[:5], SimpleNamespace(**vars(trained))
    again.backbone = read_backbone(trained.trial.backbone, "fp32", "cpu", recompute=True)
    found, expected = (drawn(of, [0, 1], rows)[1] for of in (again, trained))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_member_that_is_not_finite_spoils_no_other(trained):
    broken = {name: torch.full_like(value, math.nan) for name, value in trained.states[0].items()}
    rows = trained.data.validation
    spoiled = SimpleNamespace(**vars(trained) | {"states": [broken, trained.states[1]]})
    _, both = drawn(spoiled, [0, 1], rows, Laplace(2, 2))
    _, alone = drawn(trained, [1], rows, Laplace(2, 2))
    assert np.isnan(both[0]).all() and np.allclose(both[1], alone[0], atol=1e-4)


@pytest.mark.slow
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


@pytest.mark.slow
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
