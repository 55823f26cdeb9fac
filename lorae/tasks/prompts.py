"""A prompt's text and tokens: which of them are the example's own, what a long prompt loses, and whether the
tokenizer's first token occurs only once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorae.tasks.base import Example, Task

_MARK = "\x00\x01\x00"  # replaces a text, to find its place in a prompt


@dataclass(frozen=True)
class Own:
    """Where the example's own text is in a prompt, as indices of characters or tokens.

    Args:
        begin, question_end: begin and end of the question.
        end: end of the last option, if the prompt lists options.
    """

    begin: int
    question_end: int
    end: int


def own_text(task: Task, example: Example) -> Own:
    """The example's own characters in its prompt, found from the task's prompts for other texts; for a pair,
    those of the longer sentence. If the prompts do not show it, the whole prompt counts as its own."""
    text = task.prompt(example).text
    question = "pair" if len(example.pair or "") > len(example.question) else "question"
    try:
        asked = task.prompt(marked := replace(example, **{question: _MARK})).text
        listed = task.prompt(replace(marked, options=(_MARK,) * len(example.options))).text
    except Exception:  # a user's task may parse its texts
        asked = listed = ""
    before, after, last = asked.partition(_MARK)[0], asked.rpartition(_MARK)[2], listed.rpartition(_MARK)[2]
    if _MARK not in asked or not (text.startswith(before) and text.endswith(after) and text.endswith(last)):
        return Own(0, len(text), len(text))
    return Own(len(before), len(text) - len(after), len(text) - len(last))


def own_tokens(tokenizer: Any, text: str, tokens: Sequence[int], own: Own) -> Own:
    """The example's own tokens among a text's tokens. A token across a border belongs to what follows it."""

    def before(end: int) -> int:
        pairs = zip(tokenizer(text[:end])["input_ids"], tokens)
        return len([*itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)])

    begin = before(own.begin)
    question_end = max(begin, before(own.question_end))
    return Own(begin, question_end, max(question_end, before(own.end)))


def without_middle(tokens: tuple[int, ...], own: Own, excess: int) -> tuple[int, ...]:
    """The tokens without `excess` of them, cut from the middle of the question or, if the question is too
    short, from the middle of the question and its options. The tokens before and after stay.

    Raises:
        ValueError: nothing of the example would be left.
    """
    end = own.question_end if own.question_end - own.begin > excess else own.end
    if end - own.begin <= excess:
        others = len(tokens) - end + own.begin
        raise ValueError(
            f"the prompt has {others} tokens without the example's own text, {len(tokens) - excess} fit; "
            "raise Budget(max_tokens=...)"
        )
    cut = own.begin + (end - own.begin - excess + 1) // 2
    return tokens[:cut] + tokens[cut + excess :]


def check_first_token(tokenizer: Any, task: Task, tokens: Sequence[int]) -> None:
    """Refuse a prompt that repeats the token that the tokenizer puts before every text.

    Raises:
        ValueError: the template or the text begins with that token, or the template contains it.
    """
    first = tokens[0] if tokens else None
    if first not in (tokenizer.bos_token_id, tokenizer.cls_token_id) or tokens.count(first) < 2:
        return
    written = tokenizer.convert_ids_to_tokens(first)
    in_template = written in task.prompt_template()
    if (in_template or tokens[1] == first) and tokenizer("a")["input_ids"][:1] == [first]:
        where = "template" if in_template else "text"
        raise ValueError(f"the {where} has {written!r}, which this tokenizer puts before all; leave it out")
