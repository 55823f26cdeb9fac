"""The KL divergence of learned Gaussians from their prior, by its gradient in closed form: KL(N(m, s^2) ||
N(m0, s0^2)) has (m - m0) / s0^2 and s / s0^2 - 1 / s. Each element's is its own, so no member sees another.
"""

from __future__ import annotations

import torch

from lorae.adapters import Adapters
from lorae.methods import Blob, Rank1BNN

FLOOR = 1e-6  # of a standard deviation, so that 1 / s is finite


@torch.no_grad()
def descend_kl(adapters: Adapters, method: Blob, weight: float) -> None:
    """A step of gradient descent on KL(N(A, G^4) || N(0, prior_std^2)), after that of the optimizer.

    Args:
        weight: of the divergence, summed over a member's elements, beside `method.kl_lr`.
    """
    size, variance = method.kl_lr * weight, method.prior_std**2
    for layer in adapters.layers:
        A, _, G = adapters.factors(layer)
        std = G**2
        A -= size * A / variance
        G -= size * (std / variance - 1 / (std + FLOOR)) * 2 * G


@torch.no_grad()
def add_kl_gradient(adapters: Adapters, method: Rank1BNN, weight: float) -> None:
    """Add to the gradients of r, s and their rho that of `weight` times the KL divergence from N(1,
    prior_std^2)."""
    variance = method.prior_std**2
    for layer in adapters.layers:
        r, s, *rhos = adapters.factors(layer)
        for mean, rho in zip((r, s), rhos):
            assert mean.grad is not None and rho.grad is not None
            std = torch.nn.functional.softplus(rho)
            mean.grad += weight * (mean - 1) / variance
            rho.grad += weight * (std / variance - 1 / (std + FLOOR)) * rho.sigmoid()
