"""What a user asks a stored ensemble about: texts, questions with options, images or sounds, as the test
split of a task."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lorae.media import Audio, Image
from lorae.shapes import Kind
from lorae.sources import Files
from lorae.tasks.base import Example, Prompt, Split, Task, content_id
from lorae.tasks.checks import PAIR
from lorae.tasks.data import DataFiles
from lorae.tasks.rows import typed

TEXTS, OPTIONS = ("question", "text", "sentence"), ("options", "choices")  # names of a row's cells
MEDIA_CELLS = ("image", "audio", "file", "path")
MAX_OPTIONS = 1000


@dataclass(frozen=True, kw_only=True)
class Given(Task):
    """Examples that a user gives, asked as the members' own task asks.

    Args:
        given: the examples, in order.
        written: the template of the members' prompts.
        own: the task that makes their prompts by its own code; None = the template does.
    """

    given: tuple[Example, ...]
    written: str
    own: Task | None = None

    name = "given"
    home = Files(".")
    train = None
    test = DataFiles(())

    def __post_init__(self) -> None:
        super().__post_init__()
        for number, example in enumerate(self.given if self.written else ()):
            if (PAIR in self.written) != (example.pair is not None):
                raise ValueError(
                    f"input {number} has {'one sentence' if example.pair is None else 'a pair'}, the "
                    f"members' template is {self.written!r}; give rows "
                    f"with {'a' if PAIR in self.written else 'no'} 'pair'"
                )

    def prompt(self, example: Example) -> Prompt:
        return self.own.prompt(example) if self.own else self.scoring.prompt(self.written, example)

    def prompt_template(self) -> str:
        return self.written

    def examples(self, split: Split) -> tuple[Example, ...]:
        return self.given


def examples_of(
    inputs: Any, kind: Kind, classes: Sequence[str] | None, without_options: bool = False
) -> tuple[Example, ...]:
    """Examples from whatever a user has: one input or many, see `Ensemble.predict`.

    Args:
        kind: of the backbone, which says whether a text is a text or the path of an image or sound.
        classes: the options of inputs that have none of their own.
        without_options: members write the answer, so inputs have no options.
    Raises:
        ValueError: nothing was given, an empty text, an unreadable file, or options that are not known.
    """
    if hasattr(inputs, "to_dict") and hasattr(inputs, "columns"):  # a pandas DataFrame
        inputs = inputs.to_dict("records")
    listed = [inputs] if _is_one(inputs, kind) else list(inputs)
    if not listed:
        raise ValueError('nothing to predict; give at least one input, such as ["a film to remember"]')
    if without_options:
        listed, classes = [_asked(value) for value in listed], ()
    return tuple(_example(value, f"input {n}", kind, classes) for n, value in enumerate(listed))


def _asked(value: Any) -> Any:
    """An input without its options or references."""
    if isinstance(value, Example):
        return replace(value, options=(), label=None)
    if isinstance(value, Mapping):
        return {name: cell for name, cell in value.items() if name not in OPTIONS}
    return value


def _is_one(inputs: Any, kind: Kind) -> bool:
    """Whether this is one input, no sequence of them."""
    if isinstance(inputs, np.ndarray):
        return kind == "image" and inputs.dtype == np.uint8 and inputs.ndim in (2, 3) and _is_picture(inputs)
    if isinstance(inputs, tuple) and kind == "audio" and len(inputs) == 2 and isinstance(inputs[1], int):
        return True
    return isinstance(inputs, (str, bytes, Path, Example, Mapping, Image, Audio)) or not isinstance(
        inputs, Iterable
    )


def _is_picture(pixels: np.ndarray) -> bool:
    return pixels.ndim == 2 or pixels.shape[2] == 3


def _example(value: Any, place: str, kind: Kind, classes: Sequence[str] | None) -> Example:
    if isinstance(value, Example):
        return value
    row = value if isinstance(value, Mapping) else {}
    given = next((row[name] for name in OPTIONS if row.get(name) is not None), classes)
    options = () if classes == () else _options(given, place)
    name = row.get("id")
    if kind in ("image", "audio"):
        media = _media(next((row[c] for c in MEDIA_CELLS if c in row), value), place, kind)
        return Example(
            str(name) if name is not None else content_id(media.digest), "", options, None, media=media
        )
    text = next((row[c] for c in TEXTS if c in row), None) if row else value
    if not isinstance(text, str) or not text.strip():
        got = f"the columns {', '.join(map(str, row))}" if row and text is None else repr(text)[:80]
        raise ValueError(
            f"{place}: {got}; must be a text that is not empty, or a row with one of {', '.join(TEXTS)}"
        )
    example = Example(content_id(text, *options) if name is None else name, text, options, None)
    if (pair := row.get("pair")) is not None:
        example = replace(example, pair=pair, id=content_id(text, pair, *options) if name is None else name)
    try:
        return typed(example, row)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _options(found: Any, place: str) -> tuple[str, ...]:
    """The options of an input.

    Raises:
        ValueError: none are known, or they are no texts.
    """
    if found is None:
        raise ValueError(
            f"{place}: its options are not known: the members' records do not name one set for all examples; "
            "give a row with options=[...], or name the classes in the order of the labels: "
            'Ensemble.load(..., classes=("negative", "positive")), in a shell --classes negative,positive'
        )
    if isinstance(found, Mapping) and "text" in found:  # as AI2's datasets have them
        found = found["text"]
    options = tuple(found) if not isinstance(found, str) else ()
    if not 2 <= len(options) <= MAX_OPTIONS or not all(isinstance(o, str) for o in options):
        raise ValueError(
            f"{place}: options {found!r}: must be 2 to {MAX_OPTIONS} texts, such as ['no', 'yes']"
        )
    return options


def _media(cell: Any, place: str, kind: Kind) -> Image | Audio:
    """An image or sound from a file's path or content, an array, or a picture of Pillow's.

    Raises:
        ValueError: it is none of these, or cannot be read.
    """
    value: Any = cell["bytes"] if isinstance(cell, Mapping) and "bytes" in cell else cell
    if isinstance(value, (Image, Audio)):
        return value
    if isinstance(value, (str, Path)):
        try:
            value = Path(value).expanduser().read_bytes()
        except OSError as error:
            raise ValueError(f"{place}: {value} cannot be read ({error.strerror}); give a file") from error
    if isinstance(value, bytes):
        return Image(value) if kind == "image" else Audio(value, resample=True)
    with contextlib.suppress(ValueError, TypeError):
        if kind == "audio":
            samples, rate = value
            return Audio(np.asarray(samples, "<f4").tobytes(), int(rate), resample=True)
        pixels = np.asarray(value.convert("RGB") if hasattr(value, "convert") else value)
        return Image.raw(pixels)
    wanted = "pixels (H, W) or (H, W, 3) of uint8, a picture" if kind == "image" else "(samples, rate)"
    raise ValueError(
        f"{place}: {type(value).__name__} is no {kind}; give a file's path or content, or {wanted}"
    )
