"""Paths in function space: the projection keeps what lies in a plane; who stands still is one point."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.paths import principal


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
