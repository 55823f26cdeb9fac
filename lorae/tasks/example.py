"""What a task's rows become: an example, and its prompt for a causal LM."""

from __future__ import annotations

from dataclasses import dataclass

from lorae.media import Audio, Image


@dataclass(frozen=True)
class Example:
    """One question with its options or references, or an image or piece of audio with its classes.

    Args:
        id: the dataset's own id, else `content_id` of its text, or of its media's digest.
        question: with its context, where the dataset has one; empty for media.
        options: answer texts, 2 to 8; with a classification head class names, 2 to 1,000; where members write
            the answer its references, each of them right.
        label: index of the gold option, or of the reference that is trained on; None for unlabelled OOD text.
        group: validation is carved from train by whole groups (a film); None = every example is its own.
        media: the image or audio of a task of that modality.
        pair: the second sentence of a task of sentence pairs, whose first one is the question.
        value: the number to predict, of a task that is scored by `Value()`; its one option names what is
            measured, and its label is 0, None where the number is not known.
    """

    id: str
    question: str
    options: tuple[str, ...]
    label: int | None
    group: str | None = None
    media: Image | Audio | None = None
    pair: str | None = None
    value: float | None = None


@dataclass(frozen=True)
class Prompt:
    """Text up to where the answer begins, and the answer's text for each class (with its leading space).

    Args:
        pair: the second sentence, which an encoder reads apart; None where the text has all.
    """

    text: str
    answers: tuple[str, ...]
    pair: str | None = None
