"""SWAG: its moments are those of a plain loop with PEFT that goes on from the member, its samples have them,
and both depend on the member alone."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from stacks import prepared
from toys import Greys
from transformers import AutoModelForCausalLM

from analysis.audit import audit
from lorae.draws import SWAG, Fit, read_draws
from lorae.draws.swag import Samples
from lorae.engine.adapters import Adapters
from lorae.engine.drawing import read_fit
from lorae.engine.order import DataOrder
from lorae.engine.predict_task import predict_task
from lorae.engine.prediction import predict
from lorae.engine.run import run_stack
from lorae.engine.training import train_stack
from lorae.methods import Lora
from lorae.noise import make_noise
from lorae.planning.stack import Stack
from lorae.regularizers import KL, AdapterDropout, DecayB, EarlyStopping, Masksembles
from lorae.results import trials_table
from lorae.store.names import member_folder
from lorae.store.store import Store
from lorae.trial import AdamW, Budget

SPEC = SWAG(3, rank=3, lr=5e-3, epochs=2, collected=5)
PARTS = "mean", "variance", "deviations"
NAMES = {"lora_A.default.weight": "A", "lora_B.default.weight": "B"}


@pytest.fixture
def trained(tiny_trial):
    """A backbone with data, a trial and the states of two members."""

    def make(**changes):
        settings = {"method": Lora(rank=4, alpha=8), "members": 2, "budget": Budget(batch_size=4, epochs=2)}
        trial = tiny_trial(**settings | changes)
        backbone, data = prepared(trial)
        states = [run.state for run in train_stack(backbone, trial, [0, 1], data)]
        return SimpleNamespace(trial=trial, backbone=backbone, data=data, states=states)

    return make


def fitted(trained, members, spec=SPEC, rows_at_once=8, on_rows=lambda rows: None):
    """The sampler that was fitted to some members, and their logits (M, K, N, C)."""
    trial, own = trained.trial, [trained.states[m] for m in members]
    streams = [trial.member_key(m) for m in members]
    noise = make_noise(trial.method, trial.regularizers, streams)
    with Adapters(trained.backbone, trial.method, [s["init"] for s in streams], noise) as adapters:
        adapters.load(own)
        ids = [trial.member_id(m) for m in members]
        sampler = Samples(adapters, own, ids, spec, rows_at_once, on_rows, trial, members)
        sampler.fit(trained.data.train)
        return sampler, sampler.predict(trained.data.validation)


@pytest.mark.slow
def test_moments_are_those_of_a_plain_peft_loop_that_goes_on(trained):
    """From the stored member, in the data order's third and fourth epoch, padded rows, a new AdamW at a
    constant learning rate with the recipe's decay and clipping; moments by numpy from all states at once."""
    of = trained(optimizer=AdamW(weight_decay=0.1, max_grad_norm=0.5), regularizers=(DecayB(3.0),))
    sampler, _ = fitted(of, [0, 1])
    trial, train, key = of.trial, of.data.train, of.trial.member_key(1)
    lm = AutoModelForCausalLM.from_pretrained(trial.backbone.path)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    model = get_peft_model(lm, config)
    parameters = {
        f"{name.removeprefix('base_model.model.').removesuffix(f'.{theirs}')}.{factor}": p
        for name, p in model.named_parameters()
        for theirs, factor in NAMES.items()
        if name.endswith(theirs)
    }
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(of.states[1][name])
    groups = [
        {"params": [p for n, p in parameters.items() if n.endswith(factor)], "weight_decay": decay}
        for factor, decay in ((".A", 0.1), (".B", 3.1))
    ]
    optimizer, states = torch.optim.AdamW(groups, lr=SPEC.lr), []
    order = DataOrder(key["order"], trial.seed, np.array([len(r.tokens) for r in train]), 4)
    for step in range(20, 40):
        rows = [train[n] for n in order.batch(step)]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(r.tokens) for r in rows], batch_first=True)
        mask = torch.tensor([[n < len(r.tokens) for n in range(ids.shape[1])] for r in rows]).long()
        logits = model(input_ids=ids, attention_mask=mask).logits
        answers = torch.stack([logits[n, len(r.tokens) - 1, list(r.answer_ids)] for n, r in enumerate(rows)])
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(answers, torch.tensor([r.label for r in rows])).backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 0.5)
        optimizer.step()
        if (step + 1) % 4 == 0:
            states.append({n: p.detach().double().numpy().copy() for n, p in parameters.items()})
    assert len(train) == 39 and sampler.fits[1].record["collected"] == len(states) == 5
    for name in parameters:
        theta = np.stack([state[name] for state in states])
        running = np.stack([theta[:k].mean(0) for k in (3, 4, 5)])
        expected = theta.mean(0), theta.var(0), theta[2:] - running
        mean, variance, deviations = (sampler.fits[1].tensors[f"{name}.{part}"].numpy() for part in PARTS)
        for found, value, bound in zip((mean, variance, deviations), expected, (1e-5, 1e-7, 1e-5)):
            np.testing.assert_allclose(found, value, atol=bound)
        assert variance.max() > 1e-5 and np.abs(mean - of.states[1][name].numpy()).max() > 1e-3


@pytest.mark.slow
def test_samples_have_the_gaussians_mean_and_covariance(trained):
    """Half the diagonal and half the low-rank covariance, the latter over all parameters together."""
    of, rng = trained(budget=Budget(batch_size=4, steps=1)), np.random.default_rng(0)
    shapes = {name: value.shape for name, value in of.states[0].items()}
    tensors = {}
    for name, shape in shapes.items():
        values = rng.normal(size=shape), rng.uniform(0.1, 1, shape), rng.normal(size=(3, *shape))
        tensors |= {f"{name}.{part}": torch.from_numpy(v).float() for part, v in zip(PARTS, values)}
    with Adapters(of.backbone, of.trial.method, [of.trial.member_key(0)["init"]]) as adapters:
        sampler = Samples(adapters, of.states[:1], [of.trial.member_id(0)], SPEC)
        sampler.fits = [Fit({}, tensors)]
        assert sampler.shapes() == {name: tuple(v.shape) for name, v in tensors.items()}
        names = [*shapes][:1] + [*shapes][-1:]
        drawn = [sampler._sampled(0, k) for k in range(1000)]

    def first_ten(state, part=""):
        of_each = [state[name + part].numpy() for name in names]
        return np.concatenate([v.reshape(*v.shape[: v.ndim - 2], -1)[..., :5] for v in of_each], -1)

    found = np.stack([first_ten(state) for state in drawn]).astype(float)
    D = first_ten(tensors, ".deviations").astype(float)
    covariance = np.diag(first_ten(tensors, ".variance")) / 2 + D.T @ D / (2 * 2)
    np.testing.assert_allclose(found.mean(0), first_ten(tensors, ".mean"), atol=0.15)
    np.testing.assert_allclose(np.cov(found.T), covariance, atol=6 * covariance.max() / math.sqrt(1000))
    assert np.abs(covariance[:5, 5:]).max() > 0.3


@pytest.mark.slow
def test_a_fit_depends_on_neither_the_other_members_nor_the_micro_batch(trained):
    """With dropout and KL, whose divergence is from the backbone alone; progress counts every pass."""
    of = trained(regularizers=(AdapterDropout(0.1), KL(0.1), EarlyStopping(9)))
    seen = []
    (together, both), (alone, one) = (
        fitted(of, [0, 1], rows_at_once=3, on_rows=seen.extend),
        fitted(of, [1]),
    )
    for name, value in alone.fits[0].tensors.items():
        torch.testing.assert_close(value, together.fits[1].tensors[name], atol=1e-5, rtol=0)
    np.testing.assert_allclose(one[0], both[1], atol=1e-4)
    distinct = [both[0, 0], both[0, 1], both[1, 0]]
    assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(distinct) for b in distinct[:i])
    assert len(seen) == 2 * SPEC.epochs * 39 + SPEC.samples * len(of.data.validation)
    cost = alone.fits[0].record
    forward = alone.adapters.passes.forward.of(of.data.train).sum()
    assert cost["search_flops"] == 2 * SPEC.epochs * forward and cost["search_seconds"] > 0
    again, _ = fitted(of, [1])
    assert all(torch.equal(v, again.fits[0].tensors[name]) for name, v in alone.fits[0].tensors.items())


@pytest.mark.slow
def test_members_are_back_afterwards_and_a_broken_one_spoils_no_other(trained):
    of = trained()
    (_, alone), broken = fitted(of, [1]), {n: torch.full_like(v, math.nan) for n, v in of.states[0].items()}
    of.states[0] = broken
    _, logits = fitted(of, [0, 1])
    assert not np.isfinite(logits[0]).any()
    np.testing.assert_allclose(logits[1], alone[0], atol=1e-4)
    trial = of.trial
    with Adapters(of.backbone, trial.method, [trial.member_key(1)["init"]]) as adapters:
        adapters.load([of.states[1]])
        before = predict(of.backbone, of.data.validation)
        Samples(adapters, of.states[1:], ["a"], SPEC, 8, trial=trial, members=[1]).fit(of.data.train)
        np.testing.assert_array_equal(predict(of.backbone, of.data.validation), before)
    assert of.backbone.inserted is None and "Stacked" not in str(of.backbone.lm)


@pytest.mark.slow
def test_stored_members_get_draws_later_and_keep_the_fit(tiny_trial, data_root, tmp_path):
    trial = tiny_trial(method=Lora(rank=2), members=2, budget=Budget(batch_size=8, epochs=1))
    drawn, greys = replace(trial, draws=SPEC), Greys().located(data_root)
    assert drawn.member_ids() == trial.member_ids()
    store, once = Store(str(tmp_path / "store")), Store(str(tmp_path / "once"))
    run_stack(Stack(trial, (0, 1)), store.storage.uri)
    result = run_stack(Stack(trial, (0, 1), draws=(None, SPEC), draw_members=(2, 2)), store.storage.uri)
    assert not result.trained and not result.failed
    rows = [(t, ()) for t in (trial, drawn)]
    store.write_table("toy", trials_table(store, "toy", rows, {"command": "pytest", "commit": "none"}))
    assert [f for f in audit(store.storage.uri) if f.status == "failed"] == []
    plain, sampled = trials_table(store, "toy", rows, {}).to_pylist()
    assert sampled["draws"] == SPEC.label and sampled["forwards_per_prediction"] == 2 * 3
    assert sampled["train_flops"] > 2 * plain["train_flops"]
    fit = read_fit(store, trial.member_id(0), SPEC)

    assert predict_task(store, trial.member_ids(), greys, draws=SPEC) == 2
    assert predict_task(store, trial.member_ids(), greys, draws=SPEC) == 0
    run_stack(Stack(drawn, (0, 1), (greys,)), once.storage.uri)
    folders, name = [member_folder(m) for m in trial.member_ids()], drawn.eval_set(greys, "test")
    np.testing.assert_array_equal(*(s.predictions(folders, name).logits_MNC for s in (store, once)))
    assert all(
        torch.equal(v, read_fit(once, trial.member_id(0), SPEC).tensors[n]) for n, v in fit.tensors.items()
    )
    with pytest.raises(ValueError, match="swag"):
        predict_task(store, trial.member_ids(), greys, draws=replace(SPEC, lr=1e-5))


def test_labels_are_read_back_and_bad_specs_say_what_to_write(tiny_trial, trained):
    for spec in (SWAG(), SPEC, SWAG(2, 4, 1e-5, 7, 9)):
        assert read_draws(spec.label) == spec
    assert SWAG().label == "swag-10x5x0.0001x10x10"
    for make, message in [
        (lambda: SWAG(0), "samples=0"),
        (lambda: SWAG(rank=1), r"rank must be in \[2, collected\]"),
        (lambda: SWAG(rank=11), "rank=11, collected=10"),
        (lambda: SWAG(lr=0), r"lr=0: must be > 0"),
        (lambda: SWAG(epochs=0), "epochs=0: must be >= 1"),
        (lambda: tiny_trial(draws=SWAG(), regularizers=(Masksembles(),)), "no Masksembles"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(ValueError, match=r"1 epochs have 5 steps; write SWAG\(collected=5\)"):
        fitted(trained(budget=Budget(steps=1)), [0], replace(SPEC, epochs=1, collected=11))
