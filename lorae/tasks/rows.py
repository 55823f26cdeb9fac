"""Checks of the examples that `Task.example` makes, done once when rows are read: every field has its type,
and no text holds a null in disguise. Only unambiguous values are converted; all others are refused, naming
the column.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorae.tasks.base import Example

# Signs that a text may hold the Python form of a cell, from an f-string or `str`
_DISGUISED = re.compile(r"None|nan|\[|\{|b['\"]")
_MARK = "\x00cell\x00"


def place_of(row: Mapping[str, Any]) -> str:
    """Where to correct a row."""
    return getattr(row, "place", "that row")


def typed(example: Example, row: Mapping[str, Any]) -> Example:
    """The example with every field of its type: text, a tuple of texts, the index of an option.

    An integer becomes text in an id, question or option. A label may be a whole number of any type, digits
    (as in CSV), or a bool if there are two options.

    Raises:
        ValueError: another type; names the column with the value.
    """
    options = _options(example.options, row)
    if example.group is not None and not isinstance(example.group, str):
        raise _wrong("the group is", example.group, row, "text or None; write group=str(...)")
    return replace(
        example,
        id=_text("the id is", example.id, row),
        question=_text("the question is", example.question, row),
        pair=None if example.pair is None else _text("the pair's second text is", example.pair, row),
        options=options,
        label=_label(example.label, options, row),
        value=_value(example.value, row),
    )


def _options(value: Any, row: Mapping[str, Any]) -> tuple[str, ...]:
    if not isinstance(value, (tuple, list)):
        raise _wrong("the options are", value, row, "a tuple of texts")
    with contextlib.suppress(TypeError):  # an unhashable option is not text
        if isinstance(value, tuple) and _are_texts(value):
            return value
    return tuple(_text(f"option {n} is", option, row) for n, option in enumerate(value))


@functools.lru_cache(maxsize=256)
def _are_texts(options: tuple[Any, ...]) -> bool:
    """Whether no option has to be converted or refused: printable text has no half surrogate pair. Cached, as
    most tasks have the same options for all rows."""
    return all(type(option) is str and option.isprintable() for option in options)


@functools.lru_cache(maxsize=256)
def first_blank(options: tuple[str, ...]) -> int | None:
    """Index of the first option with only whitespace, or None."""
    return next((n for n, option in enumerate(options) if not option.strip()), None)


def _text(what: str, value: Any, row: Mapping[str, Any]) -> str:
    if isinstance(value, Integral) and not isinstance(value, bool):
        return str(int(value))
    if not isinstance(value, str):
        advice = "; write .decode() where its encoding is known" if isinstance(value, bytes) else ""
        raise _wrong(what, value, row, f"text{advice}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _wrong(what, value, row, "text without half a surrogate pair") from None
    return str(value)


def _label(value: Any, options: tuple[str, ...], row: Mapping[str, Any]) -> int | None:
    index = f"the index of an option, 0 to {len(options) - 1}, or None"
    if value is None:
        return None
    if isinstance(value, bool):
        if len(options) == 2:
            return int(value)
        raise _wrong("the label is", value, row, f"{index}; a truth value has two options")
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,9}", value):
        if value in options and options.index(value) != int(value):
            raise _wrong("the label is", value, row, f"{index}; this text is an option, too: write int(...)")
        return int(value)
    if isinstance(value, Real) and float(value).is_integer():
        return int(float(value))
    raise _wrong("the label is", value, row, f"{index}; for an option's text write OPTIONS.index(...)")


def _value(value: Any, row: Mapping[str, Any]) -> float | None:
    """A finite number, from a number of any type or its digits (as in CSV)."""
    if value is None:
        return None
    found = math.nan
    if isinstance(value, (Real, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            found = float(value)
    if not math.isfinite(found):
        raise _wrong("the value is", value, row, "a finite number, or None where it is not known")
    return found


def _wrong(what: str, value: Any, row: Mapping[str, Any], allowed: str) -> ValueError:
    names = [str(name) for name, cell in row.items() if _holds(cell, value)]
    column = f" (column {', '.join(names[:3])})" if names else ""
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
    kind = "" if value is None else f" of type {type(value).__name__}"
    return ValueError(f"{what} {shown}{kind}{column}; must be {allowed}")


def _holds(cell: Any, value: Any) -> bool:
    """Whether a value is the cell, or an item nested in it."""
    if cell is value:
        return True
    items = cell.values() if isinstance(cell, dict) else cell if isinstance(cell, (list, tuple)) else ()
    return any(_holds(item, value) for item in items)


def check_disguised(task: Any, row: Mapping[str, Any], example: Example) -> None:
    """Refuse a text that holds a null, bytes, list or object as Python prints it: for a row without context,
    f"{row['context']} ..." asks about "None".

    Whether the cell is in the text is tested by replacing its value, so a word "None" is not taken for a
    null.

    Raises:
        ValueError: names the column.
    """
    texts = _texts(example)
    if not _DISGUISED.search(texts):
        return
    for name, cell in row.items():
        if _is_disguised(cell) and str(cell) in texts and _MARK in _texts_with(task, row, name):
            shown = str(cell) if len(str(cell)) <= 60 else f"{str(cell)[:60]}..."
            raise ValueError(
                f"column {name} is {shown} ({type(cell).__name__}), which becomes part of the text; must be "
                "text"
            )


def _is_disguised(cell: Any) -> bool:
    is_nan = isinstance(cell, float) and cell != cell
    return cell is None or is_nan or isinstance(cell, (bytes, list, tuple, dict))


def _texts(example: Example) -> str:
    return "\n".join((example.question, example.pair or "", *example.options))


def _texts_with(task: Any, row: Mapping[str, Any], name: str) -> str:
    """The texts of the row with one cell replaced; "" if that row cannot be read."""
    try:
        return _texts(task.example(dict(row) | {name: _MARK}))
    except Exception:
        return ""
