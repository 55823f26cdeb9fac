"""Draws: several predictions of one trained member, independent of its training; one file for each kind.

To add a kind, write its file and name it in `AnyDraws`.
"""

from __future__ import annotations

from typing import get_args

from lorae.draws.base import Draws, Fitted, Sampled, Sizes
from lorae.draws.laplace import Laplace
from lorae.draws.mc_dropout import MCDropout
from lorae.draws.posterior import Posterior
from lorae.draws.sampling import Fit, Sampler
from lorae.draws.swag import SWAG
from lorae.draws.tfb import TFB

__all__ = [
    "DRAWS",
    "SWAG",
    "TFB",
    "AnyDraws",
    "Draws",
    "Fit",
    "Fitted",
    "Laplace",
    "MCDropout",
    "Posterior",
    "Sampled",
    "Sampler",
    "Sizes",
    "drawn_set",
    "plain_set",
    "read_draws",
]

AnyDraws = MCDropout | Posterior | TFB | Laplace | SWAG
DRAWS: tuple[type[Draws], ...] = get_args(AnyDraws)


def read_draws(label: str) -> AnyDraws | None:
    """The draws that a table row names; None for draws that result from training alone, and for a label that
    names no draws."""
    kind, _, size = label.partition("-")
    found = next((draws for draws in get_args(AnyDraws) if draws.kind == kind), None)
    try:
        return found and found.from_label(size)
    except ValueError:
        return None


def drawn_set(eval_set: str, draws: Draws | None) -> str:
    """Name of a prediction set with these draws; `eval_set` is the plain one, `<task>__<split>__<hash>`."""
    return eval_set if draws is None else f"{eval_set}-{draws.label}"


def plain_set(eval_set: str) -> str:
    """Name of the plain set with the same examples."""
    head, _, tail = eval_set.rpartition("__")
    return f"{head}__{tail.partition('-')[0]}"
