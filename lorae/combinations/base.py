"""What every combination says of itself; what it leaves out, it has from here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from lorae.identity import digest
from lorae.metrics import Rule


class Combination:
    """How the members of an ensemble become one prediction.

    A combination is a class with a file of its own and a place in `lorae.combinations.AnyCombination`. Its
    module needs numpy only. A soup is one that makes one model of the members, which predicts in their place
    and is stored as an entry of its own.

    Attributes:
        name: what a trial and a row call it.
        rule: by which the stored logits are combined, see `lorae.metrics.combine`; "weights" of a soup.
        soup: what tables call the one model; None = the members themselves predict.
        record: shape of what a soup's record has beside its members and cost, see `lorae.untrusted.check`.
    """

    name: ClassVar[str]
    rule: ClassVar[Rule]
    soup: ClassVar[str | None] = None
    record: ClassVar[Mapping[str, Any]] = {}

    def entry_id(self, member_ids: Sequence[str]) -> str:
        """Of a soup that is made of these members, whatever their order."""
        return digest([self.name, *sorted(member_ids)])

    def choose(self, member_ids: Sequence[str], nll: Callable[[Sequence[str]], float]) -> dict[str, Any]:
        """What a soup's record says beside its members and cost: which of them are in it.

        Args:
            nll: of the mean weights of some members on the validation examples, in nats.
        """
        return {}

    def chosen(self, record: Mapping[str, Any]) -> list[str]:
        """The members that are in a soup, by its record.

        Raises:
            ValueError: they are none of its members.
        """
        return list(record["members"])

    def faults(self, record: Mapping[str, Any], nll: Callable[[Sequence[str]], float]) -> Iterator[str]:
        """What is wrong with a soup's record, in words.

        Args:
            nll: of one of its members, or of all that are in it, on the validation examples, in nats.
        """
        return iter(())
