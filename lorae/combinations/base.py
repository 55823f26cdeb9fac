"""What every combination declares, and the defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from lorae.identity import digest
from lorae.metrics import Rule


class Combination:
    """How the members of an ensemble become one prediction.

    A combination is a class in its own file, listed in `lorae.combinations.AnyCombination`. Its module needs
    only numpy. A soup merges the members into one model, which predicts in their place and is stored as an
    entry of its own.

    Attributes:
        name: name in a trial and a row.
        rule: how the stored logits are combined, see `lorae.metrics.combine`; "weights" for a soup.
        soup: name of the merged model in tables; None = the members themselves predict.
        record: expected fields of a soup's record besides members and cost, see `lorae.untrusted.check`.
    """

    name: ClassVar[str]
    rule: ClassVar[Rule]
    soup: ClassVar[str | None] = None
    record: ClassVar[Mapping[str, Any]] = {}

    def entry_id(self, member_ids: Sequence[str]) -> str:
        """Identity of the soup of these members, whatever their order."""
        return digest([self.name, *sorted(member_ids)])

    def choose(self, member_ids: Sequence[str], nll: Callable[[Sequence[str]], float]) -> dict[str, Any]:
        """Fields of a soup's record besides its members and cost: which members are in the soup.

        Args:
            nll: members -> NLL of their mean weights on the validation examples, in nats.
        """
        return {}

    def chosen(self, record: Mapping[str, Any]) -> list[str]:
        """The members that are in a soup, according to its record.

        Raises:
            ValueError: they are not among its members.
        """
        return list(record["members"])

    def faults(self, record: Mapping[str, Any], nll: Callable[[Sequence[str]], float]) -> Iterator[str]:
        """What is wrong with a soup's record, in words.

        Args:
            nll: validation NLL of one member, or of all members that are in the soup, in nats.
        """
        return iter(())
