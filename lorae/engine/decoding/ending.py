"""Strings at which a text ends, and what a tokenizer reads tokens as."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

UNKNOWN = "\ufffd"  # what a tokenizer writes for a part of a character


@dataclass(frozen=True, eq=False)
class StopStrings:
    """Strings at which a text is cut.

    Attributes:
        completing: tokens that may complete one: only texts that one of them ends are decoded after a step.
    """

    tokenizer: Any
    strings: tuple[str, ...]
    completing: torch.Tensor

    def complete(
        self, tokens_RT: torch.Tensor, rows_MS: torch.Tensor, chosen_MS: torch.Tensor, going_MS: torch.Tensor
    ) -> torch.Tensor:
        """Whether texts (M, S) hold a stop, of those that go on.

        Args:
            tokens_RT: of all texts so far.
            rows_MS: row of each text there.
            chosen_MS: the last token of each.
        """
        found_MS = torch.zeros_like(going_MS)
        if self.strings:
            going_MS = going_MS & torch.isin(chosen_MS, self.completing.to(chosen_MS.device))
            texts = decoded(self.tokenizer, tokens_RT[rows_MS[going_MS]].tolist())
            holds = [any(string in text for string in self.strings) for text in texts]
            found_MS[going_MS] = torch.tensor(holds, dtype=torch.bool, device=found_MS.device)
        return found_MS

    def cut(self, text: str) -> str:
        """What is before the first stop."""
        return text[: min((text.find(s) for s in self.strings if s in text), default=len(text))]


@functools.lru_cache(maxsize=8)
def stop_strings(tokenizer: Any, strings: tuple[str, ...], vocabulary: int) -> StopStrings:
    """The strings with the tokens that may complete them.

    Raises:
        ValueError: a string is empty, or no token has its last character.
    """
    found: set[int] = set()
    texts = decoded(tokenizer, [[token] for token in range(vocabulary)]) if strings else []
    for string in strings:
        last = string[-1:]
        # A space that a token begins with may be lost where it is decoded alone
        completing = {n for n, text in enumerate(texts) if last in text or UNKNOWN in text or last == " "}
        if not (last and any(last in texts[n] or last == " " for n in completing)):
            raise ValueError(
                f"stop={string!r}: no token of this tokenizer ends it, so no text ever would; write a string "
                "that the tokenizer can make"
            )
        found |= completing
    return StopStrings(tokenizer, strings, torch.tensor(sorted(found), dtype=torch.long))


def decoded(tokenizer: Any, ids: Sequence[Sequence[int]]) -> list[str]:
    """Texts of tokens, without special ones; what is not a token yet, below 0, is left out."""
    real = [[token for token in of_text if token >= 0] for of_text in ids]
    return tokenizer.batch_decode(real, skip_special_tokens=True, clean_up_tokenization_spaces=False)
