"""What being right means for the answers of a task, told by its references."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from lorae.texts.likeness import Key
from lorae.texts.quality import (
    EXAMPLE_METRICS,
    MARK,
    QUANTITY,
    References,
    final_number,
    normalised,
)

SHORT_WORDS = 10  # of a reference, in the mean, that a text can match exactly


@dataclass(frozen=True)
class Kind:
    """How answers of one kind are compared with references and with each other.

    Args:
        right: metric of one text that says how right it is.
        key: equal for texts that say the same.
        metrics: of one text, shown as means over the examples.
        corpus: metrics of all texts at once.
    """

    name: str
    right: str
    key: Key
    metrics: tuple[str, ...]
    corpus: tuple[str, ...] = ()

    def quality(self, text: str, references: References) -> float:
        """How right a text is, in [0, 1]."""
        return EXAMPLE_METRICS[self.right](text, references)


def number_key(text: str) -> Hashable:
    """The final number; of a text without one, its words."""
    number = final_number(text)
    return normalised(text) if number is None else number


NUMBERS = Kind("number", "number_match", number_key, ("number_match",))
SHORT = Kind("short answer", "exact_match", normalised, ("exact_match", "token_f1"))
LONG = Kind(
    *("long text", "rouge_l", normalised, ("rouge_1", "rouge_2", "rouge_l", "rouge_l_e2e")),
    corpus=("bleu", "chrf", "nist", "meteor", "cider"),
)


def kind_of(references: Sequence[References]) -> Kind:
    """`NUMBERS` if every reference is a number, perhaps with a currency or a unit, or ends in GSM8K's
    "#### number"; else `SHORT` if references have at most ten words in the mean; else `LONG`."""
    texts = [text for given in references for text in given]
    if all(MARK in text or QUANTITY.fullmatch(text.strip()) for text in texts) and all(
        final_number(text) is not None for text in texts
    ):
        return NUMBERS
    return SHORT if np.mean([len(text.split()) for text in texts]) <= SHORT_WORDS else LONG
