"""Members in weight space: how similar their updates are, their rank, and what is new to the backbone.

A member changes the weight of an adapted layer by dW = B A, given as its factors `B_ER` (with LoRA's
alpha / rank multiplied in) and `A_RD`; E is d_out, D is d_in. Nothing here forms dW, except that
`num_intruder_dimensions` adds it to the backbone's weight, which is as large. All computations are in
float64, except singular vectors of whole weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lorae.metrics.probability import Undefined, at_least_two

Factors = tuple[np.ndarray, np.ndarray]  # B_ER, A_RD
NUM_VECTORS = 10  # singular vectors that `num_intruder_dimensions` checks


def update_products(factors: Sequence[Factors]) -> np.ndarray:
    """Frobenius inner products <dW_i, dW_j> of the members' updates of one layer, (M, M).

    tr(dW_i^T dW_j) is the sum over the entries of (B_i^T B_j) * (A_i A_j^T), two R x R matrices. The products
    for a whole model, all layers in one vector, are the sum over its layers; the diagonal has squared norms.
    """
    wide = [(np.asarray(B_ER, np.float64), np.asarray(A_RD, np.float64)) for B_ER, A_RD in factors]
    products_MM = np.empty((len(wide), len(wide)))
    for i, (B_ER, A_RD) in enumerate(wide):
        for j, (other_ER, other_RD) in enumerate(wide[: i + 1]):
            products_MM[i, j] = products_MM[j, i] = np.sum((B_ER.T @ other_ER) * (A_RD @ other_RD.T))
    return products_MM


def update_cosine(products_MM: np.ndarray) -> float:
    """Mean over pairs of members of the cosine similarity of their updates, in [-1, 1].

    1 for equal directions, 0 for orthogonal directions.

    Args:
        products_MM: inner products of the members' updates, from `update_products`.
    Raises:
        Undefined: fewer than two members, or a member's update is zero.
    """
    norm_M = np.sqrt(np.diag(products_MM))
    at_least_two(norm_M, "update_cosine")
    if not norm_M.all():
        raise Undefined("update_cosine", f"member {norm_M.argmin()} does not change the backbone")
    cosine_MM = products_MM / np.outer(norm_M, norm_M)
    return float(cosine_MM[np.triu_indices(len(norm_M), k=1)].mean().clip(-1, 1))


def singular_values(B_ER: np.ndarray, A_RD: np.ndarray) -> np.ndarray:
    """The singular values of dW = B A that can differ from zero, in falling order.

    They equal those of the core, at most R x R, between the orthonormal factors of B and A^T (QR).
    """
    _, left = np.linalg.qr(np.asarray(B_ER, np.float64))
    _, right = np.linalg.qr(np.asarray(A_RD, np.float64).T)
    return np.linalg.svd(left @ right.T, compute_uv=False)


def stable_rank(singular_values_R: np.ndarray) -> float:
    """||dW||_F^2 / ||dW||_2^2, from 1 to the rank: how many directions carry the squared norm.

    Raises:
        Undefined: the update is zero.
    Source: Rudelson and Vershynin 2007, arXiv:math/0503442.
    """
    squared_R = _nonzero(singular_values_R, "stable_rank") ** 2
    return float(squared_R.sum())


def effective_rank(singular_values_R: np.ndarray) -> float:
    """exp of the entropy of the singular values divided by their sum, from 1 to the rank.

    Raises:
        Undefined: the update is zero.
    Source: Roy and Vetterli 2007, EUSIPCO, definition 1.
    """
    share_R = _nonzero(singular_values_R, "effective_rank")
    share_R = share_R[share_R > 0] / share_R.sum()
    return float(np.exp(-np.sum(share_R * np.log(share_R))))


def _nonzero(singular_values_R: np.ndarray, metric: str) -> np.ndarray:
    """The singular values divided by the largest."""
    largest = np.max(singular_values_R)
    if largest == 0:
        raise Undefined(metric, "the update is zero")
    return np.asarray(singular_values_R) / largest


def left_singular_vectors(W_ED: np.ndarray) -> np.ndarray:
    """The min(E, D) left singular vectors of a weight as columns, by falling singular value, in float32."""
    return np.linalg.svd(np.asarray(W_ED, np.float32), full_matrices=False)[0]


def num_intruder_dimensions(
    W_ED: np.ndarray,
    B_ER: np.ndarray,
    A_RD: np.ndarray,
    left_EK: np.ndarray | None = None,
    eps: float = 0.5,
) -> int:
    """Number of intruders among the first 10 left singular vectors of W + dW; W is the backbone's weight.

    An intruder has an absolute cosine similarity below `eps` with every left singular vector of W.

    Args:
        left_EK: `left_singular_vectors` of W, to reuse when measuring several updates of one weight.
        eps: in (0, 1].
    Source: Shuttleworth et al. 2024, arXiv:2410.21228, algorithm 1; 10 (at most one less than the
        smaller side of W) and eps follow PEFT's `reduce_intruder_dimension`.
    """
    from scipy.sparse.linalg import svds  # here, as it would slow `import lorae.metrics` by half a second

    left_EK = left_singular_vectors(W_ED) if left_EK is None else left_EK
    tuned_ED = np.asarray(W_ED + B_ER @ A_RD, np.float32)
    start = np.random.default_rng(0).normal(size=min(tuned_ED.shape)).astype(np.float32)
    tuned_EK = np.asarray(svds(tuned_ED, min(NUM_VECTORS, min(tuned_ED.shape) - 1), v0=start)[0])
    return int(np.sum(np.abs(tuned_EK.T @ left_EK).max(axis=1) < eps))


def random_cosine(num_entries: int) -> float:
    """Mean absolute cosine similarity of an update with one in a uniformly random direction.

    Gamma(n/2) / (sqrt(pi) Gamma((n+1)/2)), about sqrt(2 / (pi n)) for n entries: what updates that have
    nothing in common show.

    Args:
        num_entries: entries of a layer's weight, or of several.
    """
    return math.exp(math.lgamma(num_entries / 2) - math.lgamma((num_entries + 1) / 2)) / math.sqrt(math.pi)
