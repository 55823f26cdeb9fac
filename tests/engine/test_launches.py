"""Kernels that a step launches: on a GPU they, not the arithmetic, are the time of a small step."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from stacks import prepared
from torch.utils._python_dispatch import TorchDispatchMode

from lorae.engine.training import train_stack
from lorae.trial import Budget, Trial


class Launches(TorchDispatchMode):
    """Counts the operations that compute something; views and empty tensors do not."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if not (func.is_view or "view" in name or "empty" in name or "detach" in name):
            self.counted[name] += 1
        return func(*args, **(kwargs or {}))


def launches(trial: Trial, num_layers: int, members: int) -> Counter[str]:
    """Of a second step of a stack on the first layers of its backbone, beside the first."""
    backbone, data = prepared(trial)
    body, counted = backbone.lm.base_model, list[Counter[str]]()
    whole, body.layers = body.layers, body.layers[:num_layers]
    try:
        for steps in (1, 2):
            with Launches() as mode:
                budget = Budget(batch_size=4, steps=steps)
                train_stack(backbone, replace(trial, budget=budget), range(members), data)
            counted.append(mode.counted)
    finally:
        body.layers = whole
    return counted[1] - counted[0]


@pytest.mark.parametrize(("precision", "most"), [("fp32", 164), ("bf16", 184)])
def test_a_layer_launches_no_more_kernels_than_ever_whatever_the_number_of_members(
    tiny_trial, precision, most
):
    """With adapters on q and v, on a CPU: its attention and norms are written out, a GPU's are one each."""
    trial = tiny_trial(precision=precision)
    one, five = (launches(trial, 3, members) - launches(trial, 2, members) for members in (1, 5))
    assert one == five and five.total() <= most
