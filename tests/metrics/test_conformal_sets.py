"""Adaptive prediction sets by their definition, coverage of both kinds of sets, and the width of credal
intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lorae.metrics import Undefined, aps_sets, aps_threshold, credal_width, set_summary
from lorae.metrics.conformal import aps_scores


def test_an_adaptive_set_takes_classes_in_until_it_has_enough():
    logp = np.log([[0.2, 0.5, 0.3], [0.06, 0.04, 0.9]])
    assert aps_scores(logp) == pytest.approx(np.array([[1.0, 0.5, 0.8], [0.96, 1.0, 0.9]]))
    assert aps_sets(logp, 0.8).tolist() == [[False, True, True], [False, False, True]]
    assert aps_sets(logp, 0.97).tolist() == [[False, True, True], [True, False, True]]
    assert aps_sets(np.array([[0.0, -np.inf]]), 1.0).tolist() == [[True, False]], "a class that it lacks"


def test_the_threshold_is_an_order_statistic_of_the_gold_classes():
    logp, labels = np.log(np.tile([0.6, 0.3, 0.1], (9, 1))), np.array([0] * 5 + [1] * 3 + [2])
    assert [aps_threshold(logp, labels, c) for c in (0.5, 0.8, 0.9)] == pytest.approx([0.6, 0.9, 1.0])
    assert aps_threshold(logp, labels, 0.95) == math.inf


def test_sets_hold_the_true_class_as_often_as_promised_though_the_model_is_too_sure():
    rng, found = np.random.default_rng(0), []
    for _ in range(200):
        logits = 1.5 * rng.normal(size=(120, 6))
        chance = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        labels = (chance.cumsum(1) > rng.random((120, 1))).argmax(1)
        sure = 3 * logits
        logp = sure - np.log(np.exp(sure).sum(1, keepdims=True))
        found.append(set_summary(logp[:60], labels[:60], logp[60:], labels[60:]))
    means = {name: np.mean([one[name] for one in found]) for name in found[0]}
    assert means["lac_coverage90"] == pytest.approx(55 / 61, abs=0.01)
    assert 0.89 < means["aps_coverage90"] < 0.94 and 1 < means["lac_size90"] < means["aps_size90"] < 6
    few = set_summary(logp[:5], labels[:5], logp, labels)
    assert set(few.values()) == {None}, "five examples promise nothing"


def test_credal_width_is_that_of_the_top_class():
    logits = np.log(np.array([[[0.9, 0.1]], [[0.6, 0.4]], [[0.7, 0.3]]]))
    assert credal_width(logits) == pytest.approx(0.3)
    assert credal_width(logits[[0, 0]]) == pytest.approx(0)
    with pytest.raises(Undefined):
        credal_width(logits[:1])
