"""Influence of examples on metrics of numbers and on Matthews correlation: the value is the metric's, and the
contributions are those of the jackknife and of the bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import matthews_corrcoef

from analysis.influence import measured, measured_values, of_mcc
from lorae.metrics import Undefined, combine, mcc, value_summary
from lorae.metrics.mixtures import Mixture

RNG = np.random.default_rng(0)
Y = RNG.normal(size=400)
VALUES = np.stack([Y + RNG.normal(0, 1, (2, 400)), RNG.normal(0, 0.3, (2, 400))], axis=2)
LABELS = RNG.integers(0, 3, 400)
LOGITS = RNG.normal(size=(2, 400, 3)) + 1.5 * (LABELS[:, None] == np.arange(3))


@pytest.mark.parametrize("name", ["rmse", "mae", "crps", "pearson", "ensemble_nll"])
def test_contributions_of_numbers_are_those_of_the_jackknife(name):
    found = measured_values(Mixture.of(VALUES), Y)[name]
    value = value_summary(VALUES, Y)[name]
    assert found.value == pytest.approx(value**2 if name == "rmse" else value)

    def without(n: int) -> float:
        kept = np.arange(len(Y)) != n
        left = value_summary(VALUES[:, kept], Y[kept])[name]
        return left**2 if name == "rmse" else left

    jackknife = np.array([without(n) for n in range(0, 400, 8)])
    moved = (len(Y) - 1) * (found.value - jackknife) / len(Y)
    assert found.examples[::8] == pytest.approx(moved, abs=0.03 * np.abs(moved).max())


def test_matthews_correlation_is_that_of_scikit_learn():
    logp = combine(LOGITS)
    assert mcc(logp, LABELS) == pytest.approx(matthews_corrcoef(LABELS, logp.argmax(1)))
    assert mcc(np.log(np.eye(3)[LABELS] * 0.9 + 0.1 / 3), LABELS) == pytest.approx(1)
    constant = np.log(np.tile([0.5, 0.3, 0.2], (400, 1)))
    with pytest.raises(Undefined, match="one class"):
        mcc(constant, LABELS)
    assert "mcc" not in measured(constant, LABELS)


def test_contributions_to_matthews_correlation_are_those_of_the_jackknife():
    logp = combine(LOGITS)
    found = of_mcc(logp, LABELS)
    jackknife = [mcc(np.delete(logp, n, 0), np.delete(LABELS, n)) for n in range(400)]
    moved = (len(LABELS) - 1) * (found.value - np.array(jackknife)) / len(LABELS)
    assert found.examples == pytest.approx(moved, abs=0.03 * np.abs(moved).max())
    assert found.examples.sum() == pytest.approx(0, abs=1e-12)
