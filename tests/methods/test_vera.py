"""VeRA with matrices of each layer's own: drawn from streams, exact, stored as seeds, counted."""

from __future__ import annotations

import json
import math
from itertools import combinations

import numpy as np
import pytest
import torch
from stacks import largest_difference, prepared

from lorae.engine.adapters import Adapters, Soup
from lorae.engine.prediction import predict
from lorae.engine.training import train_stack
from lorae.methods import PVera, Vera, frozen_tensors
from lorae.store import peft_format
from lorae.trial import AdamW, Budget

TARGETS = ("q_proj", "down_proj")  # inputs of two widths
UNIQUE = Vera(rank=64, targets=TARGETS, projection="per_layer")


def test_each_layer_of_each_member_has_its_own_uniform_matrices() -> None:
    layers = {"a.q_proj": (32, 32), "a.down_proj": (96, 32), "b.q_proj": (32, 32)}
    drawn = [UNIQUE.draw_frozen(layers, ("member", m)) for m in (0, 1)]
    for frozen in drawn:
        for (d_in, d_out), A, B in zip(layers.values(), frozen[::2], frozen[1::2], strict=True):
            assert A.shape == (64, d_in) and B.shape == (d_out, 64)
            for matrix, bound in ((A, math.sqrt(6 / d_in)), (B, math.sqrt(6 / 64))):
                assert np.abs(matrix).max() == pytest.approx(bound, rel=0.01)
                assert matrix.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    square = [frozen[n].ravel()[: 32 * 64] for frozen in drawn for n in (0, 1, 2, 4, 5)]
    assert max(abs(np.corrcoef(a, b)[0, 1]) for a, b in combinations(square, 2)) < 0.12
    alone = UNIQUE.draw_frozen({"b.q_proj": (32, 32)}, ("member", 1))
    np.testing.assert_array_equal(alone[0], drawn[1][4])  # whatever else is adapted


@pytest.mark.parametrize("method", [UNIQUE, PVera(rank=8, targets=TARGETS, projection="per_layer")])
def test_member_of_a_stack_equals_the_member_trained_alone(tiny_trial, method) -> None:
    """In fp64, as rounding alone moves a member of VeRA in fp32 by more than 1e-5."""
    trial = tiny_trial(method=method, optimizer=AdamW(lr=3e-2), budget=Budget(batch_size=4, steps=8))
    backbone, data = prepared(trial, dtype=torch.float64)
    together = train_stack(backbone, trial, [0, 1, 2], data)
    for m, run in enumerate(together):
        assert largest_difference(run, train_stack(backbone, trial, [m], data)[0]) < 1e-5
    assert largest_difference(together[0], together[1]) > 1e-3


def test_a_stored_member_is_two_vectors_per_layer_with_which_it_predicts_the_same(tiny_trial) -> None:
    trial = tiny_trial(method=UNIQUE, optimizer=AdamW(lr=5e-2))
    backbone, data = prepared(trial)
    run = train_stack(backbone, trial, [3], data)[0]
    init = trial.member_key(3)["init"]
    frozen = frozen_tensors(UNIQUE, UNIQUE.adapted_layers(backbone.linears, "tiny"), init)
    files = peft_format.adapter_files(UNIQUE, trial.backbone, run.state, frozen)
    config = json.loads(files[peft_format.ADAPTER_CONFIG])
    assert "peft_type" not in config and config["lorae_method"]["projection"] == "per_layer"
    numbers = sum(value.numel() for value in run.state.values())
    assert len(files[peft_format.WEIGHTS]) < 4 * numbers + 4096
    restored = peft_format.read_state(files[peft_format.WEIGHTS])
    with Adapters(backbone, UNIQUE, [init]) as adapters:
        adapters.load([restored])
        ours = predict(backbone, data.validation)[0]
        adapters.load([run.state])
        np.testing.assert_array_equal(ours, predict(backbone, data.validation)[0])
    assert not np.allclose(ours, predict(backbone, data.validation)[0], atol=1e-2), "it must matter"


def test_memory_counts_every_layers_matrices_and_a_stack_shrinks_and_soups_with_them(tiny_trial) -> None:
    trial = tiny_trial(method=UNIQUE, optimizer=AdamW(lr=5e-2))
    backbone, data = prepared(trial)
    runs = train_stack(backbone, trial, range(3), data)
    keys = [trial.member_key(m)["init"] for m in range(3)]
    with Adapters(backbone, UNIQUE, keys) as adapters:
        held = sum(part.nelement() * part.element_size() for part in adapters.frozen)
        assert 3 * UNIQUE.frozen_bytes(adapters.layers, 4) == held
        adapters.load([run.state for run in runs])
        each = predict(backbone, data.validation)
        adapters.keep([0, 2])
        np.testing.assert_allclose(predict(backbone, data.validation), each[[0, 2]], atol=1e-5)
    with Soup(backbone, UNIQUE, keys, [run.state for run in runs], ()) as soup:
        for layer in soup.layers:
            x = torch.randn(1, 5, soup.layers[layer][0])
            mean = backbone.lm.get_submodule(layer)
            expected = mean.stacked(x.expand(3, -1, -1)).mean(0, keepdim=True)
            assert torch.allclose(mean(x), expected, atol=1e-5)


def test_another_projection_is_refused() -> None:
    with pytest.raises(ValueError, match='must be "per_member", "shared" or "per_layer"'):
        Vera(projection="unique")  # type: ignore[arg-type]
