"""Paths in function space: the projection keeps what lies in a plane; who stands still is one point."""

from __future__ import annotations

import numpy as np
import pytest
from sweeps import make_sweep

from analysis.data import load_trials
from analysis.paths import path_figures, principal
from lorae.methods import BatchEnsemble, Lora
from lorae.store.store import Store


def test_points_of_a_plane_keep_their_distances():
    rng = np.random.default_rng(0)
    corners = rng.dirichlet(np.ones(12), 3)  # three distributions span a plane
    weights = rng.dirichlet(np.ones(3), 9)
    p_KNC = (weights @ corners).reshape(9, 4, 3)
    paths = [np.log(p_KNC[:5]), np.log(p_KNC[5:])]
    points, share = principal(paths)
    assert [len(x) for x in points] == [5, 4]
    flat, placed = p_KNC.reshape(9, -1), np.concatenate(points)
    assert np.allclose(
        np.linalg.norm(flat[:, None] - flat, axis=-1), np.linalg.norm(placed[:, None] - placed, axis=-1)
    )
    assert share.sum() == pytest.approx(1.0) and share[0] >= share[1]


def test_members_that_never_move_are_one_point():
    still = np.log(np.full((3, 5, 2), 0.5))
    points, share = principal([still, still])
    assert np.allclose(np.concatenate(points), 0.0) and np.allclose(share, 0.0)


def test_a_model_is_drawn_once_and_told_from_others_of_its_name(tmp_path, monkeypatch):
    axes = {"method": [Lora(rank=2), Lora(rank=4), BatchEnsemble()], "members": [1, 2]}
    path_KNC = np.random.default_rng(0).normal(size=(3, 5, 2))
    monkeypatch.setattr(Store, "path", lambda store, folder: path_KNC)
    (plot,) = path_figures(load_trials(make_sweep(tmp_path, axes), "toy"))
    _, labels = plot.figure.axes[0].get_legend_handles_labels()
    assert labels == ["LoRA ensemble of 2, rank 2", "BatchEnsemble of 2", "LoRA ensemble of 2, rank 4"]
