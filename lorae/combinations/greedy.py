"""Greedy soup: the mean weights of the members that do not raise its validation NLL (Wortsman et al. 2022,
arXiv:2203.05482, recipe 1)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from lorae.combinations.base import Combination
from lorae.untrusted import number

SAME_NLL = 1e-3  # tolerance in nats: equal computations round differently on another device


class Greedy(Combination):
    """Members are tried by rising validation NLL, the best first; each joins if the soup's validation NLL
    does not rise. Source: Wortsman et al. 2022, recipe 1, which uses accuracy.

    A soup's record has "ingredients", the members in the soup in this order, and "validation_nlls", the NLL
    of the soup after each of them joined.
    """

    name = "greedy"
    rule = "weights"
    soup = "greedy soup"
    record: ClassVar[Mapping[str, Any]] = {"ingredients": [str], "validation_nlls": [number]}

    def choose(self, member_ids: Sequence[str], nll: Callable[[Sequence[str]], float]) -> dict[str, Any]:
        ingredients: list[str] = []
        nlls: list[float] = []
        for member in sorted(member_ids, key=lambda m: (nll([m]), m)):
            found = nll([*ingredients, member])
            if not nlls or found <= nlls[-1]:
                ingredients.append(member)
                nlls.append(found)
        return {"ingredients": ingredients, "validation_nlls": nlls}

    def chosen(self, record: Mapping[str, Any]) -> list[str]:
        if not _are_members(record):
            raise ValueError(
                f"a greedy soup has the ingredients {record['ingredients']}: must be some of its members; "
                "delete it and repeat the sweep"
            )
        return list(record["ingredients"])

    def faults(self, record: Mapping[str, Any], nll: Callable[[Sequence[str]], float]) -> Iterator[str]:
        ingredients, nlls = record["ingredients"], record["validation_nlls"]
        if not _are_members(record):
            yield f"its ingredients {ingredients} must be some of its members"
            return
        alone = {member: nll([member]) for member in record["members"]}
        ranked = sorted(alone, key=lambda member: (alone[member], member))
        if ingredients[0] != ranked[0] or ingredients != sorted(set(ingredients), key=ranked.index):
            yield f"its ingredients are not its members by rising validation NLL, {ranked[0]} first"
        if len(nlls) != len(ingredients) or any(b > a for a, b in itertools.pairwise(nlls)):
            yield f"an ingredient raised the soup's validation NLL, or has none: {nlls}"
        elif abs(nlls[-1] - (found := nll(ingredients))) > SAME_NLL:
            yield f"its validation NLL is {found:.6g}, not {nlls[-1]:.6g}"


def _are_members(record: Mapping[str, Any]) -> bool:
    """Whether a soup has ingredients, all of them its members."""
    return bool(record["ingredients"]) and set(record["ingredients"]) <= set(record["members"])
