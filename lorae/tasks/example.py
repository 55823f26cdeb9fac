"""What a task's rows become: an example, and its prompt for a causal LM."""

from __future__ import annotations

from dataclasses import dataclass

from lorae.media import Audio, Image


@dataclass(frozen=True)
class Example:
    """One question with its options or references, or an image or audio clip with its classes.

    Args:
        id: the dataset's own id, or the `content_id` of the text or of the media's digest.
        question: with its context, if the dataset has one; empty for media.
        options: answer texts, 2 to 8; with a classification head, class names, 2 to 30,000; if members write
            the answer, references, each of them right.
        label: index of the gold option, or of the reference that is trained on; None for unlabelled OOD text.
        group: validation is carved from train by whole groups (a film); None = the example is its own group.
        media: the image or audio, if the task has that modality.
        pair: the second sentence, for a task of sentence pairs; the first sentence is the question.
        value: the number to predict, for a task that is scored by `Value()`; its only option names what is
            measured, and its label is 0, or None if the number is not known.
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
    """Text before the answer, and the answer's text for each class (with its leading space).

    Args:
        pair: the second sentence, which an encoder reads separately; None if the text contains everything.
    """

    text: str
    answers: tuple[str, ...]
    pair: str | None = None
