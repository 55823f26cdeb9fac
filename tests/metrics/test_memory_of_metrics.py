"""Metrics are computed some examples at a time: the same numbers, in less memory than a copy of logits."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from lorae import metrics
from lorae.metrics import probability


@pytest.fixture(scope="module")
def predictions() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(8, 20_000, 20)).astype(np.float32), rng.integers(0, 20, 20_000)


def everything(logits_MNC: np.ndarray, labels_N: np.ndarray) -> dict[str, float | None]:
    return metrics.summary(logits_MNC, labels_N) | metrics.ood_summary(logits_MNC, logits_MNC[:, ::2])


@pytest.mark.slow
def test_no_metric_needs_as_much_memory_as_a_copy_of_the_logits(predictions):
    logits_MNC, labels_N = predictions
    tracemalloc.start()
    everything(logits_MNC, labels_N)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < logits_MNC.size * np.float64().nbytes


def test_blocks_change_no_number(predictions, monkeypatch):
    logits_MNC, labels_N = predictions[0][:, :501], predictions[1][:501]
    in_blocks = {rule: metrics.combine(logits_MNC, rule) for rule in ("probs", "logits")}
    values = everything(logits_MNC, labels_N)
    monkeypatch.setattr(probability, "BLOCK_VALUES", logits_MNC.size)
    for rule, logp_NC in in_blocks.items():
        np.testing.assert_array_equal(logp_NC, metrics.combine(logits_MNC, rule))
    assert values == pytest.approx(everything(logits_MNC, labels_N), rel=1e-12)


@pytest.mark.parametrize("rule", ["probs", "logits"])
def test_an_example_that_is_no_prediction_is_named_by_its_place_among_all(predictions, rule):
    logits_MNC = predictions[0].copy()
    logits_MNC[3, 12_345, 7] = np.nan
    place = r"\[3, 12345\]" if rule == "probs" else r"\[12345\]"
    with pytest.raises(ValueError, match=f"logits at {place} are"):
        metrics.combine(logits_MNC, rule)
