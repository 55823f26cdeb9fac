"""What makes two recipes the same: canonical JSON of frozen dataclasses, and its hash."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any, get_args

# Enters every member_id: raise it when the meaning of a recipe or the training procedure changes
SCHEMA_VERSION = 1
# Metadata of a field that was added to a spec after members had been stored: its default is not hashed
IF_SET = {"default_identity": False}


def canonical(value: Any) -> Any:
    """JSON value that is equal for equal specs; everything that it cannot represent is refused.

    A dataclass becomes {"type": class name, field: value, ...} with the fields that are not marked
    `identity=False`; if it defines `fingerprint()`, the fingerprint is used instead. Tuples and lists become
    lists, integral floats become ints (1.0 and 1 are the same setting).

    Raises:
        TypeError: a type without a canonical form (set, array, function, ...).
        ValueError: a NaN or infinite number.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} cannot be part of an identity; settings must be finite numbers")
        return int(value) if value.is_integer() else value
    if isinstance(value, (tuple, list)):
        return [canonical(v) for v in value]
    if isinstance(value, dict):
        if not all(isinstance(k, str) for k in value):
            raise TypeError(f"dict keys of an identity must be str, got {list(value)}")
        return {k: canonical(v) for k, v in sorted(value.items())}
    if hasattr(value, "fingerprint"):
        return canonical(value.fingerprint())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__} | fields_of(value)
    raise TypeError(
        f"{type(value).__name__} has no canonical form; use frozen dataclasses, tuples and plain values"
    )


def spec_of(value: Any, types: Sequence[type]) -> Any:
    """Inverse of `canonical` for dataclasses of these types and plain values; lists become tuples.

    Raises:
        ValueError: another type, or fields that the type lacks or refuses.
    """
    if isinstance(value, list):
        return tuple(spec_of(v, types) for v in value)
    if not isinstance(value, dict):
        return value
    kind = next((t for t in types if t.__name__ == value.get("type")), None)
    if kind is None:
        known = ", ".join(t.__name__ for t in types)
        raise ValueError(f"{value.get('type')!r} is not known to this lorae; it reads {known}")
    try:
        return kind(**{name: spec_of(v, types) for name, v in value.items() if name != "type"})
    except TypeError as error:
        raise ValueError(f"{canonical_json(value)} is no {kind.__name__} of this lorae ({error})") from error


def fields_of(spec: Any, base: type | None = None) -> dict[str, Any]:
    """Canonical values of a dataclass's fields, without fields declared with `metadata={"identity": False}`,
    and without fields declared with `IF_SET` that have their default.

    Args:
        base: a base dataclass of `spec`, whose fields are left out.
    """
    inherited = {f.name for f in dataclasses.fields(base)} if base else ()
    values = ((f, getattr(spec, f.name)) for f in dataclasses.fields(spec) if f.name not in inherited)
    return {
        f.name: canonical(value)
        for f, value in values
        if f.metadata.get("identity", True)
        and (f.metadata.get("default_identity", True) or value != f.default)
    }


def check_kind(name: str, value: Any, union: Any) -> None:
    """Refuse a spec whose class is not in a union, such as a user's subclass: it would be part of the
    identity but never applied.

    Raises:
        ValueError: the class is not in the union.
    """
    known = get_args(union) or (union,)
    if type(value) not in known:
        names = ", ".join(kind.__name__ for kind in known if kind is not type(None))
        kind_name = type(value).__name__
        raise ValueError(f"{name}={value!r}: training knows no {kind_name}; write one of {names}")


def canonical_json(value: Any) -> str:
    """`canonical(value)` as one line of JSON with sorted keys."""
    return json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of the canonical JSON."""
    return short_hash(canonical_json(value))


def short_hash(text: str) -> str:
    """First 16 hex digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
