"""Examples of a task's files, with every row checked, and the splits made from them."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lorae.tasks.base import CONTENT_ID, MEDIA, Example, Prompt, Split, Task, hash_frac
from lorae.tasks.rows import check_disguised, first_blank, place_of, typed


@functools.lru_cache(maxsize=64)
def splits(task: Task) -> dict[Split, tuple[Example, ...]]:
    """See `Task.splits`."""
    test, pool = _checked(task, "test"), _checked(task, "train")
    _check_overlap(task, test, pool)
    test_texts = {_text(e) for e in test}
    pool = tuple(e for e in pool if _text(e) not in test_texts)  # a text in both stays only in test
    in_validation = {e.id for e in pool if hash_frac("validation", e.group or e.id) < task.val_frac}
    found: dict[Split, tuple[Example, ...]] = {
        "train": _take(task, "train", [e for e in pool if e.id not in in_validation]),
        "validation": _take(task, "validation", [e for e in pool if e.id in in_validation]),
        "test": test_examples(task),
    }
    for split in ("train", "validation"):
        if task.train and not found[split]:
            raise ValueError(
                f"{task.name}: the {split} split is empty ({len(pool)} examples in the train files, "
                f"val_frac={task.val_frac}); check the files, or write another val_frac"
            )
    return found


def test_examples(task: Task) -> tuple[Example, ...]:
    """The test split, without reading the train files."""
    examples = _checked(task, "test")
    if not examples:
        raise ValueError(f"{task.name}: the test split is empty; check {', '.join(task.test.patterns[:3])}")
    return _take(task, "test", examples)


def row_faults(task: Task, split: Literal["train", "test"]) -> tuple[str, ...]:
    """What is wrong with the rows of a split's files, each fault with its row and file.

    Raises:
        ValueError: a file is missing or cannot be read.
    """
    return tuple(_read(_whole(task), split).faults)


def label_faults(task: Task) -> list[str]:
    """Rows of the test split without a label: members trained on such a task could not be scored."""
    reading = _read(_whole(task), "test")
    places, examples = reading.unlabelled, reading.examples if reading.faults else task.examples("test")
    lacking = [places[e.id] for e in examples if e.label is None]
    if lacking and len(lacking) == len(examples):
        return [
            f"{task.name}: no row of {', '.join(task.test.patterns[:3])} has a label, so members that are "
            "trained on this task could not be scored; name files with labels, such as the validation split, "
            "as test"
        ]
    return [
        f"{where}: no label, so the test split cannot be scored; correct or remove it" for where in lacking
    ]


def _check_overlap(task: Task, test: Sequence[Example], pool: Sequence[Example]) -> None:
    tested = {e.id: e for e in test}
    overlap = [e for e in pool if e.id in tested and not e.id.startswith(CONTENT_ID)]
    if not overlap:
        return
    first = min(e.id for e in overlap)
    what = f"{task.name}: {len(overlap)} ids are in train and in test (first: {first!r})"
    if any(_text(e) == _text(tested[e.id]) for e in overlap):
        raise ValueError(f"{what}; the files overlap; copy them again")
    raise ValueError(
        f"{what}, of other texts: each file counts its rows from the beginning; write "
        "content_id(row[...]) of the question as the id"
    )


def _whole(task: Task) -> Task:
    """The task without subsets, so that all its subsets share one reading of the files."""
    return replace(task, num_train=None, num_validation=None, num_test=None)


def _checked(task: Task, split: Literal["train", "test"]) -> tuple[Example, ...]:
    """Examples of the files of one split, with unique ids.

    Raises:
        ValueError: says what is wrong with the first refused row.
    """
    reading = _read(_whole(task), split)
    refuse(reading.faults)
    return tuple(reading.examples)


def refuse(faults: Sequence[str]) -> None:
    """Raise the first fault, if any, as a ValueError that says how many there are."""
    if faults:
        more = len(faults) - 1
        raise ValueError(faults[0] + (f" (and {more} more: see `lorae check`)" if more else ""))


@dataclass
class _Reading:
    """The examples of one split's files, and their faults.

    A repeated text or image is left out of train, so that none is in both train and validation. Test stays
    complete; there a repeated id gets a number.

    Attributes:
        faults: why rows are refused.
        unlabelled: id -> place of each example without a label.
    """

    task: Task
    split: Literal["train", "test"]
    examples: list[Example] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    unlabelled: dict[str, str] = field(default_factory=dict)
    texts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    seen: set[tuple[str, ...]] = field(default_factory=set)
    copies: Counter[str] = field(default_factory=Counter)

    def add(self, number: int, row: dict[str, Any]) -> None:
        """Add the example of a row.

        Raises:
            ValueError: says why the row is refused.
        """
        where = f"{self.task.name} {self.split} row {number}"
        example = _example(self.task, row, where)
        where = f"{where} ({example.id})"
        try:
            self._check(example, row)
        except ValueError as error:
            raise ValueError(f"{where}: {error}; correct or remove {place_of(row)}") from error
        text = _text(example)
        if self.texts.setdefault(example.id, text) != text:
            raise ValueError(
                f"{where}: two different rows have the id {example.id!r}; correct the id in {place_of(row)}, "
                "or write content_id(row[...]) as the id"
            )
        if self.split == "train" and text in self.seen:
            return
        self.seen.add(text)
        self.copies[example.id] += 1
        copy = self.copies[example.id]
        self.examples.append(example if copy == 1 else replace(example, id=f"{example.id}-{copy}"))
        if example.label is None:
            self.unlabelled[self.examples[-1].id] = f"{where}, {place_of(row)}"

    def _check(self, example: Example, row: dict[str, Any]) -> None:
        if example.media is None:
            check_disguised(self.task, row, example)
        _check_example(self.task, example)
        if self.split == "train" and example.label is None:
            raise ValueError("no label; training needs one")
        if type(self.task).prompt is not Task.prompt:
            _check_prompt(self.task, example)
        if self.examples:
            self.task.scoring.check_alike(example, self.examples[0])

    def number_collisions(self) -> list[str]:
        """Faults: ids given to a copy that another row has already."""
        counts = Counter(e.id for e in self.examples)
        return [
            f"{self.task.name} {self.split}: {example_id!r} is the id of a row, and what the copy of another "
            "row is called; write other ids"
            for example_id, count in counts.items()
            if count > 1
        ]


@functools.lru_cache(maxsize=64)
def _read(task: Task, split: Literal["train", "test"]) -> _Reading:
    """Read the files of one split; everything wrong with their rows goes to `faults`."""
    reading, files = _Reading(task, split), task.test if split == "test" else task.train
    rows = _rows(task, split)
    if files and files.num_rows and len(rows) > files.num_rows:
        reading.faults.append(
            f"{task.name}: the {split} files have {len(rows)} rows, those of the dataset {files.num_rows}; "
            "train and test are swapped, or it is another dataset; copy the files again"
        )
        return reading
    for number, row in enumerate(rows):
        try:
            reading.add(number, row)
        except ValueError as error:
            reading.faults.append(str(error))
    reading.faults += reading.number_collisions()
    return replace(reading, texts={}, seen=set())  # needed only while reading


def _rows(task: Task, split: Literal["train", "test"]) -> list[dict[str, Any]]:
    try:
        return task.rows(split)
    except (ValueError, OSError):
        raise
    except Exception as error:  # from a user's task
        what = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{task.name}: rows({split!r}) raises {what}; correct {type(task).__name__}"
        ) from error


def _example(task: Task, row: dict[str, Any], where: str) -> Example:
    """The example of a row, with every field of its type."""
    try:
        example = task.example(row)
    except Exception as error:  # from a user's task, or a row that the task does not expect
        raise ValueError(
            f"{where} cannot be read ({type(error).__name__}: {error}); it has the columns "
            f"{', '.join(map(str, row))}; check that the files are {task.name}'s, or correct or remove "
            f"{place_of(row)}"
        ) from error
    if not isinstance(example, Example):
        kind = type(task).__name__
        raise ValueError(f"{where}: {kind}.example() returns {type(example).__name__}; must be an Example")
    try:
        return typed(example, row)
    except ValueError as error:
        raise ValueError(f"{where} ({example.id}): {error}; correct or remove {place_of(row)}") from error


def _check_example(task: Task, example: Example) -> None:
    """Refuse options, media, a question or a label that the task's scoring cannot read."""
    num_options = len(example.options)
    fewest, most = task.scoring.num_options
    if not fewest <= num_options <= most:
        raise ValueError(f"{num_options} options; must be {fewest} to {most}")
    if not isinstance(example.media, MEDIA[task.modality]):
        raise ValueError(
            f"its media is {type(example.media).__name__}, the task's modality {task.modality!r}; correct "
            "example() or modality"
        )
    if example.media is None and not example.question.strip():
        raise ValueError("the question is empty")
    if task.is_pair != (example.pair is not None):
        raise ValueError(
            f"it has {'one sentence' if task.is_pair else 'a pair of sentences'}, the task's template "
            f"{task.template!r} {'a pair' if task.is_pair else 'one'}; write example() with pair=..., and "
            "{pair} into the template, or neither"
        )
    if example.pair is not None and not example.pair.strip():
        raise ValueError("the second sentence of the pair is empty")
    if not example.id.strip():
        raise ValueError("the id is empty")
    blank = first_blank(example.options)
    if blank is not None and not task.scoring.lists_options:  # if listed, the letter is the answer
        what = "reference" if task.scoring.answer == "text" else "option"
        raise ValueError(f"{what} {blank} of {example.options} is blank, so nothing of it can be scored")
    is_value = task.scoring.answer == "value"
    if (example.value is not None) != (is_value and example.label is not None):
        raise ValueError(
            f"its label is {example.label} and its value {example.value}; a task that is scored by Value() "
            "has the label 0 with a value, or neither; others have no value"
        )
    if example.label is not None and not 0 <= example.label < num_options:
        hidden = " (-1 often hides it: name a split with labels)" if example.label == -1 else ""
        raise ValueError(f"label {example.label} is outside its {num_options} options{hidden}")


def _check_prompt(task: Task, example: Example) -> None:
    """Refuse the result of a user's `prompt` for an example if it cannot be scored."""
    kind = type(task).__name__
    try:
        prompt = task.prompt(example)
    except Exception as error:
        raise ValueError(f"{kind}.prompt() raises {type(error).__name__}: {error}") from error
    if not isinstance(prompt, Prompt):
        raise ValueError(f"{kind}.prompt() returns {type(prompt).__name__}; must be a Prompt")
    blank = [answer for answer in prompt.answers if not answer.strip()]
    if blank or len(prompt.answers) != len(example.options) or not prompt.text.strip():
        raise ValueError(
            f"{kind}.prompt() gives the text {prompt.text[:60]!r} and the answers {prompt.answers}; must be "
            f"a text and {len(example.options)} answers, one for each option"
        )


def _text(example: Example) -> tuple[str, ...]:
    """Equal for equal examples: the question and its options in any order, or the media."""
    if example.media is not None:
        return (example.question, example.media.digest)
    sentences = (example.question,) if example.pair is None else (example.question, example.pair)
    return (*sentences, *sorted(example.options))


def _take(task: Task, split: Split, examples: Sequence[Example]) -> tuple[Example, ...]:
    """The examples with the smallest hash, as many as the task asks for, in the dataset's order."""
    size = getattr(task, f"num_{split}")
    if size is None:
        size = len(examples)
    if size > len(examples):
        raise ValueError(
            f"{task.name}: num_{split}={size}, but there are {len(examples)} examples; write num_{split}="
            f"{len(examples)} or leave it out"
        )
    chosen = {e.id for e in sorted(examples, key=lambda e: hash_frac("subset", e.id))[:size]}
    return tuple(_shuffle_options(e, task.option_seed) for e in examples if e.id in chosen)


def _shuffle_options(example: Example, seed: int | None) -> Example:
    if seed is None:
        return example
    order = sorted(range(len(example.options)), key=lambda k: hash_frac(f"options-{seed}-{k}", example.id))
    label = None if example.label is None else order.index(example.label)
    return replace(example, options=tuple(example.options[k] for k in order), label=label)
