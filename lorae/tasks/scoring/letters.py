"""Scoring by answer letters."""

from __future__ import annotations

from dataclasses import dataclass

from lorae.tasks.example import Example, Prompt
from lorae.tasks.scoring.next_token import NextToken

LETTERS = "ABCDEFGH"
LETTERS_TEMPLATE = (
    "Return the label of the correct answer for the question below.\n\n"
    "Question: {question}\nChoices:\n{choices}\nAnswer:"
)


@dataclass(frozen=True)
class Letters(NextToken):
    """Score by answer letters: options are listed as `A) ...`, and a class logit is the logit of the letter's
    token."""

    template = LETTERS_TEMPLATE
    lists_options = True

    @property
    def label(self) -> str:
        return "letters"

    def prompt(self, template: str, example: Example) -> Prompt:
        letters = LETTERS[: len(example.options)]
        choices = "\n".join(f"{k}) {text}" for k, text in zip(letters, example.options, strict=True))
        text = LETTERS_TEMPLATE.format(question=example.question, choices=choices)
        return Prompt(text, tuple(f" {k}" for k in letters))
