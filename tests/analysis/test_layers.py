"""What layers learned: norms and cosines against dense matrices, random directions by simulation, and the
tables and figures of a small sweep."""

from __future__ import annotations

import importlib
import re

import numpy as np
import pytest

from analysis.layers import by_projection, layer_cosines, layer_norms
from analysis.matrix_fit import lora_error, main, vera_error
from lorae import metrics
from lorae.store.peft_format import Update


def update(seed: int, names: tuple[str, ...] = ("h.0.q", "h.10.q", "h.2.q", "h.0.v")) -> Update:
    rng = np.random.default_rng(seed)
    factors = {name: (rng.normal(size=(6, 2)), rng.normal(size=(2, 5))) for name in names}
    return Update(names, factors.__getitem__)


def test_norms_and_cosines_are_those_of_the_dense_updates() -> None:
    one, other = update(0), update(1)
    dense = [{n: np.matmul(*u.factors(n)) for n in u.layers} for u in (one, other)]
    assert layer_norms(one) == pytest.approx({n: np.linalg.norm(W) for n, W in dense[0].items()})
    expected = [
        np.sum(dense[0][n] * dense[1][n]) / np.linalg.norm(dense[0][n]) / np.linalg.norm(dense[1][n])
        for n in one.layers
    ]
    assert layer_cosines(one, other) == pytest.approx(expected)
    assert len(layer_cosines(one, update(2, ("h.2.q",)))) == 1


def test_layers_are_ordered_by_the_number_of_their_block() -> None:
    assert by_projection(update(0).layers) == {"q": ["h.0.q", "h.2.q", "h.10.q"], "v": ["h.0.v"]}


@pytest.mark.parametrize("n", [1, 2, 3, 40])
def test_the_cosine_of_random_directions_is_that_of_drawn_ones(n: int) -> None:
    drawn = np.random.default_rng(0).normal(size=(200_000, n))
    cosines = np.abs(drawn[:, 0]) / np.linalg.norm(drawn, axis=1)
    assert metrics.random_cosine(n) == pytest.approx(cosines.mean(), abs=4 * cosines.std() / 450 + 1e-12)


def test_a_large_matrix_is_no_overflow() -> None:
    n = 4096 * 11008
    assert metrics.random_cosine(n) == pytest.approx(np.sqrt(2 / np.pi / n), rel=1e-6)


# Fitting random matrices


def test_the_best_fit_of_lora_leaves_the_smaller_singular_values() -> None:
    W = np.diag([4.0, 3.0, 2.0, 1.0])
    assert lora_error(W, 1) == pytest.approx((9 + 4 + 1) / 30)
    assert lora_error(W, 4) == pytest.approx(0, abs=1e-12)


def test_vera_fits_what_it_can_make_and_no_step_makes_it_worse() -> None:
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(12, 8)), rng.normal(size=(8, 12))
    W = rng.normal(size=8)[:, None] * B @ (rng.normal(size=12)[:, None] * A)
    assert vera_error(W, A, B, steps=500) < 1e-6
    noise = rng.normal(size=(8, 8))
    errors = [vera_error(noise, A, B, steps=n) for n in (1, 3, 10, 60)]
    assert errors == sorted(errors, reverse=True) and errors[0] < 1


def test_a_step_of_vera_solves_least_squares() -> None:
    """The vectors after one step, against numpy's solver on the written-out design matrix."""
    rng = np.random.default_rng(1)
    A, B, W = rng.normal(size=(3, 6)), rng.normal(size=(6, 3)), rng.normal(size=(6, 6))
    M = B @ A
    b = np.sum(W * M, 1) / np.sum(M * M, 1)
    design = np.stack([np.outer(b * B[:, k], A[k]).ravel() for k in range(3)], 1)
    d = np.linalg.lstsq(design, W.ravel(), rcond=None)[0]
    M = B @ (d[:, None] * A)
    b = np.sum(W * M, 1) / np.sum(M * M, 1)
    expected = np.sum((W - b[:, None] * M) ** 2) / np.sum(W**2)
    assert vera_error(W, A, B, steps=1) == pytest.approx(expected)


def test_the_script_prints_both_at_equal_parameters_and_draws_its_figure(tmp_path, capsys) -> None:
    assert main(["--width", "16", "--matrices", "2", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    pairs = re.findall(r"\| (\d+) +\| .*?(\d\.\d+).*? \| .*?(\d\.\d+)", printed)
    assert [int(parameters) for parameters, *_ in pairs] == [32, 64, 96, 128]
    lora, vera = np.array([[float(x) for x in pair[1:]] for pair in pairs]).T
    assert (np.diff(lora) < 0).all() and (np.diff(vera) < 0).all() and lora[0] < vera[0]
    assert {"matrix-fit.pdf", "matrix-fit.svg", "matrix-fit.csv"} <= {p.name for p in tmp_path.iterdir()}
    with pytest.raises(SystemExit):
        main(["--width", "1"])


def test_the_paper_file_has_every_rank_of_both_methods() -> None:
    sweep = importlib.import_module("pipelines.vera_parameters").SWEEP
    found = {(t.method.label, t.method.rank, t.method.init_label) for t in sweep.trials()}
    assert len(found) == 6 + 6 + 2 and len(sweep.trials()) == 70
