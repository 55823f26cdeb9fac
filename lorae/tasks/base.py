"""A task: dataset, split rule, prompt, answer classes and scoring.

A new task is one file: a frozen dataclass with `name`, `home`, `train`, `test` and `example(row)`, and with
`modality` if its examples are images or audio.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from lorae.identity import canonical, digest, fields_of
from lorae.media import Audio, Image
from lorae.sources import DataSource, resolve
from lorae.tasks.checks import PAIR, check_class, check_files, check_hashable, check_template
from lorae.tasks.data import DataFiles, data_fingerprint, local_copy, read_rows
from lorae.tasks.example import Example, Prompt
from lorae.tasks.scoring import (
    SCORINGS,
    Generate,
    Head,
    LabelWords,
    Letters,
    OptionLikelihood,
    Scoring,
    Value,
    scorings_for,
)

__all__ = [  # what a task's file imports from here
    "Example",
    "Generate",
    "Head",
    "LabelWords",
    "Letters",
    "OptionLikelihood",
    "Prompt",
    "Scoring",
    "Task",
    "Value",
    "content_id",
    "hash_frac",
    "lettered_example",
    "media_example",
    "text_example",
]

Split = Literal["train", "validation", "test"]
Modality = Literal["text", "image", "audio"]

MEDIA: dict[Modality, type] = {"text": type(None), "image": Image, "audio": Audio}  # type of Example.media
CONTENT_ID = "sha-"  # prefix of ids that are a hash of the content


@dataclass(frozen=True, kw_only=True)
class Task:
    """Base of all tasks.

    Subclasses set `name`, `home` (the dataset, or its folder: `Files(...)`), `train` and `test` (its files),
    and define `example(row)`. Validation is carved from train by a hash of the example id, so it is disjoint
    from test, which may be the hub's validation split. An OOD set has `train = None`.

    An image or audio task sets `modality`, has examples with `media`, and is scored by `Head()`.

    The template and the fields that a subclass adds are hashed into its members' identities; code is not.
    Raise `prompt_version` when `rows`, `example` or `prompt` start to make different examples from the same
    files, or stored members will be mistaken for members of the new version. Declare fields that change no
    example with `metadata={"identity": False}`.

    Args:
        scoring: how class logits are read from the backbone.
        num_train, num_validation, num_test: sizes of nested subsets chosen by a hash of the id; None = all.
        val_frac: share of the train rows that becomes validation, in (0, 0.5].
        option_seed: shuffle each example's options by this seed and the id; None keeps the dataset's order.
        source: where the rows are read from; None = `home`, or its copy under a data root.
    """

    scoring: Scoring = Letters()
    num_train: int | None = None
    num_validation: int | None = None
    num_test: int | None = None
    val_frac: float = 0.1
    option_seed: int | None = None
    source: DataSource | None = field(default=None, repr=False)

    name: ClassVar[str]
    home: ClassVar[DataSource]
    train: ClassVar[DataFiles | None]
    test: ClassVar[DataFiles]
    modality: ClassVar[Modality] = "text"
    prompt_version: ClassVar[int] = 1
    template: ClassVar[str] = "Question: {question}\nAnswer:"

    def __post_init__(self) -> None:
        check_class(type(self), Task)
        check_hashable(self)
        if type(self.scoring) not in SCORINGS:
            known = ", ".join(kind.__name__ for kind in SCORINGS)
            raise ValueError(f"scoring={self.scoring!r}: must be one of {known}; write scoring=LabelWords()")
        if not re.fullmatch(r"\w[\w.+-]{0,59}(/\w[\w.+-]{0,59})?", self.name):  # it names files and folders
            raise ValueError(
                f"task name {self.name[:200]!r}: must be letters, digits and _ . + -, 60 at most, and one / "
                'may part it; write name = "colours"'
            )
        if not 0 < self.val_frac <= 0.5:
            raise ValueError(f"val_frac={self.val_frac}: must be in (0, 0.5]; write val_frac=0.1")
        for name in ("num_train", "num_validation", "num_test"):
            size = getattr(self, name)
            if size is not None and (not isinstance(size, int) or size < 1):
                raise ValueError(f"{name}={size}: must be >= 1; leave it out to take every example")
        if self.modality != "text" and self.modality not in self.scoring.backbones:
            raise ValueError(
                f"{self.name} has {self.modality} examples, {self.scoring} needs the tokens of a text; write "
                f"scoring={scorings_for(self.modality)}"
            )
        self.scoring.check_task(self)
        templated = self.scoring.template is None
        if self.is_pair and self.scoring.lists_options:
            raise ValueError(
                f"{self.scoring} with {self.name}: its prompt has no place for a pair's second sentence; "
                "write scoring=LabelWords(), or Head() for an encoder"
            )
        if templated and type(self).prompt is Task.prompt:  # an overriding `prompt` fills the template itself
            check_template(self.template, self.name)

    @property
    def is_pair(self) -> bool:
        """Whether the examples are sentence pairs, according to the template."""
        return isinstance(self.template, str) and PAIR in self.template

    @property
    def label(self) -> str:
        return self.name if self.num_train is None else f"{self.name}-{self.num_train}"

    # What a new task defines

    def example(self, row: dict[str, Any]) -> Example:
        """One example from a row of the dataset."""
        raise NotImplementedError  # abstract: every task defines it

    def rows(self, split: Literal["train", "test"]) -> list[dict[str, Any]]:
        """Rows of our train or test split, before validation is carved from train."""
        assert self.source is not None, "call located() first"
        files = self.test if split == "test" else self.train
        return read_rows(self.source, files) if files else []

    # Derived

    def subset(self, train: int, validation: int | None = None, test: int | None = None) -> Self:
        """The same task with fewer examples; a smaller subset is contained in a larger one."""
        return replace(self, num_train=train, num_validation=validation, num_test=test)

    def located(self, data_root: Path | None = None) -> Self:
        """The task with its source fixed: its copy under `data_root` if there is one, else the hub's commit.

        Raises:
            ValueError: there is no copy and the hub cannot be reached; says what is needed, and how to
                provide it.
        """
        check_files(self, {"train": DataFiles | None, "test": DataFiles, "home": DataSource})
        if self.source is not None:
            return replace(self, source=resolve(self.source, "dataset"))
        if data_root is not None and not data_root.is_dir():
            raise ValueError(f"data root {data_root} is no folder; give the one that holds {self.name}/")
        copy = local_copy(data_root, self.name, self.home) if data_root else None
        try:
            return replace(self, source=copy or resolve(self.home, "dataset"))
        except ValueError as error:
            raise ValueError(f"{self.name} needs {self.test.patterns[0]}, but {error}") from error

    def prompt(self, example: Example) -> Prompt:
        """The prompt of an example and its answers, according to the task's scoring.

        For a head these are the text itself, without a template, and the names of the classes.
        """
        return self.scoring.prompt(self.template, example)

    def prompt_template(self) -> str:
        """The template in use, empty for a head; an OOD task must have the trained task's template."""
        return self.template if self.scoring.template is None else self.scoring.template

    def splits(self) -> dict[Split, tuple[Example, ...]]:
        """Examples of train, validation and test, checked: unique ids, disjoint splits, labels in range.

        Raises:
            ValueError: says what is wrong with the data, with the example's id.
        """
        from lorae.tasks.splits import splits

        return splits(self)

    def examples(self, split: Split) -> tuple[Example, ...]:
        """Examples of one split, see `splits`; "test" reads only the test files."""
        from lorae.tasks.splits import test_examples

        return test_examples(self) if split == "test" else self.splits()[split]

    def fingerprint(self) -> dict[str, Any]:
        """What a trained member depends on: data, split rule, training subset, prompt and scoring.

        The size of the test subset is not included; the test files are, because train leaves out their texts.
        """
        if self.train is None:
            raise ValueError(
                f"{self.name} has no training examples, it is an OOD set; name it in Sweep(ood=[...]) "
                "and train on another task"
            )
        return _content(self, "train") | {"num_validation": self.num_validation}

    def eval_set(self, split: Split) -> str:
        """Name of a split's prediction set: `<task>__<split>__<hash of its content>`."""
        return _eval_set(self, split)


@functools.lru_cache(maxsize=1024)
def _content(task: Task, split: Split) -> dict[str, Any]:
    """What determines a split's examples, with its files' checksums; computed once per task and process."""
    assert task.source is not None, "call located() first"
    content: dict[str, Any] = {
        "task": task.name,
        "data": {"test": data_fingerprint(task.source, task.test)},
        "prompt_version": task.prompt_version,
        "scoring": canonical(task.scoring),
        "option_seed": task.option_seed,
        "split": split,
        "size": getattr(task, f"num_{split}"),
    }
    try:
        own = fields_of(task, base=Task)
    except TypeError as error:
        raise ValueError(f"{type(task).__name__} has a field without identity: {error}") from error
    if own:
        content["fields"] = own
    if not type(task).__module__.startswith("lorae."):  # lorae's own templates change with prompt_version
        content["template"] = task.prompt_template()
    if split != "test" and task.train is not None:
        content["data"]["train"] = data_fingerprint(task.source, task.train)
        content["val_frac"] = canonical(task.val_frac)
    return content


@functools.lru_cache(maxsize=1024)
def _eval_set(task: Task, split: Split) -> str:
    return f"{task.name.replace('/', '-')}__{split}__{digest(_content(task, split))[:8]}"


def hash_frac(salt: str, key: str) -> float:
    """A number in [0, 1) that depends only on salt and key; splits and subsets compare it with a fraction."""
    return int.from_bytes(hashlib.sha256(f"{salt}\0{key}".encode()).digest()[:6], "big") / 2**48


def content_id(*parts: str) -> str:
    """Id of an example whose dataset has no ids: a hash of its text, or of its media's digest, so the same
    text has the same id everywhere."""
    return CONTENT_ID + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def media_example(media: Image | Audio, classes: tuple[str, ...], label: int | None) -> Example:
    """Example of an image or audio clip whose dataset has no ids."""
    return Example(content_id(media.digest), "", classes, label, media=media)


def text_example(question: str, references: Any, id: str | None = None, group: str | None = None) -> Example:
    """Example whose answer is a text; the first of several references is trained on.

    Args:
        references: a text or a number, several of them, or a struct with "text" (SQuAD) or "value" and
            "aliases" (TriviaQA), or a list of such structs; empty or None for a prompt without references.
        id: the dataset's id; None = a hash of the question.
    Raises:
        ValueError: a struct without these, or a truth value.
    """
    texts = tuple(dict.fromkeys(_references(references)))
    label = 0 if texts else None
    return Example(content_id(question) if id is None else id, question, texts, label, group)


def _references(value: Any) -> Iterator[str]:
    """The texts of whatever a dataset calls its answers, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Integral) and not isinstance(value, bool):
        yield str(int(value))
    elif isinstance(value, float):
        yield f"{value:.0f}" if value.is_integer() else str(value)
    elif isinstance(value, Mapping):
        if not (known := [name for name in ("value", "text", "aliases") if name in value]):
            raise ValueError(
                f"its references are a struct of {', '.join(map(str, value))}; name the one that holds the "
                'texts, such as row["answers"]["spans"]'
            )
        for name in known:
            yield from _references(value[name])
    elif isinstance(value, Iterable) and not isinstance(value, bytes):
        for item in value:
            yield from _references(item)
    elif value is not None:
        raise ValueError(
            f"its reference is {value!r} of type {type(value).__name__}; write a text, such as "
            '"yes" if row["answer"] else "no"'
        )


def lettered_example(row: dict[str, Any], question: str) -> Example:
    """Example of a row with `id`, `choices` {text, label} and `answerKey`, the schema of AI2's datasets.

    The labels may be A to E or 1 to 5; rows may have three to five options.
    """
    texts, labels, key = row["choices"]["text"], row["choices"]["label"], row["answerKey"]
    if key not in labels:
        raise ValueError(f"the answer {key!r} is none of the labels {', '.join(labels)}")
    return Example(row["id"], question, tuple(texts), labels.index(key))
