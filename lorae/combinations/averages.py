"""Averages of the members' predictions or weights."""

from __future__ import annotations

from collections.abc import Sequence

from lorae.combinations.base import Combination
from lorae.identity import digest


class Probs(Combination):
    """The mean of the members' probabilities."""

    name = rule = "probs"


class Logits(Combination):
    """The mean of the members' logits."""

    name = rule = "logits"


class Weights(Combination):
    """The mean of the members' weights: the uniform soup of Wortsman et al. 2022, arXiv:2203.05482."""

    name = rule = "weights"
    soup = "soup"

    def entry_id(self, member_ids: Sequence[str]) -> str:
        return digest(sorted(member_ids))
