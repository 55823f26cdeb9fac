"""Bytes to JSON of a known shape. Anyone may have written the bytes, so every fault raises a ValueError that
names the file, and sizes are checked before anything is decoded."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

Shape = Mapping[Any, Any]

MAX_JSON_BYTES = 2**24
MAX_JSON_VALUES = 2**20  # an object, list or string takes some hundred bytes in memory, but 3 in a file
MAX_HEADER_BYTES, MAX_HEADER_VALUES = 2**25, 2**22  # of a safetensors file: some 300,000 tensors
MAX_DEPTH = 40  # of JSON; code that walks it later recurses
HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")  # possibly half a surrogate pair
REPEAT = "delete it and repeat the sweep that made it"
COPY = "copy the file again"


def number(value: Any) -> bool:
    """A shape: a number in [0, 2^50); sums of them fit into int64."""
    return type(value) in (int, float) and 0 <= value < 2**50


def count(value: Any) -> bool:
    """A shape: an integer in [0, 2^50)."""
    return type(value) is int and number(value)


def text_if_any(value: Any) -> bool:
    """A shape: a string, or null."""
    return value is None or type(value) is str


def amount(value: Any) -> bool:
    """A shape: a number in [0, 1e30), or null if not known."""
    return value is None or (type(value) in (int, float) and 0 <= value < 1e30)


def json_object(
    content: bytes, where: str, shape: Shape, remedy: str = REPEAT, *, infinite: bool = False
) -> dict[str, Any]:
    """The JSON object of a file, checked for a shape; all records and configs are read with it.

    Args:
        where: the file's name, for messages.
        shape: key -> shape of its value; the key `str` stands for all keys. A shape is a mapping, a list of
            one shape, a type, or a predicate. Further keys are allowed.
        remedy: what to do about a file that cannot be read.
        infinite: accept Infinity and NaN, which Python writes and JSON does not have.
    Raises:
        ValueError: not JSON, too large, nested too deeply, or of another shape.
    """
    if len(content) > MAX_JSON_BYTES:
        raise unreadable(where, f"{len(content)} bytes of JSON, at most {MAX_JSON_BYTES} are read", remedy)
    return check(_parsed(content, where, remedy, MAX_JSON_VALUES, infinite=infinite), where, shape, remedy)


_PLACE: Shape = {"dtype": str, "shape": [count], "data_offsets": [count]}  # one tensor


def safetensors_header(content: bytes, where: str, remedy: str = REPEAT) -> dict[str, Any]:
    """The header of a safetensors file: 8 bytes with the header's length, a JSON object of that length with
    the tensors' places, then the data.

    Raises:
        ValueError: the header is cut off, too large, or no such object.
    """
    size = int.from_bytes(content[:8], "little")
    if size > min(len(content) - 8, MAX_HEADER_BYTES):
        limits = f"the file {len(content)}, at most {MAX_HEADER_BYTES} are read"
        raise unreadable(where, f"its header has {size} bytes, {limits}", remedy)
    header = _parsed(content[8 : 8 + size], where, remedy, MAX_HEADER_VALUES)
    places = {name: _PLACE for name in header if name != "__metadata__"} if type(header) is dict else {}
    return check(header, where, places, remedy)


def _parsed(content: bytes, where: str, remedy: str, max_values: int, *, infinite: bool = False) -> Any:
    """JSON that is neither too large for memory nor too deep for recursion."""
    # An upper bound: characters inside strings also count
    num_values = sum(map(content.count, (b",", b"[", b"{", b":")))
    if num_values > max_values:
        raise unreadable(where, f"{num_values} values of JSON, at most {max_values} are read", remedy)
    try:
        value = json.loads(content, parse_constant=None if infinite else _refuse)
        if HALF_PAIR.search(content):  # half a pair can be neither hashed nor shown
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise unreadable(where, f"no JSON: {error}", remedy) from error
    if fault := _too_deep(value):
        raise unreadable(where, fault, remedy)
    return value


def check(value: Any, where: str, shape: Shape, remedy: str = REPEAT) -> dict[str, Any]:
    """The value, if it has the shape.

    Raises:
        ValueError: says what is missing or of another type.
    """
    if fault := _misfit(value, shape, ""):
        raise unreadable(where, fault, remedy)
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _too_deep(value: Any) -> str | None:
    layer = [value]
    for _ in range(MAX_DEPTH):
        inner = [v.values() if isinstance(v, dict) else v for v in layer if isinstance(v, (dict, list))]
        layer = [part for parts in inner for part in parts]
    return f"nested deeper than {MAX_DEPTH}" if layer else None


def _misfit(value: Any, shape: Any, path: str) -> str | None:
    """Where a value departs from a shape, or None."""
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            return f"{path or 'it'} is no object"
        named = {key: inner for key, inner in shape.items() if key is not str}
        parts = [(key, value.get(key), inner) for key, inner in named.items()]
        parts += [(key, inner, shape[str]) for key, inner in value.items() if str in shape]
    elif isinstance(shape, list):
        if not isinstance(value, list):
            return f"{path} is no list"
        parts = [(index, inner, shape[0]) for index, inner in enumerate(value)]
    else:
        fits = type(value) is shape if isinstance(shape, type) else shape(value)
        return None if fits else f"{path} is {str(value)[:40]!r}, not {shape.__name__.strip('_')}"
    return next(
        (fault for key, part, inner in parts if (fault := _misfit(part, inner, f"{path}/{key}"))), None
    )


def unreadable(where: str, reason: str, remedy: str = REPEAT) -> ValueError:
    """The error to raise for content that is not as expected."""
    return ValueError(f"{where} cannot be read: {reason}; {remedy}")
