"""Training on the tokens of an answer: exact in a stack, equal to transformers' `labels=`, and what is
refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from stacks import largest_difference
from transformers import AutoModelForCausalLM
from writers import Echo, echo_trial

import lorae.tasks.scoring.generate as generate
from lorae.backbone.loading import load_backbone, read_backbone
from lorae.draws import MCDropout
from lorae.engine.adapters import Adapters
from lorae.engine.batches import class_logits, collate, stack_losses
from lorae.engine.order import DataOrder
from lorae.engine.prediction import labels, predict
from lorae.engine.training import TrainingData, evaluate, learning_rate, train_stack
from lorae.identity import canonical
from lorae.methods import Full, InContext, LastLayer, Lora, Vera, drawn_state
from lorae.metrics import combine, ensemble_nll
from lorae.regularizers import KL, AdapterDropout, ClassWeights, DecayB, EarlyStopping, Masksembles
from lorae.tasks.base import Generate, text_example
from lorae.tasks.encoding import encode
from lorae.trial import AdamW, Budget, Trial

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module", name="echo_trial")
def make_echo_trial(tiny_llama, tmp_path_factory):
    return echo_trial(tiny_llama, tmp_path_factory.mktemp("echo"))


def prepared(trial: Trial, dtype: torch.dtype | None = None):
    backbone = load_backbone(trial.backbone, trial.precision, "cpu")
    if dtype:
        backbone = read_backbone(trial.backbone, trial.precision, "cpu", recompute=False)
        backbone.lm.to(dtype)
    rows = [
        encode(backbone.tokenizer, trial.task, trial.task.examples(split), trial.budget.max_tokens)
        for split in ("train", "validation")
    ]
    return backbone, TrainingData(*rows)


def stack_of(trial: Trial, backbone, num: int):
    """Members as they are drawn, moved off the backbone so that they differ."""
    adapters = Adapters(backbone, trial.method, [trial.member_key(m)["init"] for m in range(num)])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return adapters


def test_a_row_is_the_prompt_one_reference_and_the_end_token(echo_trial):
    trial = echo_trial()
    tokenizer = load_backbone(trial.backbone, "fp32", "cpu").tokenizer
    example = text_example("w1 w2", ["red w3", "w4"])
    (row,) = encode(tokenizer, trial.task, [example], 64)
    words = tokenizer.convert_ids_to_tokens(list(row.tokens))
    assert words == ["words", ":", "w1", "w2", "colour", ":", "red", "w3", "."]
    assert row.segments == (-1,) * 6 + (0,) * 3 and (row.num_classes, row.label) == (3, 0)


def test_the_loss_is_that_of_transformers_labels(echo_trial):
    """The mean over the answer's tokens, the prompt masked by -100: each row alone, by the model's own
    forward pass."""
    trial = echo_trial()
    backbone, data = prepared(trial)
    rows = data.train[:7]
    assert len({r.num_classes for r in rows}) > 1 and len({len(r.tokens) for r in rows}) > 1
    ours = stack_losses(backbone, rows, data.num_classes)[:, 0]
    lm = AutoModelForCausalLM.from_pretrained(trial.backbone.path)
    for row, nll in zip(rows, ours):
        prompt = row.segments.count(-1)
        masked = torch.tensor([[-100] * prompt + list(row.tokens[prompt:])])
        theirs = lm(input_ids=torch.tensor([row.tokens]), labels=masked).loss
        assert nll.item() == pytest.approx(theirs.item(), abs=1e-5)


@pytest.mark.parametrize(
    "method", [Lora(rank=4, targets=ALL_LINEAR), Vera(rank=16), Full()], ids=lambda m: m.label
)
def test_packed_rows_that_share_a_beginning_equal_single_ones(echo_trial, method):
    trial = echo_trial(method=method)
    backbone, data = prepared(trial)
    rows = data.train[:6]
    with stack_of(trial, backbone, 2):
        together = stack_losses(backbone, [*rows, *rows], data.num_classes)[:, 0].view(2, -1)
        alone = [stack_losses(backbone, [row, row], data.num_classes)[:, 0] for row in rows]
    torch.testing.assert_close(together, torch.stack(alone, 1), atol=1e-5, rtol=0)
    assert (together[0] - together[1]).abs().min() > 1e-4, "the members must differ"


def test_a_block_of_logits_gives_the_same_gradients(echo_trial, monkeypatch):
    trial = echo_trial(regularizers=(KL(0.3),))
    backbone, data = prepared(trial)

    def gradients(at_once: int):
        monkeypatch.setattr(generate, "LOGITS_AT_ONCE", at_once)
        with stack_of(trial, backbone, 2) as adapters:
            losses = stack_losses(backbone, [*data.train[:5]] * 2, data.num_classes, trial.regularizers)
            losses[:, :2].sum().backward()
            return losses[:, :2], adapters.gradients()

    (whole, expected), (blocks, found) = gradients(10**6), gradients(3)
    torch.testing.assert_close(blocks, whole)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_kl_is_the_mean_over_the_answers_tokens_to_the_backbone(echo_trial, direction):
    """By hand: both models' distributions over the vocabulary where each token of the answer is predicted."""
    trial = echo_trial(regularizers=(KL(0.7, direction),))
    backbone, data = prepared(trial)
    row = next(r for r in data.train if r.num_classes == 4)
    prompt = row.segments.count(-1)
    ids, answer = torch.tensor([row.tokens]), slice(prompt - 1, len(row.tokens) - 1)
    lm = AutoModelForCausalLM.from_pretrained(trial.backbone.path)
    with torch.no_grad(), stack_of(trial, backbone, 1) as adapters:
        penalty = stack_losses(backbone, [row], row.num_classes, trial.regularizers)[0, 1]
        for name, layer in backbone.lm.named_modules():  # the member merged into the plain model
            if type(layer).__name__ == "Stacked":
                A, B = (adapters.parameters[f"{name}.{f}"][0] for f in ("A", "B"))
                lm.get_submodule(name).weight += trial.method.scale * (B @ A)
        log_p = lm(input_ids=ids).logits[0, answer].log_softmax(-1)
        plain = AutoModelForCausalLM.from_pretrained(trial.backbone.path)
        log_q = plain(input_ids=ids).logits[0, answer].log_softmax(-1)
    if direction == "forward":
        log_p, log_q = log_q, log_p
    by_hand = 0.7 * (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    assert penalty.item() == pytest.approx(by_hand.item(), rel=1e-4) and by_hand > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("method", [Lora(rank=4, targets=ALL_LINEAR), Vera(rank=16)], ids=["lora", "vera"])
def test_member_of_a_stack_equals_the_member_trained_alone(echo_trial, method):
    """Dropout, KL, decay and clipping; early stopping that ends members at different steps."""
    trial = echo_trial(
        method=method,
        optimizer=AdamW(lr=1e-2 if method.label == "lora" else 1e-1, max_grad_norm=0.5),
        budget=Budget(batch_size=4, steps=24, max_tokens=64),
        regularizers=(AdapterDropout(0.1), KL(0.05), DecayB(0.1), EarlyStopping(patience=1, every=3)),
    )
    backbone, data = prepared(trial, torch.float64)
    together = train_stack(backbone, trial, range(3), data)
    for m, one in enumerate(together):
        (alone,) = train_stack(backbone, trial, [m], data)
        assert one.error is None and one.best_step == alone.best_step
        assert largest_difference(one, alone) < 1e-5 and one.train_tokens == alone.train_tokens
        assert one.train_flops == pytest.approx(alone.train_flops)
    assert largest_difference(together[0], together[1]) > 1e-3


def test_lora_member_equals_a_plain_peft_loop_with_labels(echo_trial):
    method = Lora(rank=4, alpha=8, targets=ALL_LINEAR)
    trial = echo_trial(method=method, optimizer=AdamW(lr=5e-3, weight_decay=0.1))
    backbone, data = prepared(trial)
    ours = train_stack(backbone, trial, [0, 1], data)[1]
    lm = AutoModelForCausalLM.from_pretrained(trial.backbone.path)
    model = get_peft_model(
        lm, LoraConfig(r=4, lora_alpha=8, target_modules=list(ALL_LINEAR), lora_dropout=0.0)
    )
    key, parameters = trial.member_key(1), peft_parameters(model)
    with torch.no_grad():
        for name, value in drawn_state(
            method, method.adapted_layers(backbone.linears, ""), key["init"]
        ).items():
            parameters[name].copy_(value)
    optimizer = torch.optim.AdamW(parameters.values(), lr=trial.optimizer.lr, weight_decay=0.1)
    order = DataOrder(key["order"], trial.seed, np.array([len(r.tokens) for r in data.train]), 4)
    num_steps = trial.budget.num_steps(len(data.train))
    for step in range(num_steps):
        rows = [data.train[n] for n in order.batch(step)]
        nll = [labelled_loss(model, row) for row in rows]
        optimizer.zero_grad()
        torch.stack(nll).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), trial.optimizer.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(trial.optimizer, step, num_steps)
        optimizer.step()
    for name, value in ours.state.items():
        # Adam divides by tiny gradients, so that rounding of 1e-7 becomes 1e-5
        torch.testing.assert_close(value, parameters[name].detach(), atol=3e-5, rtol=1e-5)


def labelled_loss(model, row) -> torch.Tensor:
    prompt = row.segments.count(-1)
    masked = torch.tensor([[-100] * prompt + list(row.tokens[prompt:])])
    return model(input_ids=torch.tensor([row.tokens]), labels=masked).loss


def peft_parameters(model) -> dict[str, torch.nn.Parameter]:
    """PEFT's trainable parameters under our names."""
    ours = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            path, _, factor = name.removeprefix("base_model.model.").partition(".lora_")
            ours[f"{path}.{factor[0]}"] = parameter
    return ours


def test_predictions_are_of_tokens_and_their_mean_probability_is_the_ensemble(echo_trial):
    trial = echo_trial()
    backbone, data = prepared(trial)
    rows = data.validation
    with stack_of(trial, backbone, 3):
        logits_MNC = predict(backbone, rows)
        members = evaluate(backbone, rows)
        singles = [class_logits(backbone, collate([r] * 3, r.num_classes, backbone, 3)) for r in rows]
    log_p = torch.cat(singles, 1).double().detach().numpy()  # (M, tokens)
    assert logits_MNC.shape == (3, sum(r.num_classes for r in rows), 2)
    np.testing.assert_allclose(np.exp(combine(logits_MNC[:1], "probs")[:, 0]), np.exp(log_p[0]), rtol=1e-4)
    expected = -np.log(np.exp(log_p).mean(0)).mean()
    assert ensemble_nll(combine(logits_MNC, "probs"), labels(rows)) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose([nll for nll, _ in members], -log_p.mean(1), rtol=1e-5)
    assert all(math.isnan(acc) for _, acc in members), "a token is not right or wrong"
    assert [r.id for r in trial.task.scoring.predicted_rows(rows)][:2] == [
        f"{rows[0].id}#{t}" for t in (0, 1)
    ]


def test_a_token_of_probability_one_is_finite(echo_trial):
    scoring, row = Generate(), prepared(echo_trial())[1].train[0]
    log_p = np.full((1, 1, row.num_classes), 0.0, np.float32)
    found = scoring.predictions(log_p, [row])
    assert np.isfinite(found).all() and combine(found, "probs")[:, 0] == pytest.approx(0.0)


def test_how_members_are_decoded_is_no_part_of_their_identity(echo_trial):
    plain = echo_trial()
    many = Generate(6, stop=(":",), samples=5, temperature=0.7, top_p=0.9, lockstep=("mean", "logits"))
    sampled = echo_trial(task=replace(plain.task, scoring=many))
    assert sampled.member_id(0) == plain.member_id(0)
    assert sampled.task.eval_set("test") == plain.task.eval_set("test")
    assert many.decoding != plain.task.scoring.decoding
    longer = echo_trial(task=replace(plain.task, scoring=Generate(7)))
    assert longer.member_id(0) != plain.member_id(0), "the prompt leaves more room"
    assert canonical(many) == {"type": "Generate", "max_new_tokens": 6}


def test_a_prompt_leaves_room_for_the_answer(echo_trial):
    trial = echo_trial()
    tokenizer = load_backbone(trial.backbone, "fp32", "cpu").tokenizer
    example = text_example(" ".join(f"w{n}" for n in range(30)), "red")
    (row,) = encode(tokenizer, trial.task, [example], 20)
    assert row.segments.count(-1) == 20 - 6 and row.truncated == 34 - 14
    words = tokenizer.convert_ids_to_tokens(list(row.tokens))
    assert words[:3] == ["words", ":", "w0"] and words[-5:] == ["w29", "colour", ":", "red", "."]


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0: must be >= 1"),
        ({"samples": -1}, "samples=-1: must be >= 0"),
        ({"samples": 3, "temperature": 0}, "temperature=0: samples need one > 0"),
        ({"top_p": 0.0}, r"top_p=0.0: must be in \(0, 1\]"),
        ({"lockstep": ("vote",)}, r"lockstep=\['vote'\]: must be of"),
        ({"stop": "Q:"}, "stop='Q:': must be a tuple of texts"),
        ({"stop": ("",)}, r"stop=\('',\): must be a tuple of texts"),
    ],
)
def test_settings_that_cannot_be_decoded_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Generate(**settings)


@pytest.mark.parametrize(
    "changes,message",
    [
        (
            {"draws": MCDropout(3), "regularizers": (AdapterDropout(0.1),)},
            "MCDropout.* an answer is written with one",
        ),
        ({"regularizers": (Masksembles(),)}, "masks-4x2 with Generate"),
        ({"regularizers": (ClassWeights(),)}, "ClassWeights with Generate.*no class that could be rare"),
        ({"method": InContext(2, calibrated=False)}, "InContext.*cannot write texts"),
        ({"method": LastLayer()}, "LastLayer.*cannot write texts"),
        ({"method": Full(), "regularizers": (KL(),)}, "KL of Full"),
        ({"optimizer": AdamW(schedule="cyclic", cycles=2)}, "snapshots-2 with Generate"),
        ({"combine": "logits", "members": 2}, 'combine="logits" with Generate'),
        ({"budget": Budget(epochs=1, max_tokens=6)}, "nothing is left for the prompt"),
    ],
)
def test_trials_that_cannot_write_are_refused(echo_trial, changes, message):
    with pytest.raises(ValueError, match=message):
        echo_trial(**changes)


def test_references_and_tokenizers_that_cannot_be_trained_on_are_refused(echo_trial, tiny_llama, tmp_path):
    trial = echo_trial()
    tokenizer = load_backbone(trial.backbone, "fp32", "cpu").tokenizer
    long = text_example("w1", "w1 w2 w3 w4 w5 w6", "a-1")
    with pytest.raises(
        ValueError, match=r"echo a-1: its reference has 7 tokens with the end.*max_new_tokens=7"
    ):
        encode(tokenizer, trial.task, [long], 64)
    with pytest.raises(ValueError, match="stop='~~': no token of this tokenizer ends it"):
        encode(tokenizer, replace(trial.task, scoring=Generate(6, stop=("~~",))), [long], 64)
    endless = load_backbone(tiny_llama, "fp32", "cpu").tokenizer
    with pytest.raises(ValueError, match="no end token"):
        encode(endless, trial.task, [long], 64)
    with pytest.raises(ValueError, match="option_seed=1"):
        Echo(option_seed=1)
