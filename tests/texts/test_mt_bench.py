"""Answers to MT-Bench in the judges' format."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from answers import VOCABULARY, answer, pool
from sweeps import make_sweep

from analysis import instruct
from analysis.data import load_trials
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


# Of a sweep -----------------------------------------------------------------------------------------------


def test_every_writer_of_a_sweep_has_a_file_of_its_own(tmp_path, monkeypatch):
    axes = {"members": [0, 1, 3], "seed": [0, 1]}
    trials = load_trials(make_sweep(tmp_path, axes), "toy")
    rows = [row | {"eval_sets": row["eval_sets"].replace("greys", "mt_bench")} for row in trials.rows]
    asked: list[str] = []

    def stored(_, row, where):
        asked.append(where)
        whole = [
            replace(a, example_id=a.example_id[1:], text=f"{row['members']} {a.text}")
            for a in pool(5, 3, 1, row["seed"], lockstep=2)
        ]
        return whole if row["members"] == 3 else [a for a in whole if a.kind == "greedy" and not a.source]

    monkeypatch.setattr("analysis.generation.stored_answers", stored)
    found = instruct.model_answer_files(replace(trials, rows=tuple(rows)))
    assert set(asked) == {"mt_bench"} and len(found) == len(set(found)) == 1 + 2 + 2 * 2
    by_writer = {name.rsplit("-", 1)[0].split("/")[1]: text for name, text in found.items()}
    assert {w for w in by_writer if "seed0" in w} == {
        *("LoRA-none-members1-seed0-member", "LoRA-none-members3-seed0-lockstep-mean"),
        "LoRA-none-members3-seed0-lockstep-logits",
    }
    lines = by_writer["LoRA-none-members3-seed0-lockstep-mean"].splitlines()
    assert len(lines) == 5 and json.loads(lines[0])["choices"][0]["turns"][0].startswith("3 The answer")
