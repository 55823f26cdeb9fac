"""Examples as token rows, made without torch.

A task's scoring makes the rows (`lorae.tasks.scoring`). This module has what all scorings of prompts share:
where an answer's tokens begin, what a long prompt loses, and that the first token occurs only once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lorae.tasks.prompts import Own, check_first_token, own_text, own_tokens, without_middle

if TYPE_CHECKING:
    import numpy as np

    from lorae.media import Audio, Image
    from lorae.methods import Method
    from lorae.tasks.base import Task
    from lorae.tasks.example import Example, Prompt
    from lorae.tasks.scoring import Scoring


@dataclass(frozen=True)
class Row:
    """One encoded example.

    Args:
        tokens: the prompt; for option likelihood, followed by the options.
        scoring: how its class logits are read.
        answer_ids: token of each class (letters, label words), or its place in a head; empty for option
            likelihood.
        segments: option number of each token, -1 for the question; only for option likelihood.
        norms: divisor of each option's log-probability; only for option likelihood.
        types: type of each token of a pair, 0 in the first sentence and 1 in the second; empty for an encoder
            without types, and for everything else.
        value: the number to predict; NaN if it is not known, and for classes.
        truncated: tokens cut from the middle of the example's own text; for a head, from its end.
        media: image or audio; only for a head.
        features: hidden state (D,) that class logits are read from, if the backbone is not run again
            (`lorae.engine.prediction.with_features`).
    """

    id: str
    label: int
    num_classes: int
    tokens: tuple[int, ...]
    answer_ids: tuple[int, ...] = ()
    segments: tuple[int, ...] = ()
    norms: tuple[float, ...] = ()
    types: tuple[int, ...] = ()
    value: float = math.nan
    truncated: int = 0
    media: Image | Audio | None = None
    features: np.ndarray | None = field(default=None, compare=False, repr=False)
    scoring: Scoring = field(kw_only=True)


def encode(
    tokenizer: Any,
    task: Task,
    examples: Sequence[Example],
    max_tokens: int,
    classes: tuple[str, ...] | None = None,
    context: str = "",
) -> list[Row]:
    """Rows of the examples; a row longer than `max_tokens` loses the middle of the example's own text, or its
    end with an encoder.

    Args:
        tokenizer: tokenizer of a causal LM, or the `Inputs` of an encoder.
        classes: names of the head's classes, for every row; an example with other classes has no label.
            None = the examples' own classes.
        context: text before every prompt, which is never cut and does not count towards `max_tokens`.
    Raises:
        ValueError: two classes of an example start with the same token, an answer or the template does not
            fit `max_tokens`, the first token occurs twice, or an image or audio clip is damaged.
    """
    return task.scoring.encode(tokenizer, task, examples, max_tokens, classes, context)


def head_classes(task: Task) -> tuple[str, ...] | None:
    """Class names of the heads that are trained on a task; None for other scorings."""
    return task.examples("train")[0].options if task.scoring.trains_head else None


def head_answers(method: Method, task: Task) -> tuple[str, ...] | None:
    """Answers whose rows of the language model's head are trained on a task; None if no rows are trained."""
    if method.regime != "features" or task.scoring.trains_head:
        return None
    return task.prompt(task.examples("train")[0]).answers


def shared_options(task: Task) -> tuple[str, ...] | None:
    """The options that all training examples share, in the order of the labels; None if they differ."""
    found = {example.options for example in task.examples("train")}
    return found.pop() if len(found) == 1 else None


@dataclass(frozen=True)
class Asked:
    """A prompt with its tokens and its answers' tokens.

    Args:
        row: the prompt, uncut and without its answers.
        answers: tokens of each answer.
        max_tokens: limit on prompt and answer together.
        context: text before the prompt, and its number of tokens in the row.
    """

    tokenizer: Any
    task: Task
    example: Example
    prompt: Prompt
    row: Row
    answers: tuple[tuple[int, ...], ...]
    max_tokens: int
    context: tuple[str, int]

    @property
    def where(self) -> str:
        """The example, for messages."""
        return f"{self.task.name} {self.example.id}"

    def shortened(self, reserved: int = 0) -> Row:
        """The row; if it does not fit, without the middle of its example's own text.

        Args:
            reserved: tokens of `max_tokens` that the answers take.
        Raises:
            ValueError: the template alone does not fit.
        """
        context, kept = self.context
        row, excess = self.row, len(self.row.tokens) - (self.max_tokens + kept - reserved)
        if excess <= 0:
            return row
        own, text = own_text(self.task, self.example), context + self.prompt.text
        own = Own(*(len(context) + place for place in (own.begin, own.question_end, own.end)))
        try:
            tokens = without_middle(row.tokens, own_tokens(self.tokenizer, text, row.tokens, own), excess)
        except ValueError as error:
            raise ValueError(f"{self.where}: {error}") from error
        return replace(row, tokens=tokens, truncated=excess)


def ask(
    tokenizer: Any, task: Task, examples: Sequence[Example], max_tokens: int, context: str
) -> Iterator[Asked]:
    """The examples' prompts; arguments and errors as for `encode`."""
    prompts = [task.prompt(e) for e in examples]
    # An answer's tokens are the ones after the prompt's tokens when both are tokenised together.
    texts = [context + p.text for p in prompts]
    heads = tokenizer(texts, return_offsets_mapping=bool(context))
    answered = [text + answer for text, p in zip(texts, prompts) for answer in p.answers]
    whole = iter(tokenizer(answered)["input_ids"] if answered else ())  # a set may have no reference at all
    for n, (example, prompt, head) in enumerate(zip(examples, prompts, heads["input_ids"])):
        check_first(tokenizer, task, example, head)
        answers = tuple(_answer_tokens(head, next(whole), example.id) for _ in prompt.answers)
        label = -1 if example.label is None else example.label
        row = Row(example.id, label, len(answers), tuple(head), scoring=task.scoring)
        kept = _context_tokens(heads["offset_mapping"][n], context) if context else 0
        yield Asked(tokenizer, task, example, prompt, row, answers, max_tokens, (context, kept))


def check_first(tokenizer: Any, task: Task, example: Example, tokens: Sequence[int]) -> None:
    """`check_first_token`, with the example's id in its message."""
    try:
        check_first_token(tokenizer, task, tokens)
    except ValueError as error:
        raise ValueError(f"{task.name} {example.id}: {error}") from error


def _answer_tokens(head: list[int], whole: list[int], example_id: str) -> tuple[int, ...]:
    if whole[: len(head)] != head or len(whole) <= len(head):
        raise ValueError(
            f"{example_id}: this tokenizer joins the prompt's end with the answer; it is not supported"
        )
    return tuple(whole[len(head) :])


def _context_tokens(spans: Sequence[tuple[int, int]], context: str) -> int:
    """Number of tokens of the context that a text begins with, from the characters of each token. (Tokenised
    alone, the context may end differently: GPT-2's tokenizer joins newlines if nothing follows.)"""
    return sum(1 for _ in itertools.takewhile(lambda span: span[1] <= len(context), spans))
