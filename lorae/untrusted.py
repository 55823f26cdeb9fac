"""Stored bytes to JSON and tables. Anyone may have written them, so whatever is wrong with them is a
ValueError that names the file, and sizes are checked before anything is decoded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

MAX_JSON_BYTES = 2**26
MAX_TABLE_BYTES = 2**30  # of a table in memory: some hundred times a prediction set of 10,000 examples
MAX_VALUES = 2**27  # of all its columns
MAX_DEPTH = 40  # of JSON; what walks it later recurses


def number(value: Any) -> bool:
    """A shape: a number in [0, 2^50), whose sums fit into int64."""
    return type(value) in (int, float) and 0 <= value < 2**50


def count(value: Any) -> bool:
    """A shape: an integer in [0, 2^50)."""
    return type(value) is int and number(value)


def amount(value: Any) -> bool:
    """A shape: a number in [0, 1e30), or null where it is not known."""
    return value is None or (type(value) in (int, float) and 0 <= value < 1e30)


def json_object(content: bytes, where: str, shape: Mapping[Any, Any]) -> dict[str, Any]:
    """The JSON object of a file, of a known shape.

    Args:
        where: the file's name, for messages.
        shape: key -> shape of its value; the key `str` stands for all keys. A shape is a mapping, a list of
            one shape, a type, or a predicate. Further keys are allowed.
    Raises:
        ValueError: it is no JSON, too large or too deep, or has another shape.
    """
    if len(content) > MAX_JSON_BYTES:
        raise _unreadable(where, f"{len(content)} bytes of JSON, at most {MAX_JSON_BYTES} are read")
    try:
        value = json.loads(content, parse_constant=_refuse)
        # Half a surrogate pair can be neither hashed nor shown
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise _unreadable(where, f"no JSON: {error}") from error
    if fault := _too_deep(value):
        raise _unreadable(where, fault)
    return check(value, where, shape)


def check(value: Any, where: str, shape: Mapping[Any, Any]) -> dict[str, Any]:
    """The value, if it has the shape.

    Raises:
        ValueError: what is missing or of another type.
    """
    if fault := _misfit(value, shape, ""):
        raise _unreadable(where, fault)
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


def table(content: bytes, where: str, schema: pa.Schema | None = None) -> pa.Table:
    """The table of a Parquet file.

    Strings are decoded as dictionaries first, for one long string that many rows repeat takes no space in a
    file. A footer that understates its pages is only noticed once they are decoded.

    Args:
        schema: what its columns must be; None = any.
    Raises:
        ValueError: it is damaged, has other columns, or is too large for memory.
    """
    try:
        metadata = pq.read_metadata(pa.BufferReader(content))
        declared = metadata.schema.to_arrow_schema()
        if schema is not None and not declared.equals(schema):
            raise _unreadable(where, f"its columns are {_columns(declared)}, must be {_columns(schema)}")
        _check_size(where, *_declared_size(metadata))
        leaves = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
        compact = pq.ParquetFile(pa.BufferReader(content), read_dictionary=leaves).read()
        compact.validate(full=True)
        text_bytes = sum(_text_bytes(chunk) for column in compact.columns for chunk in column.chunks)
        _check_size(where, 0, compact.nbytes + text_bytes)
        return compact.cast(schema or declared)
    except (pa.ArrowException, OSError, OverflowError, UnicodeDecodeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _unreadable(where, f"no Parquet table: {reason}") from error


def _declared_size(metadata: pq.FileMetaData) -> tuple[int, int]:
    """Values and bytes of all columns; a negative number must not hide another."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(metadata.num_columns)]
    return sum(abs(c.num_values) for c in columns), sum(abs(c.total_uncompressed_size) for c in columns)


def _text_bytes(chunk: pa.Array) -> int:
    """Bytes of a column's strings when each row has its own."""
    while pa.types.is_list(chunk.type):
        chunk = chunk.flatten()
    if not pa.types.is_dictionary(chunk.type):
        return 0
    lengths = pc.call_function("binary_length", [chunk.dictionary]).take(chunk.indices)
    return pc.call_function("sum", [lengths]).as_py() or 0


def _check_size(where: str, num_values: int, num_bytes: int) -> None:
    if num_values > MAX_VALUES or num_bytes > MAX_TABLE_BYTES:
        what = f"{num_values} values, {num_bytes} bytes; at most {MAX_VALUES} and {MAX_TABLE_BYTES} are read"
        raise _unreadable(where, what)


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)[:500]


def _unreadable(where: str, reason: str) -> ValueError:
    return ValueError(f"{where} cannot be read: {reason}; delete it and repeat the sweep that made it")
