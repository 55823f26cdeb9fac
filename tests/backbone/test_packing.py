"""Packed rows: what prompts begin with is computed once, and nothing changes but the time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lorae.backbone.loading import load_backbone
from lorae.backbone.packing import Packing, attention
from lorae.engine import batches
from lorae.engine.adapters import Adapters
from lorae.engine.batches import collate, common_beginning, stack_logits
from lorae.engine.training import TrainingData, train_stack
from lorae.noise import make_noise
from lorae.regularizers import AdapterDropout
from lorae.tasks.base import LabelWords, OptionLikelihood
from lorae.tasks.encoding import Row, encode


def row(*tokens: int, segments: tuple[int, ...] = ()) -> Row:
    return Row("x", 0, 2, tokens, segments=segments, scoring=OptionLikelihood() if segments else LabelWords())


def test_common_beginning_leaves_every_prompt_a_token_of_its_own():
    assert common_beginning([row(1, 2, 3), row(1, 2, 4, 5), row(1, 2, 3, 9)]) == 2
    assert common_beginning([row(1, 2), row(1, 2, 4)]) == 1
    assert common_beginning([row(1, 2, 3), row(1, 2, 3)]) == 2
    assert common_beginning([row(1, 2), row(3, 4)]) == common_beginning([row(1)]) == 0
    options = [row(1, 2, 5, 6, segments=(-1, -1, 0, 1)), row(1, 2, 5, 7, segments=(-1, -1, 0, 1))]
    assert common_beginning(options) == 1, "what options have in common is theirs"


def test_shared_tokens_are_packed_once_for_each_member():
    packing = Packing.of([4, 3, 3, 5], 2, torch.device("cpu"), shared=2)
    assert packing.pack([1, 2, 3, 4, 1, 2, 5, 1, 2, 6, 1, 2, 7, 8, 9]).tolist() == [
        [1, 2, 3, 4, 5, 0],
        [1, 2, 6, 7, 8, 9],
    ]
    assert packing.places.tolist() == [[0, 1, 2, 3, 2, 0], [0, 1, 2, 2, 3, 4]]
    assert packing.ends.tolist() == [3, 4, 8, 11]
    x = torch.arange(1.0, 13).view(2, 6, 1).requires_grad_()
    padded = packing.padded(x)
    assert padded[..., 0].tolist() == [[1, 2, 3, 4, 0], [1, 2, 5, 0, 0], [7, 8, 9, 0, 0], [7, 8, 10, 11, 12]]
    padded.sum().backward()
    assert x.grad is not None and x.grad[..., 0].tolist() == [[2, 2, 1, 1, 1, 0], [2, 2, 1, 1, 1, 1]]


@pytest.mark.parametrize("scoring", [LabelWords(), OptionLikelihood()], ids=["words", "options"])
def test_sharing_changes_neither_logits_nor_gradients(tiny_trial, data_root, scoring, monkeypatch):
    trial = tiny_trial(members=2)
    task = type(trial.task)(scoring=scoring).located(data_root)
    backbone = load_backbone(trial.backbone, "fp32", "cpu")
    rows = encode(backbone.tokenizer, task, task.examples("train")[:8], 128)
    assert common_beginning(rows) > 0
    found = []
    for sharing in (common_beginning, lambda rows: 0):
        monkeypatch.setattr(batches, "common_beginning", sharing)
        with Adapters(backbone, trial.method, [trial.member_key(m)["init"] for m in (0, 1)]) as adapters:
            for parameter in adapters.parameters.values():
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
            logits = stack_logits(backbone, rows, rows[0].num_classes)
            logits.square().sum().backward()
            found.append((logits.detach(), adapters.gradients()))
    (logits, grads), (apart, grads_apart) = found
    assert torch.allclose(logits, apart, atol=1e-5)
    for grad, grad_apart in zip(grads, grads_apart, strict=True):
        assert torch.allclose(grad, grad_apart, atol=1e-4 * float(grad_apart.abs().max()) + 1e-6)


def test_noise_of_its_own_keeps_a_beginning_apart(tiny_trial):
    trial = tiny_trial(regularizers=(AdapterDropout(0.1),))
    backbone = load_backbone(trial.backbone, "fp32", "cpu")
    rows = encode(backbone.tokenizer, trial.task, trial.task.examples("train")[:4], 128)
    key, common = trial.member_key(0), common_beginning(rows)
    noise = make_noise(trial.method, trial.regularizers, [key])
    assert noise and common

    def shared():
        return collate(rows, 3, backbone).packing.shared  # type: ignore[union-attr]

    with Adapters(backbone, trial.method, [key["init"]], noise):
        assert shared() == common
        noise.train(0, range(4))
        assert shared() == 0
        noise.off()
        assert shared() == common


@pytest.mark.slow
def test_a_stack_that_shares_trains_what_one_that_does_not_does(tiny_trial, monkeypatch):
    trial = tiny_trial()
    backbone = load_backbone(trial.backbone, "fp32", "cpu")
    rows = encode(backbone.tokenizer, trial.task, trial.task.examples("train"), 128)
    runs = [train_stack(backbone, trial, [0, 1], TrainingData(rows, rows[:1]))]
    monkeypatch.setattr(batches, "common_beginning", lambda rows: 0)
    runs.append(train_stack(backbone, trial, [0, 1], TrainingData(rows, rows[:1])))
    for shared, apart in zip(*runs):
        for name, value in shared.state.items():
            np.testing.assert_allclose(value, apart.state[name], atol=1e-5)


def test_values_may_be_narrower_than_keys():
    """As in multi-head latent attention; without a packing every row is a sequence."""
    q, k, v = (torch.randn(2, 4, 5, width) for width in (8, 8, 3))
    out, _ = attention(torch.nn.Module(), q, k, v, None, scaling=0.5)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5)
    assert torch.allclose(out, expected.transpose(1, 2), atol=1e-6)
