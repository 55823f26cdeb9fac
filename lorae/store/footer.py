"""The footer of a Parquet file, read with bounds before pyarrow sees the file.

pyarrow ends the process (`abort`) where it is asked for the sizes of column chunks that lack their metadata:
one flipped bit ended an audit. What is read here is the compact protocol of Thrift; every list must fit into
the bytes that are left, so a small file takes little memory.

Source: https://github.com/apache/parquet-format, parquet.thrift; thrift-compact-protocol.md of apache/thrift.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

MAGIC = b"PAR1"
MAX_FOOTER_BYTES = 2**24
_MAX_DEPTH = 16
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12
_INTEGERS = (4, 5, 6)
_ROW_GROUPS, _COLUMNS, _CHUNK_METADATA, _NUM_VALUES, _NUM_BYTES = 4, 1, 3, 5, 6  # numbers of fields


def declared_size(content: bytes) -> tuple[int, int]:
    """Values and uncompressed bytes of all columns, as the footer of a Parquet file declares them; a negative
    number must not hide another.

    Raises:
        ValueError: the file does not end in a footer, or a column chunk does not say its size.
    """
    return _declared(_footer(content))


@functools.lru_cache(maxsize=64)  # several look at a file, one after another
def _declared(footer: bytes) -> tuple[int, int]:
    parsed = _Reader(footer).struct(0)
    chunks = [chunk for group in _field(parsed, _ROW_GROUPS) for chunk in _field(group, _COLUMNS)]
    sizes = [_field(chunk, _CHUNK_METADATA) for chunk in chunks]
    num_values, num_bytes = ([abs(_number(s, name)) for s in sizes] for name in (_NUM_VALUES, _NUM_BYTES))
    return sum(num_values), sum(num_bytes)


def _footer(content: bytes) -> bytes:
    """FileMetaData: the struct before the last 8 bytes, which are its length and the magic number."""
    length = int.from_bytes(content[-8:-4], "little")
    if len(content) < 12 or not content.startswith(MAGIC) or not content.endswith(MAGIC):
        raise ValueError("it does not begin and end as Parquet does")
    if length > min(len(content) - 12, MAX_FOOTER_BYTES):
        raise ValueError(f"its footer has {length} bytes, of {len(content)}")
    return content[-8 - length : -8]


def _field(struct: Any, number: int) -> Any:
    if not isinstance(struct, dict) or not isinstance(struct.get(number), (dict, list)):
        raise ValueError(f"its footer lacks field {number} of a column or row group")
    return struct[number]


def _number(struct: Any, number: int) -> int:
    if not isinstance(struct, dict) or type(struct.get(number)) is not int:
        raise ValueError(f"its footer lacks the size of a column (field {number})")
    return struct[number]


@dataclass
class _Reader:
    """Thrift's compact protocol: a struct becomes {field number: value}, a list or set a list."""

    content: bytes
    at: int = 0

    def take(self, num_bytes: int) -> bytes:
        if num_bytes > len(self.content) - self.at:
            raise ValueError("its footer is cut off")
        self.at += num_bytes
        return self.content[self.at - num_bytes : self.at]

    def varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError("its footer has an integer of more than 64 bits")

    def integer(self) -> int:
        """A signed one: 0, -1, 1, -2, ... (zigzag)."""
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def struct(self, depth: int) -> dict[int, Any]:
        if depth > _MAX_DEPTH:
            raise ValueError(f"its footer is nested deeper than {_MAX_DEPTH}")
        found: dict[int, Any] = {}
        number = 0
        while head := self.take(1)[0]:
            step, kind = head >> 4, head & 0x0F
            number = number + step if step else self.integer()
            found[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self.value(kind, depth + 1)
        return found

    def list(self, depth: int) -> list[Any]:
        head = self.take(1)[0]
        size, kind = head >> 4, head & 0x0F
        size = self.varint() if size == 15 else size
        if size > len(self.content) - self.at:  # an element has a byte at least
            raise ValueError(f"its footer has a list of {size} elements, longer than itself")
        return [self.value(_BYTE if kind in (_TRUE, _FALSE) else kind, depth + 1) for _ in range(size)]

    def value(self, kind: int, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError(f"its footer is nested deeper than {_MAX_DEPTH}")
        if kind in _INTEGERS:
            return self.integer()
        if kind == _BINARY:
            return self.take(self.varint())
        if kind in (_LIST, _SET):
            return self.list(depth)
        if kind == _STRUCT:
            return self.struct(depth)
        if kind == _BYTE:
            return self.take(1)[0]
        if kind == _DOUBLE:
            return self.take(8)
        raise ValueError(f"its footer has a field of type {kind}, which Parquet has not")
