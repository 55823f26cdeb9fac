"""Tasks whose answer is a text: their rows in hub schema, and a task of the user's own."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from toys import write_split

from lorae.sources import Files, Hub
from lorae.tasks import (
    E2E,
    GSM8K,
    SVAMP,
    DisflQA,
    Generate,
    MTBench,
    Scoring,
    SQuAD,
    Task,
    TriviaQA,
    text_example,
)
from lorae.tasks.data import parquet
from lorae.tasks.splits import row_faults

# Copies of public datasets, where there are any
COPIES = Path(os.environ.get("LORAE_DATA_ROOT") or Path(__file__).parents[3] / "shared" / "data")


def located(task: Task) -> Task:
    if not (COPIES / task.home.id).is_dir():
        pytest.skip(f"no copy of {task.home.id} is at hand")
    return task.located(COPIES)


def test_gsm8k_keeps_the_steps_and_leaves_out_the_calculator():
    splits = located(GSM8K()).splits()
    assert [len(splits[s]) for s in ("train", "validation", "test")] == [6769, 704, 1319]
    first = splits["test"][0]
    assert first.options[0].startswith("Janet sells 16 - 3 - 4 = 9 duck eggs a day.\n")
    assert first.options[0].endswith("\n#### 18")
    assert not any("<<" in e.options[0] or ">>" in e.options[0] for e in splits["train"])


def test_svamp_asks_for_a_plain_number():
    task = located(SVAMP())
    example = task.examples("test")[0]
    assert (example.id, example.options) == ("chal-363", ("1",))
    prompt = task.prompt(example)
    assert prompt.text.endswith(
        "than cups of salt does she need to add now?\nAnswer:"
    ) and prompt.answers == (" 1",)


def test_squad_shows_what_holds_the_answer():
    task = located(SQuAD())
    splits = task.splits()
    for example in (*splits["validation"], *splits["test"]):
        shown = example.question.rpartition("\nQuestion: ")[0]
        assert len(shown) <= 700 and any(text in shown for text in example.options)
    assert {e.group for e in splits["train"]}.isdisjoint(e.group for e in splits["validation"])
    assert max(len(e.options) for e in splits["test"]) > 1


def test_trivia_qa_trains_on_the_value_and_accepts_aliases():
    example = located(TriviaQA()).examples("test")[0]
    assert example.options[:2] == ("Onion", "Onion skins") and example.label == 0
    plain = ["".join(c for c in text.casefold() if c.isalnum()) for text in example.options]
    assert len(set(plain)) == len(plain)


@pytest.mark.slow
def test_e2e_groups_the_references_of_a_meaning_where_it_is_evaluated():
    splits = located(E2E()).splits()
    assert len(splits["test"]) == 630 and sum(len(e.options) for e in splits["test"]) >= 4690
    assert {len(e.options) for e in splits["train"]} == {1}
    assert {e.question for e in splits["train"]}.isdisjoint(e.question for e in splits["validation"])
    assert splits["test"][0].options[0] == "A coffee shop in the city centre area called Blue Spice."


def test_mt_bench_has_prompts_without_a_reference():
    examples = located(MTBench()).examples("test")
    assert len(examples) == 80 and {e.label for e in examples} == {None, 0}
    assert all(bool(e.options) == (e.label == 0) for e in examples)


@pytest.mark.process
def test_the_embedded_task_has_paragraphs_of_its_own_in_every_split():
    splits = DisflQA().located().splits()
    assert [len(splits[s]) for s in ("train", "validation", "test")] == [315, 32, 138]
    groups = [{e.group for e in examples} for examples in splits.values()]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]


@dataclass(frozen=True, kw_only=True)
class Capitals(Task):
    """A user's own task: all that it needs."""

    scoring: Scoring = Generate(max_new_tokens=8)

    name: ClassVar[str] = "capitals"
    home: ClassVar[Hub] = Hub("toy/capitals")
    train = parquet("train-*")
    test = parquet("test-*")

    def example(self, row: dict[str, Any]):
        return text_example(row["question"], row["answer"])


ANSWERS = {
    "text": ("Paris", ("Paris",)),
    "list": (["Paris", "City of Light", "Paris"], ("Paris", "City of Light")),
    "squad": ({"text": ["Paris", "in Paris"], "answer_start": [0, 3]}, ("Paris", "in Paris")),
    "trivia": ({"value": "Paris", "aliases": ["Lutetia"], "type": "x"}, ("Paris", "Lutetia")),
    "structs": ([{"text": ["Paris"]}, {"text": ["Lutetia"]}], ("Paris", "Lutetia")),
    "whole": (-12, ("-12",)),
    "decimal": ([2.5, 3.0], ("2.5", "3")),
}


@pytest.mark.parametrize("answer,references", ANSWERS.values(), ids=ANSWERS)
def test_a_question_and_an_answer_column_are_a_task(tmp_path, answer, references):
    write_split(tmp_path, "train", [{"question": f"Where is {n}?", "answer": answer} for n in range(40)])
    write_split(tmp_path, "test", [{"question": "What is the capital of France?", "answer": answer}])
    task = Capitals(source=Files(str(tmp_path))).located()
    (example,) = task.examples("test")
    assert example.options == references and example.label == 0
    assert task.prompt(example).text == "Question: What is the capital of France?\nAnswer:"
    assert task.splits()["validation"]


@pytest.mark.parametrize("answer", ["", "  ", ["Paris", ""]])
def test_an_empty_reference_is_refused_with_its_row(tmp_path, answer):
    write_split(tmp_path, "test", [{"question": "Where?", "answer": answer}])
    (fault,) = row_faults(Capitals(source=Files(str(tmp_path))).located(), "test")
    assert "is blank, so nothing of it can be scored" in fault and "row 0 of" in fault


def test_a_training_row_without_a_reference_is_refused(tmp_path):
    write_split(tmp_path, "train", [{"question": "Where?", "answer": []}])
    (fault,) = row_faults(Capitals(source=Files(str(tmp_path))).located(), "train")
    assert "no label; training needs one" in fault


@pytest.mark.parametrize(
    "answer,why",
    [
        ({"spans": ["Paris"]}, r"its references are a struct of spans; name the one that holds"),
        (True, r'its reference is True of type bool; write a text, such as "yes" if'),
    ],
)
def test_references_that_are_no_text_are_refused_with_what_to_write(tmp_path, answer, why):
    write_split(tmp_path, "test", [{"question": "Where?", "answer": answer}])
    (fault,) = row_faults(Capitals(source=Files(str(tmp_path))).located(), "test")
    assert re.search(why, fault) and "correct or remove row 0 of" in fault


@pytest.mark.parametrize("end,space", [("\nAnswer:", " "), ("\n### Response:\n", "")])
def test_an_answer_begins_with_a_space_unless_on_a_line_of_its_own(end, space):
    prompt = Generate().prompt("{question}" + end, text_example("Why?", " because \n"))
    assert prompt.answers == (f"{space}because",)
