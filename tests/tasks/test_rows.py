"""Rows of other types than an example's fields have, and rows that no score can be made of: converted where
that has one meaning, else refused with the row, its file and its column."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from toys import write_rows

from lorae.planning.plan import check_trial
from lorae.sources import Files
from lorae.tasks import Example, Head, LabelWords, Letters, OptionLikelihood, Scoring, SocialIQA, Task
from lorae.tasks.base import Prompt
from lorae.tasks.data import DataFiles, csv, jsonl, parquet
from lorae.tasks.splits import label_faults, row_faults
from lorae.trial import Trial


@dataclass(frozen=True, kw_only=True)
class Animals(Task):
    """Rows are JSON Lines of an example's fields; `wrap` makes of a cell what JSON cannot hold."""

    scoring: Scoring = LabelWords()
    val_frac: float = 0.5
    wrap: ClassVar[dict[str, Callable[[Any], Any]]] = {}

    name = "animals"
    home = Files("/nowhere")
    train: ClassVar[DataFiles | None] = jsonl("train.jsonl")
    test: ClassVar[DataFiles] = jsonl("test.jsonl")
    template = "{question} is a"

    def example(self, row: dict[str, Any]) -> Example:
        cells = {name: self.wrap.get(name, lambda cell: cell)(row[name]) for name in row}
        return Example(cells["n"], cells["what"], cells["kinds"], cells["kind"], cells.get("group"))


GOOD = {"n": "a", "what": "a crow", "kinds": ["bird", "fish"], "kind": 1}


def animals(folder: Path, test: list[dict[str, Any]], kind: type[Task] = Animals, **settings: Any) -> Task:
    """The task with these test rows, and six of train."""
    train = [GOOD | {"n": f"train-{n}", "what": f"animal {n}"} for n in range(6)]
    for name, rows in (("train", train), ("test", test)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(GOOD | row) + "\n" for row in rows))
    return kind(source=Files(str(folder)), **settings)


def read(folder: Path, wrap: dict[str, Callable[[Any], Any]] | None = None, **cells: Any) -> Example:
    """The example that one test row becomes."""

    @dataclass(frozen=True, kw_only=True)
    class Wrapped(Animals): ...

    Wrapped.wrap = wrap or {}
    (example,) = animals(folder, [cells], Wrapped).examples("test")
    return example


@pytest.mark.parametrize(
    ("field", "value", "wrap", "became"),
    [
        ("id", {"n": 70}, {}, "70"),
        ("id", {"n": 70}, {"n": np.int32}, "70"),
        ("question", {"what": 12}, {}, "12"),
        ("question", {"what": "an eel"}, {"what": np.str_}, "an eel"),
        ("options", {"kinds": [2, 4]}, {}, ("2", "4")),
        ("label", {"kind": "0"}, {}, 0),
        ("label", {"kind": 1.0}, {}, 1),
        ("label", {"kind": 1}, {"kind": np.int64}, 1),
        ("label", {"kind": 1}, {"kind": np.float32}, 1),
        ("label", {"kind": True}, {}, 1),
        ("label", {"kind": "1", "kinds": ["0", "1"]}, {}, 1),
    ],
)
def test_what_has_one_meaning_is_converted(
    tmp_path: Path, field: str, value: dict[str, Any], wrap: dict[str, Any], became: Any
) -> None:
    found = getattr(read(tmp_path, wrap, **value), field)
    assert found == became and type(found) is type(became)


@pytest.mark.parametrize(
    ("value", "wrap", "message"),
    [
        ({"n": None}, {}, r"the id is None \(column n\); must be text"),
        ({"n": 1.5}, {}, r"the id is 1\.5 of type float \(column n\)"),
        ({"n": " "}, {}, "the id is empty"),
        ({"what": None}, {}, r"the question is None \(column what\)"),
        (
            {"what": "a crow"},
            {"what": str.encode},
            r"the question is b'a crow' of type bytes; .*\.decode\(\)",
        ),
        (
            {"what": {"text": "a crow"}},
            {},
            r"the question is \{'text': 'a crow'\} of type dict \(column what\)",
        ),
        ({"what": 0.5}, {}, r"the question is 0\.5 of type float"),
        ({"what": True}, {}, "the question is True of type bool"),
        ({"what": "half \ud83d"}, {}, "must be text without half a surrogate pair"),
        ({"kinds": ["bird", None]}, {}, r"option 1 is None \(column kinds\)"),
        ({"kinds": ["bird", ["fish"]]}, {}, r"option 1 is \['fish'\] of type list \(column kinds\)"),
        ({"kinds": "bird"}, {}, r"the options are 'bird' of type str \(column kinds\); must be a tuple"),
        ({"kinds": None}, {}, "the options are None"),
        ({"kind": 0.5}, {}, r"the label is 0\.5 of type float \(column kind\); must be the index"),
        ({"kind": float("nan")}, {}, "the label is nan of type float"),
        ({"kind": "fish"}, {}, r"the label is 'fish' .*write OPTIONS\.index"),
        ({"kind": ""}, {}, "the label is '' of type str"),
        ({"kind": "1.0"}, {}, "the label is '1.0' of type str"),
        ({"kind": [1]}, {}, r"the label is \[1\] of type list"),
        ({"kind": True, "kinds": ["x", "y", "z"]}, {}, "0 to 2, or None; a truth value has two options"),
        ({"kind": "2", "kinds": ["1", "2", "3"]}, {}, "this text is an option, too"),
        ({"kind": "-1"}, {}, r"label -1 is outside its 2 options \(-1 often hides it"),
        ({"group": 0}, {}, r"the group is 0 of type int \(column group\); .*write group=str"),
        ({"kinds": ["bird", "\t"]}, {}, r"option 1 of \('bird', '\\t'\) is blank"),
    ],
)
def test_what_has_no_meaning_is_refused_with_its_line_and_column(
    tmp_path: Path, value: dict[str, Any], wrap: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        read(tmp_path, wrap, **value)
    assert f"line 1 of {tmp_path / 'test.jsonl'}" in str(raised.value)


def test_every_row_that_is_refused_is_told(tmp_path: Path) -> None:
    rows = [{"n": f"t-{n}", "what": f"animal number {n}"} for n in range(20)]
    for bad in (3, 11, 17):
        rows[bad] |= {"kind": 7}
    task = animals(tmp_path, rows)
    faults = row_faults(task, "test")
    assert [fault.split(":")[0] for fault in faults] == [f"animals test row {n} (t-{n})" for n in (3, 11, 17)]
    assert all(f"line {n + 1} of" in fault for n, fault in zip((3, 11, 17), faults))
    with pytest.raises(ValueError, match=r"row 3 \(t-3\).*\(and 2 more: see `lorae check`\)"):
        task.examples("test")
    assert row_faults(task, "train") == ()


def test_a_csv_file_is_a_dataset(tmp_path: Path) -> None:
    """All its cells are text, so that labels and ids are converted."""

    @dataclass(frozen=True, kw_only=True)
    class Reviews(Task):
        scoring: Scoring = LabelWords()
        name = "reviews"
        home = Files(str(tmp_path))
        train = csv("train.csv.gz")
        test = csv("test.csv")

        def example(self, row: dict[str, Any]) -> Example:
            return Example(row["id"], row["text"], ("bad", "good"), row["label"])

    import gzip

    lines = "".join(f"{n},film {n},{n % 2}\n" for n in range(60))
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(b"id,text,label\n" + lines.encode()))
    (tmp_path / "test.csv").write_text("id,text,label\nx,NA,1\ny,007,0\n")
    splits = Reviews().located().splits()
    assert [(e.id, e.question, e.label) for e in splits["test"]] == [("x", "NA", 1), ("y", "007", 0)]
    assert {e.label for e in splits["train"]} == {0, 1} and splits["validation"]
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "train.csv.gz").write_bytes((tmp_path / "train.csv.gz").read_bytes())
    (tmp_path / "again" / "test.csv").write_text("id,text,label\nx,NA,1\ny,007,\n")
    with pytest.raises(ValueError, match=r"label is '' .*line 3 of .*again/test\.csv"):
        Reviews(source=Files(str(tmp_path / "again"))).examples("test")


# Texts that hold what is no text


def iqa_row(**changes: Any) -> dict[str, Any]:
    row = {"context": "Kim fell.", "question": "Why?", "answerA": "ice", "answerB": "wind", "answerC": "joy"}
    return row | {"label": "2"} | changes


@pytest.mark.parametrize("shown", [None, ["Kim", "fell."], b"Kim fell.", {"text": "Kim fell."}])
def test_a_null_in_an_f_string_is_refused(tmp_path: Path, shown: Any) -> None:
    """f"{row['context']} {row['question']}" would ask "None Why?"."""
    write_rows(tmp_path / "validation.parquet", [iqa_row(context=shown)])
    with pytest.raises(ValueError, match=r"row 0 .*column context is .*becomes part of the text") as raised:
        SocialIQA(source=Files(str(tmp_path))).examples("test")
    assert f"row 0 of {tmp_path / 'validation.parquet'}" in str(raised.value)


def test_words_like_null_are_words(tmp_path: Path) -> None:
    """A null in a column that is not read, the word None in the text, and brackets that the text has."""
    rows = [
        iqa_row(question="None of them? [sic] b'x'", answerA="None", hint=None, tags=[]),
        iqa_row(question="nan?", context="Nan sat.", hint=None, tags=["a"]),
    ]
    write_rows(tmp_path / "validation.parquet", rows)
    found = SocialIQA(source=Files(str(tmp_path))).examples("test")
    assert [e.question for e in found] == ["Kim fell. None of them? [sic] b'x'", "Nan sat. nan?"]


# A task of the user's own


@dataclass(frozen=True, kw_only=True)
class Own(Animals):
    """What is raised or returned for a row, whatever it is."""

    returned: Any = None
    at: Literal["rows", "example"] = "example"

    def rows(self, split: Literal["train", "test"]) -> list[dict[str, Any]]:
        if self.at == "rows":
            raise ZeroDivisionError("division by zero")
        return super().rows(split)

    def example(self, row: dict[str, Any]) -> Example:
        if self.returned is AttributeError:
            return row["missing" if "missing" in row else "kind"].strip()
        return self.returned


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"animals test row 0: Own\.example\(\) returns NoneType; must be an Example"),
        ({"returned": ("a", "b", ("c", "d"), 0)}, r"Own\.example\(\) returns tuple"),
        (
            {"returned": AttributeError},
            r"row 0 cannot be read \(AttributeError: 'int' object .*columns n, what",
        ),
        ({"at": "rows"}, r"animals: rows\('test'\) raises ZeroDivisionError: division by zero; correct Own"),
    ],
)
def test_whatever_a_users_task_does_is_told(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        animals(tmp_path, [{}], Own, **settings).examples("test")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (lambda e: Prompt({}["premise"], (" a", " b")), r"Own\.prompt\(\) raises KeyError: 'premise'"),
        (lambda e: e.question, r"Own\.prompt\(\) returns str; must be a Prompt"),
        (lambda e: Prompt(e.question, (" a",)), "the answers .*must be a text and 2 answers"),
        (lambda e: Prompt(e.question, (" a", "\n")), "the answers .*must be a text and 2 answers"),
        (lambda e: Prompt(" ", (" a", " b")), "gives the text ' '"),
    ],
)
def test_whatever_a_users_prompt_does_is_told(
    tmp_path: Path, prompt: Callable[[Example], Any], message: str
) -> None:
    own = dataclass(frozen=True, kw_only=True)(
        type("Own", (Animals,), {"prompt": lambda self, example: prompt(example)})
    )
    with pytest.raises(ValueError, match=message) as raised:
        animals(tmp_path, [{}], own).examples("test")
    assert f"line 1 of {tmp_path / 'test.jsonl'}" in str(raised.value)


# Trials that could not be scored


def test_one_row_without_label_is_named_unless_it_is_left_out(tmp_path: Path) -> None:
    rows = [{"n": f"t-{n}", "what": f"animal number {n}"} for n in range(9)]
    rows[4] |= {"kind": None}
    task = animals(tmp_path, rows)
    (fault,) = label_faults(task)
    assert f"animals test row 4 (t-4), line 5 of {tmp_path / 'test.jsonl'}: no label" in fault
    without = next(
        n for n in range(1, 9) if "t-4" not in {e.id for e in replace(task, num_test=n).examples("test")}
    )
    assert label_faults(replace(task, num_test=without)) == []


def test_a_trained_task_needs_test_labels_and_an_ood_task_none(tmp_path: Path, tiny_llama: Files) -> None:
    task = animals(tmp_path, [{"n": f"t-{n}", "what": f"animal number {n}", "kind": None} for n in range(3)])
    trial = Trial(backbone=tiny_llama, task=task, precision="fp32")
    with pytest.raises(ValueError, match=r"no row of test\.jsonl has a label.*name files with labels"):
        check_trial(trial, ())
    (tmp_path / "labelled").mkdir()
    labelled = animals(tmp_path / "labelled", [{"n": "x", "what": "an ox"}])
    check_trial(replace(trial, task=labelled), (task,))


def test_the_number_of_a_copy_must_be_no_id(tmp_path: Path) -> None:
    rows = [{"n": "t"}, {"n": "t"}, {"n": "t-2", "what": "an owl"}]
    with pytest.raises(
        ValueError, match="'t-2' is the id of a row, and what the copy of another row is called"
    ):
        animals(tmp_path, rows).examples("test")
    (tmp_path / "other").mkdir()
    rows[2]["n"] = "t-3"
    found = animals(tmp_path / "other", rows).examples("test")
    assert [e.id for e in found] == ["t", "t-2", "t-3"]


def test_ids_that_count_rows_are_told_from_files_that_overlap(tmp_path: Path) -> None:
    counted = animals(tmp_path, [{"n": f"train-{n}", "what": f"another animal {n}"} for n in range(4)])
    with pytest.raises(ValueError, match=r"4 ids .*'train-0'\), of other texts.*write content_id"):
        counted.splits()
    (tmp_path / "same").mkdir()
    same = animals(tmp_path / "same", [{"n": f"train-{n}", "what": f"animal {n}"} for n in range(4)])
    with pytest.raises(ValueError, match=r"4 ids .*the files overlap; copy them again"):
        same.splits()


# Options


@pytest.mark.parametrize("scoring", [OptionLikelihood(), OptionLikelihood("chars"), LabelWords(), Head()])
def test_a_blank_option_has_nothing_to_be_scored(tmp_path: Path, scoring: Scoring) -> None:
    with pytest.raises(ValueError, match=r"animals test row 0 \(a\): option 0 of \('', 'fish'\) is blank"):
        animals(tmp_path, [{"kinds": ["", "fish"]}], scoring=scoring).examples("test")


def test_a_letter_stands_for_a_blank_option(tmp_path: Path) -> None:
    task = animals(tmp_path, [{"kinds": ["", "fish"]}], scoring=Letters())
    (example,) = task.examples("test")
    assert "A) \nB) fish" in task.prompt(example).text


def test_parquet_rows_are_named_in_their_own_shard(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Shards(Animals):
        train = None
        test = parquet("test-*")

    for shard in range(2):
        rows = [
            GOOD | {"n": f"{shard}-{n}", "what": f"{shard} {n}", "kind": 3 * shard * (n == 1)}
            for n in range(2)
        ]
        write_rows(tmp_path / f"test-0000{shard}-of-00002.parquet", rows)
    with pytest.raises(ValueError, match=r"animals test row 3 \(1-1\): label 3 .*row 1 of .*test-00001-of"):
        Shards(source=Files(str(tmp_path))).examples("test")
