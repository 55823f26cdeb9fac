"""TFB: its samples are those of the definition, its sigma is the largest that is tolerated, and both depend
on the member alone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from stacks import prepared
from transformers import AutoModelForCausalLM

from lorae import seeds
from lorae.draws import TFB, Fit, Laplace, MCDropout, Posterior, read_draws
from lorae.draws.tfb import ANCHORS, SIGMAS, Samples, inverse_root
from lorae.engine.adapters import Adapters
from lorae.engine.batches import class_logits, collate
from lorae.engine.prediction import draws_nll, predict
from lorae.engine.training import train_stack
from lorae.identity import canonical
from lorae.methods import Lora
from lorae.regularizers import DecayB
from lorae.trial import AdamW, Budget

WIDTHS = [Fit({"sigma": 0.02}), Fit({"sigma": 0.05})]


@pytest.fixture
def trained(tiny_trial):
    """A backbone with data, a trial of two members, and their trained states."""
    trial = tiny_trial(method=Lora(rank=4, alpha=8), members=2, budget=Budget(batch_size=4, epochs=3))
    backbone, data = prepared(trial)
    states = [run.state for run in train_stack(backbone, trial, [0, 1], data)]
    return backbone, data, trial, states


def sampled(trained, members, spec, use):
    """What `use` makes of the samples of some members."""
    backbone, _, trial, states = trained
    keys = [trial.member_key(m)["init"] for m in members]
    own = [states[m] for m in members]
    with Adapters(backbone, trial.method, keys) as adapters:
        adapters.load(own)
        samples = Samples(adapters, own, [trial.member_id(m) for m in members], spec)
        return use(samples)


@pytest.mark.parametrize("singular_values", [[3.0, 1.0, 0.2], [3.0, 1.0, 1e-9], [0.0, 0.0, 0.0]])
def test_noise_has_the_directions_of_b_and_is_of_equal_size_in_all(singular_values):
    rng = np.random.default_rng(0)
    U, V = (torch.from_numpy(np.linalg.qr(rng.normal(size=(n, 3)))[0]) for n in (12, 3))
    B = U * torch.tensor(singular_values) @ V.T
    Q = B @ inverse_root(B)
    there = torch.tensor([s > 1e-6 for s in singular_values], dtype=torch.float64)
    assert torch.allclose(Q @ Q.T, (U * there) @ U.T, atol=1e-6)


@pytest.mark.slow
def test_a_sample_is_the_model_with_noise_merged_into_its_weights(trained):
    backbone, data, trial, states = trained

    def use(samples):
        samples.fits = WIDTHS
        logits = samples.predict(data.validation)
        after = predict(backbone, data.validation)
        return logits, after

    logits_MKNC, after_MNC = sampled(trained, [0, 1], TFB(3), use)
    assert logits_MKNC.shape[:2] == (2, 3)
    for m, width in enumerate(WIDTHS):
        for k in range(3):
            lm = AutoModelForCausalLM.from_pretrained(trial.backbone.path)
            with torch.no_grad():
                for layer in backbone.linears:
                    if f"{layer}.A" in states[m]:
                        A, B = states[m][f"{layer}.A"], states[m][f"{layer}.B"]
                        U, _, Vh = np.linalg.svd(B.double().numpy(), full_matrices=False)
                        E = seeds.stream(trial.member_id(m), "tfb", k, layer).normal(size=A.shape)
                        noise = torch.from_numpy(width.record["sigma"] * U @ Vh @ E).float()
                        lm.get_submodule(layer).weight += trial.method.scale * (B @ A + noise)
                rows = data.validation[:4]
                expected = merged_logits(backbone, lm, rows)
            assert np.allclose(logits_MKNC[m, k, :4], expected, atol=1e-4)
    with Adapters(backbone, trial.method, [trial.member_key(m)["init"] for m in (0, 1)]) as adapters:
        adapters.load(states)
        np.testing.assert_array_equal(after_MNC, predict(backbone, data.validation))  # they are back


def merged_logits(backbone, lm, rows):
    lm.set_attn_implementation(backbone.lm.config._attn_implementation)
    return class_logits(replace(backbone, lm=lm.eval()), collate(rows, rows[0].num_classes, backbone)).numpy()


def test_a_sample_depends_on_neither_the_other_members_nor_the_other_examples(trained):
    _, data, _, _ = trained

    def drawn(members, rows):
        def use(samples):
            samples.fits = [WIDTHS[m] for m in members]
            return samples.predict(rows)

        return sampled(trained, members, TFB(3), use)

    together, alone = drawn([0, 1], data.validation), drawn([1], data.validation[::-1][:5])
    assert np.allclose(alone[0], together[1][:, ::-1][:, :5], atol=1e-5)
    distinct = [together[0, 0], together[0, 1], together[0, 2], together[1, 0]]
    assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(distinct) for b in distinct[:i])


@pytest.mark.slow
def test_a_member_that_is_not_finite_spoils_no_other(trained):
    backbone, data, trial, states = trained
    broken = {name: torch.full_like(value, math.nan) for name, value in states[0].items()}

    def use(samples):
        samples.fit(data.train)
        return samples.fits[-1].record["sigma"], samples.predict(data.validation)[-1]

    both = sampled((backbone, data, trial, [broken, states[1]]), [0, 1], TFB(2), use)
    alone = sampled(trained, [1], TFB(2), use)
    assert both[0] == pytest.approx(alone[0], rel=1e-9) and np.allclose(both[1], alone[1], atol=1e-5)


@pytest.mark.slow
def test_sigma_is_the_largest_that_the_tolerance_allows(trained):
    _, data, _, _ = trained
    spec = TFB(4, 0.05)

    def searched(members):
        def use(samples):
            samples.fit(data.train)
            return [fit.record["sigma"] for fit in samples.fits], samples.search_seconds

        return sampled(trained, members, spec, use)

    def changes(factor):
        """Of each member's NLL on the anchors, relative, where its sigma is so many times as large."""

        def use(samples):
            rows = spec.fitted_on(data.train)
            labels_N = np.array([row.label for row in rows])
            own = predict(samples.adapters.backbone, rows)[:, None]
            samples.fits = [Fit({"sigma": factor * sigma}) for sigma in sigmas]
            nlls = [[draws_nll(d, labels_N) for d in logits] for logits in (own, samples.predict(rows))]
            return np.abs(np.diff(nlls, axis=0))[0] / nlls[0]

        return sampled(trained, [0, 1], spec, use)

    sigmas, seconds = searched([0, 1])
    assert all(SIGMAS[0] < sigma < 0.9 * SIGMAS[1] for sigma in sigmas) and seconds > 0
    assert (changes(1.0) <= 0.05).all() and (changes(1.08) > 0.05).all()
    (alone,), _ = searched([1])
    assert alone == pytest.approx(sigmas[1], rel=1e-9), "by bisection, so equal or 7 % apart"


def test_anchors_are_taken_from_everywhere_in_the_training_rows():
    rows = list(range(10 * ANCHORS))
    found = TFB().fitted_on(rows)
    assert len(found) == len(set(found)) == ANCHORS and {found[0], found[-1]} == {rows[0], rows[-1]}
    assert TFB().fitted_on(rows[:5]) == rows[:5]


def test_every_way_of_drawing_has_a_note_or_none():
    """A sentence for below a table; in no identity."""
    notes = {type(draws): draws.note for draws in (MCDropout(), Posterior(), TFB(), Laplace())}
    assert notes[MCDropout] is notes[Posterior] is None
    for spec in (TFB, Laplace):
        assert notes[spec] and notes[spec].startswith(spec.__name__) and notes[spec].endswith(".")
        assert "note" not in canonical(spec())


@pytest.mark.parametrize("draws", [TFB(), TFB(3, 1e-5), TFB(2, 1), MCDropout(4), Posterior(7)])
def test_a_label_names_its_draws(draws):
    assert read_draws(draws.label) == draws


@pytest.mark.parametrize(
    "label",
    [
        "none",
        "snapshots-5",
        "masks-4x2",
        "mc-",
        "mc-4x2",
        "posterior-0",
        "",
        "tfb-4",
        "tfb-4xmany",
        "tfb-0x0.003",
    ],
)
def test_other_labels_name_none(label):
    assert read_draws(label) is None


def test_a_strongly_decayed_member_can_be_sampled(tiny_trial):
    """B is near zero, so that A gets noise of a thousand times its size."""
    decay = DecayB(90.0)
    trial = tiny_trial(regularizers=(decay,), optimizer=AdamW(lr=1e-2), budget=Budget(batch_size=4, steps=20))
    backbone, data = prepared(trial)
    (run,) = train_stack(backbone, trial, [0], data)

    def use(samples):
        samples.fits = [Fit({"sigma": 1e-4})]
        return samples.predict(data.validation), predict(backbone, data.validation)

    noisy, own = sampled((backbone, data, trial, [run.state]), [0], TFB(2), use)
    assert np.isfinite(noisy).all() and np.abs(noisy[0] - own).max() < 0.05
