"""The loss between stored members: on the line of two, and on the plane of three.

A point is one model whose update is a combination of the members' updates, W0 + sum_m share_m B_m A_m, with
the same combination of their heads: what a soup is at equal shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorae import metrics
from lorae.engine.adapters import Soup
from lorae.engine.predict_task import scored_alike
from lorae.engine.prediction import labels, predict
from lorae.engine.stored import encoded, groups, stages
from lorae.sources import Source
from lorae.store.store import Store
from lorae.tasks.base import Task


@dataclass(frozen=True)
class Point:
    """A combination of members, its NLL in nats per example and its accuracy on a test split."""

    shares: tuple[float, ...]
    nll: float
    acc: float


def points(
    store: Store,
    members: Sequence[str],
    task: Task,
    shares: Sequence[Sequence[float]],
    *,
    device: str = "cpu",
    backbone: Source | None = None,
) -> list[Point]:
    """The loss of combinations of stored members on a task's labelled test split. Nothing is stored.

    Args:
        members: ids of members of one recipe.
        task: scored as the members' own is.
        shares: of each point, a share for each member; they add up to 1.
    Raises:
        ValueError: members of several recipes or that train nothing, shares that do not fit, another prompt
            template than theirs, or examples without labels.
    """
    found = list(groups(store, members, backbone))
    if len(found) != 1 or not found[0].method.trains:
        raise ValueError("members of one trained recipe have a line between them; give those of one trial")
    for of_point in shares:
        if len(of_point) != len(members) or abs(sum(of_point) - 1) > 1e-6:
            raise ValueError(f"shares {tuple(of_point)}: must be {len(members)} numbers that add up to 1")
    group = found[0]
    model = group.loaded(device)
    rows = encoded(group, model, scored_alike(task, group))
    labels_N = labels(rows)
    if (labels_N < 0).any():
        raise ValueError(f"{task.name} has examples without a label, so there is no loss on it")
    inits, states, computed = [group.members[m]["init"] for m in members], stages(store, members)[-1], []
    for of_point in shares:
        with Soup(model, group.method, inits, states, rows[0].answer_ids, of_point):
            logp_NC = metrics.combine(predict(model, rows))
        nll, acc = metrics.ensemble_nll(logp_NC, labels_N), metrics.acc(logp_NC, labels_N)
        computed.append(Point(tuple(map(float, of_point)), nll, acc))
    return computed


def barrier(nll_K: Sequence[float]) -> float:
    """How far the loss on an evenly spaced line rises above the straight line between its ends, in nats.

    max_t [ L(t) - (1 - t) L(0) - t L(1) ], at least 0, as the ends are points.
    Source: Frankle et al. 2020, arXiv:1912.05671, section 2, with the ends' interpolation of Entezari et al.
        2022, arXiv:2110.06296, definition 1.
    """
    nll = np.asarray(nll_K)
    return float(np.max(nll - np.linspace(nll[0], nll[-1], len(nll))))
