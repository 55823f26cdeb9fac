"""Exactness: a member of a stack is the member trained alone, and the member that plain PEFT would train."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, VeraConfig
from peft_loop import peft_loop
from stacks import Recorder, largest_difference, prepared
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from lorae.backbone.loading import load_backbone
from lorae.engine.adapters import Adapters
from lorae.engine.batches import class_logits, collate
from lorae.engine.checkpoints import StackCheckpoints
from lorae.engine.prediction import predict, predict_draws
from lorae.engine.training import TrainingData, learning_rate, train_stack
from lorae.methods import Gaussian, Lora, Orthogonal, Vera, Xavier, frozen_tensors
from lorae.regularizers import KL, AdapterDropout, DecayB, EarlyStopping, Masksembles
from lorae.regularizers.kl import kl_divergence
from lorae.store import peft_format
from lorae.store.storage import Storage
from lorae.tasks.base import Letters, OptionLikelihood
from lorae.tasks.encoding import encode
from lorae.trial import AdamW, Budget, Diversity, Trial

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.slow
@pytest.mark.parametrize(
    "method,lr", [(Lora(rank=4, targets=ALL_LINEAR), 1e-2), (Vera(rank=16), 1e-1)], ids=["lora", "vera"]
)
def test_member_of_a_stack_equals_the_member_trained_alone(tiny_trial, method, lr):
    """Different orders and lengths, dropout, clipping, KL, decay, and early stopping that ends members at
    different steps."""
    trial = tiny_trial(
        method=method,
        optimizer=AdamW(lr=lr, max_grad_norm=0.5),
        budget=Budget(batch_size=4, steps=36),
        regularizers=(AdapterDropout(0.1), KL(0.05), DecayB(0.1), EarlyStopping(patience=1, every=6)),
    )
    backbone, data = prepared(trial)
    together = train_stack(backbone, trial, range(4), data)
    alone = [train_stack(backbone, trial, [m], data)[0] for m in range(4)]
    ends = {run.curve[-1]["step"] for run in alone}
    assert len(ends) > 1 and max(ends) >= 20, "the setting must end members at different steps"
    for one, other in zip(together, alone):
        assert largest_difference(one, other) < 1e-5
        assert one.best_step == other.best_step
        assert one.train_tokens == other.train_tokens
    assert largest_difference(together[0], together[1]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("dtype,moves", [(torch.float32, True), (torch.float64, False)], ids=["fp32", "fp64"])
def test_rounding_alone_moves_a_member_in_fp32_and_not_in_fp64(tiny_trial, monkeypatch, dtype, moves):
    """One unit in the last place on what linear layers return, for a member that is trained alone: exactness
    to 1e-5 on another device can be shown in fp64 alone (`test_gpu`)."""
    trial = tiny_trial(method=Vera(rank=16), optimizer=AdamW(lr=1e-1), budget=Budget(batch_size=4, steps=36))
    backbone, data = prepared(trial, dtype=dtype)
    (exact,), generator = train_stack(backbone, trial, [2], data), torch.Generator().manual_seed(0)

    def rounded(x, weight, bias=None, linear=F.linear):
        y = linear(x, weight, bias)
        return y * (
            1 + torch.finfo(y.dtype).eps / 2 * torch.randn(y.shape, generator=generator, dtype=y.dtype)
        )

    monkeypatch.setattr(F, "linear", rounded)
    (noisy,) = train_stack(backbone, trial, [2], data)
    difference = largest_difference(exact, noisy)
    assert difference > 1e-6 if moves else difference == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "regularizers", [(), (DecayB(5.0),), (KL(0.3, "forward"),)], ids=["plain", "decay_b", "kl"]
)
def test_lora_member_equals_a_plain_peft_loop(tiny_trial, regularizers):
    method = Lora(rank=4, alpha=8, targets=ALL_LINEAR)
    trial = tiny_trial(method=method, regularizers=regularizers, optimizer=AdamW(lr=5e-3, weight_decay=0.1))
    backbone, data = prepared(trial)
    ours = train_stack(backbone, trial, [0, 1, 2], data)[1]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(ALL_LINEAR), lora_dropout=0.0)
    theirs = peft_loop(trial, data, config, ours.member)
    for name, value in ours.state.items():
        assert torch.allclose(value, theirs[name], atol=1e-5), name


@pytest.mark.parametrize("projection", ["per_member", "per_layer"])
def test_vera_member_equals_a_plain_peft_loop(tiny_trial, projection):
    trial = tiny_trial(method=Vera(rank=16, projection=projection), optimizer=AdamW(lr=3e-2))
    backbone, data = prepared(trial)
    ours = train_stack(backbone, trial, [0, 1, 2], data)[2]
    config = VeraConfig(r=16, target_modules=["q_proj", "v_proj"], save_projection=True)
    theirs = peft_loop(trial, data, config, ours.member)
    for name, value in ours.state.items():
        assert torch.allclose(value, theirs[name], atol=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("method", [Lora(rank=3, alpha=5), Vera(rank=24)], ids=["lora", "vera"])
def test_exported_member_has_the_same_logits_in_peft(tiny_trial, tmp_path, method):
    trial = tiny_trial(method=method, optimizer=AdamW(lr=5e-2))
    backbone, data = prepared(trial)
    run = train_stack(backbone, trial, [3], data)[0]
    init = trial.member_key(3)["init"]
    layers = method.adapted_layers(backbone.linears, "tiny")
    frozen = frozen_tensors(method, layers, init) if isinstance(method, Vera) else ()
    for name, content in peft_format.adapter_files(method, trial.backbone, run.state, frozen).items():
        (tmp_path / name).write_bytes(content)
    with Adapters(backbone, method, [init]) as adapters:
        adapters.load([run.state])
        ours = predict(backbone, data.validation)[0]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(trial.backbone.path), tmp_path)
    for row, expected in zip(data.validation, ours):
        logits = model(input_ids=torch.tensor([row.tokens])).logits[0, -1, list(row.answer_ids)]
        assert np.allclose(logits.detach().numpy(), expected, atol=1e-4)
    assert not np.allclose(ours, predict(backbone, data.validation)[0], atol=1e-2), "the adapter must matter"
    restored = peft_format.read_state((tmp_path / peft_format.WEIGHTS).read_bytes())
    assert all(torch.equal(restored[name], run.state[name]) for name in run.state)


@pytest.mark.slow
def test_order_of_members_does_not_matter_and_five_contain_three(tiny_trial):
    trial = tiny_trial(budget=Budget(batch_size=4, steps=12))
    backbone, data = prepared(trial)
    five = train_stack(backbone, trial, [4, 2, 0, 1, 3], data)
    three = train_stack(backbone, trial, [0, 1, 2], data)
    by_member = {run.member: run for run in five}
    assert max(largest_difference(run, by_member[run.member]) for run in three) < 1e-5


@pytest.mark.slow
def test_both_sources_shared_give_identical_members_and_one_identity(tiny_trial):
    trial = tiny_trial(diversity=Diversity(init="shared", order="shared"), members=3)
    backbone, data = prepared(trial)
    first, second = train_stack(backbone, trial, [0, 1], data)
    assert largest_difference(first, second) == 0
    assert len(set(trial.member_ids())) == 1


@pytest.mark.parametrize("init,order", [("shared", "per_member"), ("per_member", "shared")])
def test_one_source_of_randomness_is_enough_to_differ(tiny_trial, init, order):
    trial = tiny_trial(diversity=Diversity(init=init, order=order))
    backbone, data = prepared(trial)
    first, second = train_stack(backbone, trial, [0, 1], data)
    assert largest_difference(first, second) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [Lora(), Lora(init=Gaussian(2.0)), Lora(init=Xavier(10)), Lora(init=Orthogonal()), Vera()],
    ids=lambda m: m.init.label if isinstance(m, Lora) else "vera",
)
def test_step_zero_is_the_backbone_and_only_adapters_move(tiny_trial, method):
    trial = tiny_trial(method=method)
    backbone, data = prepared(trial)
    before = {name: p.clone() for name, p in backbone.lm.named_parameters()}
    plain = predict(backbone, data.validation)
    with Adapters(backbone, method, [trial.member_key(m)["init"] for m in range(2)]):
        adapted = predict(backbone, data.validation)
    assert np.allclose(adapted, plain, atol=1e-6)
    train_stack(backbone, trial, [0, 1], data)
    after = dict(backbone.lm.named_parameters())
    assert after.keys() == before.keys() and all(torch.equal(before[n], after[n]) for n in before)


def test_random_small_b_starts_away_from_the_backbone(tiny_trial):
    trial = tiny_trial(method=Lora(b_std=0.5))
    backbone, data = prepared(trial)
    with Adapters(backbone, trial.method, [trial.member_key(0)["init"]]):
        assert not np.allclose(predict(backbone, data.validation), predict_plain(trial, data), atol=1e-3)


def predict_plain(trial: Trial, data: TrainingData) -> np.ndarray:
    lm = AutoModelForCausalLM.from_pretrained(trial.backbone.path)
    rows = [lm(torch.tensor([r.tokens])).logits[0, -1, list(r.answer_ids)].tolist() for r in data.validation]
    return np.array([rows])


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_micro_batches_change_nothing_but_rounding(tiny_trial, dropout):
    trial = tiny_trial(regularizers=(AdapterDropout(dropout),) if dropout else ())
    backbone, data = prepared(trial)
    whole = train_stack(backbone, trial, [0, 1], data)
    parts = train_stack(backbone, trial, [0, 1], data, micro_batch=1)
    assert max(largest_difference(a, b) for a, b in zip(whole, parts)) < 1e-5


def test_a_member_that_is_not_finite_fails_alone(tiny_trial):
    """Member 1 starts at a huge A: its first loss is not finite; members 0 and 2 are as if it had not been
    there."""
    trial = tiny_trial(method=Lora(b_std=0.1), budget=Budget(batch_size=4, steps=10))
    backbone, data = prepared(trial)

    good = train_stack(backbone, trial, [0, 2], data)
    original = Lora.draw

    def draw(self, layer, d_in, d_out, key):
        a, b = original(self, layer, d_in, d_out, key)
        return (a * 1e30, b * 1e30) if key == trial.member_key(1)["init"] else (a, b)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lora, "draw", draw)
        mixed = train_stack(backbone, trial, [0, 1, 2], data)
    assert mixed[1].error is not None and "step 1" in mixed[1].error and "train-" in mixed[1].error
    assert [run.error for run in (mixed[0], mixed[2])] == [None, None]
    assert [len(run.curve) for run in mixed] == [10, 1, 10], "what it does after its failure is not recorded"
    assert largest_difference(mixed[0], good[0]) < 1e-5 and largest_difference(mixed[2], good[1]) < 1e-5


def test_early_stopping_keeps_the_best_step(tiny_trial):
    trial = tiny_trial(
        optimizer=AdamW(lr=5e-2),
        budget=Budget(batch_size=4, steps=60),
        regularizers=(EarlyStopping(2, every=5),),
    )
    backbone, data = prepared(trial)
    run = train_stack(backbone, trial, [0], data)[0]
    evaluated = {r["step"]: r["nll"] for r in run.curve if r["split"] == "validation"}
    assert run.best_step == min(evaluated, key=evaluated.get)
    assert max(evaluated) == run.best_step + 10 < 60, "two evaluations without improvement end it"
    with Adapters(backbone, trial.method, [trial.member_key(0)["init"]]) as adapters:
        adapters.load([run.state])
        logits = torch.from_numpy(predict(backbone, data.validation)[0])
    labels = torch.tensor([r.label for r in data.validation])
    assert F.cross_entropy(logits, labels).item() == pytest.approx(evaluated[run.best_step], abs=1e-6)


@pytest.mark.parametrize(
    "noise,good_calls,reported", [((), 1, [3]), ((Masksembles(2, 1.5),), 0, [])], ids=["plain", "draws"]
)
def test_a_member_whose_validation_is_not_finite_fails_alone(
    tiny_trial, monkeypatch, noise, good_calls, reported
):
    """It fails with the step; the others are as if it had not been there, but are no whole ensemble."""
    rules = (EarlyStopping(patience=9, every=4), *noise)
    trial = tiny_trial(budget=Budget(batch_size=4, steps=8), regularizers=rules)
    backbone, data = prepared(trial)
    good, calls, seen = train_stack(backbone, trial, [0, 2], data), [], []

    def predicted(backbone, rows):
        logits_MKNC = predict_draws(backbone, rows)
        calls.append(len(logits_MKNC))
        if len(logits_MKNC) == 3 and len(calls) > good_calls:
            logits_MKNC[1, 0, 0] = math.nan
        return logits_MKNC

    monkeypatch.setattr("lorae.engine.training.predict_draws", predicted)
    mixed = train_stack(
        backbone, trial, range(3), data, evaluate_every=3, on_evaluation=lambda step, *_: seen.append(step)
    )
    assert [run.error for run in mixed] == [None, "validation NLL nan at step 4", None]
    assert max(largest_difference(a, b) for a, b in zip((mixed[0], mixed[2]), good)) < 1e-5
    assert seen == reported and calls == [3, 3, 2], "the two that are left at step 6 are not evaluated"


def test_a_checkpoint_has_its_curves_in_tensors(tiny_trial, tmp_path):
    """However many records there are, its header has a few numbers of each member; they come back as they
    were."""
    trial = tiny_trial(
        budget=Budget(batch_size=4, steps=8), regularizers=(EarlyStopping(patience=9, every=3),)
    )
    backbone, data = prepared(trial)
    recorder, file = Recorder(), StackCheckpoints(Storage(str(tmp_path)), "s", 0.0, lambda: False)
    runs = train_stack(backbone, trial, [0, 1], data, checkpoints=recorder)
    headers = {step: json.dumps(header) for step, (_, header) in recorder.all.items()}
    assert "grad_norm" not in headers[7] and len(headers[7]) < len(headers[1]) + 100
    file.save(*recorder.all[4])
    resumed = train_stack(backbone, trial, [0, 1], data, checkpoints=Recorder(file.load()))
    for run, again in zip(runs, resumed):
        assert repr(again.curve[:5]) == repr(run.curve[:5]), "four steps and an evaluation"
        timeless = [[r | {"seconds": 0.0} for r in curve] for curve in (run.curve, again.curve)]
        assert repr(timeless[0]) == repr(timeless[1])


@pytest.mark.slow
def test_decay_pulls_b_towards_zero_and_leaves_a(tiny_trial):
    backbone, data = prepared(tiny_trial())
    norms = []
    for regularizers in ((), (DecayB(20.0),)):
        run = train_stack(backbone, tiny_trial(regularizers=regularizers), [0], data)[0]
        norms.append({f: sum(v.norm() for n, v in run.state.items() if n.endswith(f)) for f in (".A", ".B")})
    assert norms[1][".B"] < 0.8 * norms[0][".B"]
    assert norms[1][".A"] == pytest.approx(float(norms[0][".A"]), rel=0.1)


def test_kl_divergence_in_both_directions_and_with_masked_classes():
    logits, reference = torch.randn(6, 4), torch.randn(6, 4)
    p, q = logits.log_softmax(1), reference.log_softmax(1)
    assert torch.allclose(kl_divergence(logits, reference, "reverse"), (p.exp() * (p - q)).sum(1), atol=1e-6)
    assert torch.allclose(kl_divergence(logits, reference, "forward"), (q.exp() * (q - p)).sum(1), atol=1e-6)
    padded = [F.pad(x, (0, 1), value=-math.inf).requires_grad_() for x in (logits, reference)]
    masked = kl_divergence(padded[0], padded[1], "reverse")
    masked.sum().backward()
    assert torch.allclose(masked, kl_divergence(logits, reference, "reverse"), atol=1e-6)
    assert torch.isfinite(padded[0].grad).all()


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_kl_where_validation_alone_has_a_class(tiny_trial, direction):
    trial = tiny_trial(regularizers=(KL(0.5, direction),), budget=Budget(batch_size=4, steps=4))
    backbone, data = prepared(trial)
    train, validation = (
        [replace(r, num_classes=2, answer_ids=r.answer_ids[:2], label=r.label % 2) for r in rows]
        for rows in (data.train, data.validation)
    )
    reference_NC = predict(backbone, train)[0]
    narrow, wide = (
        train_stack(backbone, trial, [0, 1], TrainingData(train, rows, reference_NC))
        for rows in (validation, data.validation)
    )
    assert max(largest_difference(a, b) for a, b in zip(narrow, wide)) < 1e-5
    assert wide[0].error is None


@pytest.mark.parametrize(
    "scoring", [Letters(), OptionLikelihood("sum"), OptionLikelihood("chars")], ids=lambda s: s.label
)
def test_scoring_reads_what_the_model_itself_says(tiny_trial, scoring):
    """Against one plain forward pass per option with the model's own full logits."""
    trial = tiny_trial()
    task = replace(trial.task, scoring=scoring)
    backbone = load_backbone(trial.backbone, "fp32", "cpu")
    examples = task.examples("test")[:5]
    rows = encode(backbone.tokenizer, task, examples, 64)
    ours = class_logits(backbone, collate(rows, 3, backbone))
    for example, logits in zip(examples, ours):
        prompt = task.prompt(example)
        head = backbone.tokenizer(prompt.text)["input_ids"]
        for k, answer in enumerate(prompt.answers):
            ids = backbone.tokenizer(prompt.text + answer)["input_ids"]
            full = backbone.lm(torch.tensor([ids])).logits[0]
            if scoring == Letters():
                expected = full[len(head) - 1, ids[len(head)]]
            else:
                steps = range(len(head), len(ids))
                expected = sum(full[t - 1].log_softmax(0)[ids[t]] for t in steps)
                expected = expected / (len(example.options[k]) if scoring.norm == "chars" else 1)
            assert logits[k].item() == pytest.approx(expected.item(), abs=1e-4)


def test_learning_rate_schedule():
    spec = AdamW(lr=1.0, warmup_frac=0.2)
    assert [learning_rate(spec, s, 10) for s in (0, 1, 2, 6, 9)] == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.125])
    cosine = AdamW(lr=1.0, warmup_frac=0.0, schedule="cosine")
    assert [learning_rate(cosine, s, 4) for s in (0, 2)] == pytest.approx([1.0, 0.5])


@pytest.mark.slow
def test_a_path_leads_from_the_backbone_to_the_trained_member(tiny_trial):
    trial = tiny_trial(budget=Budget(batch_size=4, steps=20))
    backbone, data = prepared(trial)
    plain = train_stack(backbone, trial, [0, 1], data)
    runs = train_stack(backbone, trial, [0, 1], data, path=True)
    untouched = torch.from_numpy(predict(backbone, data.validation)[0])
    for run, same in zip(runs, plain):
        assert largest_difference(run, same) == 0, "looking changes nothing"
        assert len(run.path) == 6
        assert torch.allclose(run.path[0]["logits"], untouched, atol=1e-5)
        with Adapters(backbone, trial.method, [trial.member_key(run.member)["init"]]) as adapters:
            adapters.load([run.state])
            trained = torch.from_numpy(predict(backbone, data.validation)[0])
        assert torch.allclose(run.path[-1]["logits"], trained, atol=1e-5)
        assert not torch.allclose(run.path[2]["logits"], trained, atol=1e-2)
