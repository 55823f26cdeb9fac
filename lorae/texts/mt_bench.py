"""Answers to MT-Bench as its judges read them: `model_answer/<model>.jsonl` of FastChat's llm_judge."""

from __future__ import annotations

import json
from collections.abc import Iterable

from lorae.identity import digest
from lorae.store.answers import Answer


def model_answers(answers: Iterable[Answer], model_id: str, seconds: float) -> str:
    """JSON Lines of one answer to each question, by its number, each of one turn.

    Judges that ask for two turns take the first ones alone if their `question.jsonl` has them alone.

    Args:
        answers: one of each question; their example ids are the questions' numbers.
        model_id: name of what wrote them, and of the file.
        seconds: since 1970, when they were written.
    Raises:
        ValueError: an example id is no number, or has two answers.
    Source: github.com/lm-sys/FastChat, fastchat/llm_judge/gen_model_answer.py.
    """
    lines: dict[int, str] = {}
    for answer in answers:
        number = _question(answer.example_id)
        if number in lines:
            raise ValueError(f"question {number} has two answers of {model_id}; give those of one writer")
        row = {
            "question_id": number,
            "answer_id": digest([model_id, number, answer.text]),
            "model_id": model_id,
            "choices": [{"index": 0, "turns": [answer.text]}],
            "tstamp": seconds,
        }
        lines[number] = json.dumps(row, ensure_ascii=False)
    return "".join(f"{lines[number]}\n" for number in sorted(lines))


def _question(example_id: str) -> int:
    number = example_id.rpartition("-")[2]
    if not number.isdigit():
        raise ValueError(f"example {example_id!r}: MT-Bench's examples end in the number of their question")
    return int(number)
