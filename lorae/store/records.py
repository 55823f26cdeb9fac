"""Shapes of stored records and tables; everything that is read is checked against them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from lorae import untrusted
from lorae.identity import SCHEMA_VERSION
from lorae.store.predictions import SCHEMA
from lorae.untrusted import amount, count, number

CURVE = pa.schema(
    [
        ("step", pa.int32()),
        ("split", pa.string()),
        ("loss", pa.float64()),
        ("nll", pa.float64()),
        ("acc", pa.float64()),
        ("lr", pa.float64()),
        ("grad_norm", pa.float64()),
        ("seconds", pa.float64()),
    ],
    metadata=SCHEMA,
)

Shape = Mapping[Any, Any]
_FILES: Shape = {str: {"sha256": str, "bytes": count}}
DONE: Shape = {"files": _FILES}
LEFT_OUT: Shape = {"left_out": _FILES}  # in a copy without weights, see `analysis.archive`
SOUP: Shape = {"members": {str: str}, "cost": {"predict_seconds": number}}
# Not counted by older versions of lorae
COUNTED = dict.fromkeys(("search_flops", "search_process_seconds"), amount)
FIT: Shape = {"search_seconds": number, **COUNTED}  # besides the draws' own `record`


class OtherSchemaError(ValueError):
    """An entry was written by a version of lorae with another schema."""


def checked_done(content: bytes, where: str) -> dict[str, Any]:
    """A DONE.json.

    Raises:
        ValueError: the file is damaged.
        OtherSchemaError: it was written with another schema.
    """
    done = untrusted.json_object(content, where, {"schema": int})
    if done["schema"] != SCHEMA_VERSION:
        raise OtherSchemaError(
            f"{where} has schema {done['schema']}, this lorae reads {SCHEMA_VERSION}; install the lorae "
            "version that wrote it"
        )
    return untrusted.check(done, where, DONE)


def written_at(done: dict[str, Any]) -> float:
    """When a DONE.json was written, in seconds; 0 if it does not say."""
    return done["written"] if number(done.get("written")) else 0.0
