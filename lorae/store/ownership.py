"""Whose a stored thing is. A right checksum says that a file's bytes are those that somebody wrote, perhaps
for another entry: folders are swapped, copied, restored. So every file says whose it is, where its format has
a place for that, and whoever reads it compares (`check`).

    DONE.json                  "entry", the folder
    member.json                the recipe and streams whose hash is the member's id
    other records of an entry  "owner"
    *.safetensors              metadata "lorae_owner"; of a checkpoint its stack
    predictions                the column member_id; metadata "lorae_set"
    curve.parquet              metadata "lorae_owner"
    answers                    metadata "lorae_owner" and "lorae_set"
    checkpoints/<id>.json, journal/<id>.json    the members whose hash is the name

An adapter_config.json is PEFT's and says nothing; nor do files of an older lorae, which are believed unless
their content tells.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lorae.identity import digest
from lorae.store.footer import declared_size

OWNER = "lorae_owner"  # key of metadata: the last part of the entry's folder, or the stack's id
OF_THEMSELVES = "member.json", "adapter_config.json"
EVAL_SET = "lorae_set"  # key of metadata of a file in one of these folders: the set's name
OF_SETS = "predictions", "answers"


def marked(folder: str, name: str, content: bytes) -> bytes:
    """The content of an entry's file that says whose it is, where its format has a place that its maker need
    not fill; of no other file, or one that is damaged, the same."""
    owner = folder.rpartition("/")[2]
    try:
        if name.endswith(".safetensors"):
            size = int.from_bytes(content[:8], "little")
            header = json.loads(content[8 : 8 + size])
            header["__metadata__"] = header.get("__metadata__", {}) | {OWNER: owner}
            text = json.dumps(header, separators=(",", ":")).encode()
            text += b" " * (-len(text) % 8)
            return len(text).to_bytes(8, "little") + text + content[8 + size :]
        if name.endswith(".json") and name not in OF_THEMSELVES:
            return json.dumps(json.loads(content) | {"owner": owner}, indent=1).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass
    return content


def check(folder: str, name: str, content: bytes) -> None:
    """Refuse a file of an entry that is another entry's.

    Args:
        folder: of the entry, such as members/<id>.
        name: of the file in it.
    Raises:
        ValueError: whose it is.
    """
    entry = folder.rpartition("/")[2]
    if (owner := owner_of(name, content)) not in (None, entry):
        raise ValueError(f"{folder}/{name} is of {str(owner)[:80]}; repeat the sweep that made {entry}")
    kind = name.partition("/")[0]
    if kind in OF_SETS and (found := _metadata(content).get(EVAL_SET.encode())):
        eval_set = found.decode(errors="replace")
        if name != f"{kind}/{eval_set}.parquet":
            raise ValueError(f"{folder}/{name} has the {kind} of {eval_set}; repeat the sweep")


def owner_of(name: str, content: bytes) -> str | None:
    """Whom a file says it belongs to; None if it does not say, or cannot be read, as its reader will tell."""
    try:
        if name.endswith(".parquet"):
            return _owner_of_table(content)
        if name.endswith(".safetensors"):
            return tensors_metadata(content).get(OWNER)
        record = json.loads(content)
        if name == "member.json" and {"recipe", "streams"} <= record.keys():
            return member_identity(record)
        return record.get("owner")
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def member_identity(record: Mapping[str, Any]) -> str:
    """The id of the member with the recipe and streams of a member.json."""
    return digest(record["recipe"] | {"streams": record["streams"]})


def tensors_metadata(content: bytes) -> dict[str, str]:
    """Metadata of a safetensors file; empty if it has none, or is no such file."""
    size = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + size]) if size <= len(content) - 8 else {}
        found = header.get("__metadata__", {})
        return found if isinstance(found, dict) else {}
    except (ValueError, AttributeError, RecursionError):
        return {}


def _owner_of_table(content: bytes) -> str | None:
    """By a Parquet file's metadata, and by the least and greatest member_id of its rows, which the footer
    has."""
    footer = _footer(content)
    if footer is None:
        return None
    said = (footer.metadata or {}).get(OWNER.encode())
    owners = {said.decode(errors="replace")} if said else set()
    places = [n for n in range(footer.num_columns) if footer.schema.column(n).path == "member_id"]
    for group, place in itertools.product(range(footer.num_row_groups), places):
        bounds = footer.row_group(group).column(place).statistics
        if bounds is not None and bounds.has_min_max:
            owners |= {str(bounds.min), str(bounds.max)}
    return ", ".join(sorted(owners)) or None


def _metadata(content: bytes) -> dict[bytes, bytes]:
    footer = _footer(content)
    return (footer.metadata or {}) if footer else {}


def _footer(content: bytes) -> pq.FileMetaData | None:
    try:
        declared_size(content)  # pyarrow ends the process at some damage
        return pq.read_metadata(pa.BufferReader(content))
    except (pa.ArrowException, OSError, OverflowError, ValueError):
        return None
