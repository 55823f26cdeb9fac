"""In-context learning: the text that a member reads before every question, and its class logits."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorae import seeds
from lorae.backbone.loading import Backbone
from lorae.engine.prediction import OnRows, predict
from lorae.methods import Method
from lorae.tasks.base import Example, Split, Task
from lorae.tasks.encoding import encode
from lorae.trial import Trial

# Stored members were made with these: changing one requires another `InContext.label`
SEPARATOR = "\n\n"  # after each demonstration
NOTHING = "N/A"  # a content-free question


@dataclass(frozen=True)
class Context:
    """The text that a member reads before every question.

    Args:
        demonstrations: ids of the training examples, in order.
        text: their prompts with the right answers, each followed by SEPARATOR.
    """

    demonstrations: tuple[str, ...]
    text: str


def draw_context(tokenizer: Any, trial: Trial, member: int) -> Context:
    """The demonstrations of member `member` of an `InContext` trial, from its own stream.

    Raises:
        ValueError: fewer training examples fit `max_tokens` than there are shots.
    """
    shots, examples = trial.method.shots, trial.task.examples("train")
    order = seeds.stream(*trial.member_key(member)["demonstrations"]).permutation(len(examples))
    fitting = _fitting(tokenizer, trial, [examples[n] for n in order])
    chosen = list(itertools.islice(fitting, shots))
    if len(chosen) < shots:
        raise ValueError(
            f"shots={shots}: {len(chosen)} training examples of {trial.task.name} fit "
            f"max_tokens={trial.budget.max_tokens} with their answers; raise Budget(max_tokens=...), or take "
            "fewer shots"
        )
    text = "".join(demonstration(trial.task, example) for example in chosen)
    return Context(tuple(example.id for example in chosen), text)


def _fitting(tokenizer: Any, trial: Trial, examples: Sequence[Example]) -> Iterator[Example]:
    """The examples with at most `max_tokens` as demonstrations, tokenised lazily."""
    for example in examples:
        # The separator comes first: after other text its tokens are the same, but at the end they may differ
        text = SEPARATOR + demonstration(trial.task, example).removesuffix(SEPARATOR)
        if len(tokenizer(text)["input_ids"]) <= trial.budget.max_tokens:
            yield example


def demonstration(task: Task, example: Example) -> str:
    """An example's prompt with its right answer and the separator."""
    prompt = task.prompt(example)
    assert example.label is not None, "training examples have labels"
    return prompt.text + prompt.answers[example.label] + SEPARATOR


def predict_in_context(
    backbone: Backbone,
    method: Method,
    context: str,
    max_tokens: int,
    task: Task,
    split: Split,
    on_rows: OnRows = lambda rows: None,
) -> np.ndarray:
    """Class logits (N, C) of the untouched backbone on a split after a member's demonstrations.

    Args:
        context: the text of the demonstrations, which is never cut.
        max_tokens: limit for a question with its template; a longer one loses its middle.
        on_rows: as for `lorae.engine.prediction.predict`.
    """

    def logits(asked: Sequence[Example]) -> np.ndarray:
        rows = encode(backbone.tokenizer, task, asked, max_tokens, context=context)
        return predict(backbone, rows, on_rows=on_rows)[0]

    examples = task.examples(split)
    if not method.calibrated:
        return logits(examples)
    free = [content_free(task, example) for example in examples]
    place = {example: number for number, example in enumerate(dict.fromkeys(free))}
    free_NC = logits(list(place))[[place[example] for example in free]]
    return contextually_calibrated(logits(examples), free_NC)


def content_free(task: Task, example: Example) -> Example:
    """The example without its question, and without its options if the prompt lists them; equal for examples
    with equally many options, or with the same options if they are not listed."""
    options = (NOTHING,) * len(example.options) if task.scoring.lists_options else example.options
    return Example("content-free", NOTHING, options, None)


def contextually_calibrated(logits_NC: np.ndarray, free_NC: np.ndarray) -> np.ndarray:
    """logits - log p_cf; its softmax is the softmax of the logits divided by p_cf and normalised. Classes
    that an example lacks stay -inf.

    Args:
        free_NC: logits of each example's content-free question, of the same classes; p_cf is their softmax.
    Source: Zhao et al. 2021, arXiv:2102.09690, section 5: W = diag(p_cf)^-1, b = 0. Of the paper's
        content-free inputs only "N/A" is used.
    """
    log_p_NC = free_NC - np.logaddexp.reduce(free_NC, axis=1, keepdims=True)
    return np.subtract(logits_NC, log_p_NC, out=logits_NC.copy(), where=np.isfinite(logits_NC))
