"""Scoring by label words."""

from __future__ import annotations

from dataclasses import dataclass

from lorae.tasks.scoring.next_token import NextToken


@dataclass(frozen=True)
class LabelWords(NextToken):
    """Score by label words: a class logit is the logit of the first token of the option's text."""

    @property
    def label(self) -> str:
        return "words"
