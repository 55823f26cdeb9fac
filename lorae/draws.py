"""Several predictions of one trained member."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MCDropout:
    """Predicts with dropout active, several times; the passes are draws of the member's predictions.

    Needs `AdapterDropout` in the recipe. The trained member is the one that predicts without dropout, too.

    Args:
        passes: number of draws, >= 1.
    Source: Gal and Ghahramani 2016, arXiv:1506.02142.
    """

    passes: int = 10

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise ValueError(f"passes={self.passes}: must be >= 1; write MCDropout(passes=10)")

    @property
    def label(self) -> str:
        return f"mc-{self.passes}"


def read_draws(label: str) -> MCDropout | None:
    """The draws that a row of a table names; None for those that a member has by its training alone."""
    kind, _, passes = label.partition("-")
    return MCDropout(int(passes)) if kind == "mc" and passes.isdecimal() else None


def drawn_set(eval_set: str, draws: MCDropout | None) -> str:
    """Name of a prediction set with these draws beside the plain one, `<task>__<split>__<hash>`."""
    return eval_set if draws is None else f"{eval_set}-{draws.label}"


def plain_set(eval_set: str) -> str:
    """Name of the plain set with the same examples."""
    head, _, tail = eval_set.rpartition("__")
    return f"{head}__{tail.partition('-')[0]}"
