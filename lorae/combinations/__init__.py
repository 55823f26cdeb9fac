"""How the members of an ensemble become one prediction.

To add a combination, write its file and name it in `AnyCombination`.
"""

from __future__ import annotations

from typing import get_args

from lorae.combinations.averages import Logits, Probs, Weights
from lorae.combinations.base import Combination

__all__ = ["COMBINATIONS", "SOUPS", "AnyCombination", "Combination", "Logits", "Probs", "Weights"]

AnyCombination = Probs | Logits | Weights
COMBINATIONS: dict[str, Combination] = {kind.name: kind() for kind in get_args(AnyCombination)}
SOUPS = {name for name, combination in COMBINATIONS.items() if combination.soup}
