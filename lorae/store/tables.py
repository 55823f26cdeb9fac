"""Bytes to tables. Anyone may have written them, so whatever is wrong with them is a ValueError that names
the file, and sizes are checked before anything is decoded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lorae.store.footer import declared_size
from lorae.untrusted import unreadable

MAX_TABLE_BYTES = 2**30  # of a table in memory: some hundred times a prediction set of 10,000 examples
MAX_VALUES = 2**27  # of all its columns


def table(content: bytes, where: str, schema: pa.Schema | None = None) -> pa.Table:
    """The table of a Parquet file.

    Strings are decoded as dictionaries first, for one long string that many rows repeat takes no space in a
    file. A footer that understates its pages is only noticed once they are decoded.

    Args:
        schema: what its columns must be; None = any.
    Raises:
        ValueError: it is damaged, has other columns, or is too large for memory.
    """
    declared = table_schema(content, where)
    if schema is not None and not declared.equals(schema):
        raise unreadable(where, f"its columns are {_columns(declared)}, must be {_columns(schema)}")
    with _arrow_errors(where):
        stored = pq.ParquetFile(pa.BufferReader(content)).schema
        leaves = [stored.column(i).path for i in range(len(stored))]
        compact = pq.ParquetFile(pa.BufferReader(content), read_dictionary=leaves).read(use_threads=False)
        compact.validate(full=True)
        text_bytes = sum(_text_bytes(chunk) for column in compact.columns for chunk in column.chunks)
        _check_size(where, 0, compact.nbytes + text_bytes)
        return compact.cast(schema or declared)


def table_schema(content: bytes, where: str) -> pa.Schema:
    """The columns of a Parquet file.

    Raises:
        ValueError: its footer is damaged, or declares more than is read.
    """
    try:
        declared = declared_size(content)
    except ValueError as error:
        raise unreadable(where, f"no Parquet table: {error}") from error
    _check_size(where, *declared)
    with _arrow_errors(where):
        return pq.read_schema(pa.BufferReader(content))


@contextlib.contextmanager
def _arrow_errors(where: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, OverflowError, UnicodeDecodeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise unreadable(where, f"no Parquet table: {reason}") from error


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
        raise unreadable(where, what)


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)[:500]
