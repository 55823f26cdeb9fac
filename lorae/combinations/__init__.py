"""How the members of an ensemble become one prediction.

To add a combination, write its file and name it in `AnyCombination`.
"""

from __future__ import annotations

from typing import get_args

from lorae.combinations.averages import Logits, Probs, Weights
from lorae.combinations.base import Combination
from lorae.combinations.greedy import Greedy

__all__ = ["COMBINATIONS", "SOUPS", "AnyCombination", "Combination", "Greedy", "Logits", "Probs", "Weights"]

AnyCombination = Probs | Logits | Weights | Greedy
COMBINATIONS: dict[str, Combination] = {kind.name: kind() for kind in get_args(AnyCombination)}
SOUPS = {name for name, combination in COMBINATIONS.items() if combination.soup}
