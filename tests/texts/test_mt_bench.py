"""Answers to MT-Bench in the judges' format."""

from __future__ import annotations

import json

import numpy as np
import pytest
from answers import VOCABULARY, answer

from lorae.texts.mt_bench import model_answers

LOGITS = np.zeros((1, 2, VOCABULARY))


def test_each_question_is_one_line_as_fastchat_writes_it():
    answers = [answer(text, LOGITS, example=n) for n, text in (("100", "Zwei\nZeilen"), ("81", "Aloha é"))]
    rows = [json.loads(line) for line in model_answers(answers, "lora-0", 1.5).splitlines()]
    assert [row["question_id"] for row in rows] == [81, 100]
    assert rows[1]["choices"] == [{"index": 0, "turns": ["Zwei\nZeilen"]}]
    assert [*rows[0]] == ["question_id", "answer_id", "model_id", "choices", "tstamp"]
    assert rows[0]["model_id"] == "lora-0" and rows[0]["tstamp"] == 1.5
    again = [json.loads(line) for line in model_answers(answers, "lora-1", 1.5).splitlines()]
    assert len({row["answer_id"] for row in rows + again}) == 4


def test_two_answers_or_a_question_without_a_number_are_refused():
    with pytest.raises(ValueError, match="question 81 has two answers of m"):
        model_answers([answer("a", LOGITS, example="81")] * 2, "m", 0)
    with pytest.raises(ValueError, match=r"'haiku'.*number of their question"):
        model_answers([answer("a", LOGITS, example="haiku")], "m", 0)
