"""Axes of a sweep: dotted paths into a trial, and whether a value fits the field at a path."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from lorae.trial import Trial


def value_at(spec: Any, axis: str) -> Any:
    """The value at a dotted path, None if there is none; the specs in a tuple are named by their type."""
    for name in axis.split("."):
        if isinstance(spec, tuple):
            spec = next((part for part in spec if type(part).__name__ == name), None)
        else:
            has = is_dataclass(spec) and name in {f.name for f in fields(spec)}
            spec = getattr(spec, name) if has else None
    return spec


def with_values(trial: Trial, point: Mapping[str, Any]) -> Trial:
    """`trial` with the fields at several dotted paths replaced together; see `with_value`.

    Only the result is checked as a trial: a strength that is invalid with the old learning rate may be valid
    with the new one.
    """
    changed: dict[str, Any] = {}
    for axis, value in point.items():
        changed |= _changed(trial, axis, value, changed)
    return replace(trial, **changed)


def with_value(spec: Any, axis: str, value: Any) -> Any:
    """`spec` with the field at a dotted path replaced, checked against the field's declared type.

    The specs in a tuple are named by their type: `"regularizers.DecayB.strength"`.

    Raises:
        ValueError: no such field, or a value of the wrong type or out of range.
    """
    if not isinstance(spec, tuple):
        return replace(spec, **_changed(spec, axis, value, {}))
    name, _, rest = axis.partition(".")
    kinds = [type(part).__name__ for part in spec]
    if name not in kinds or not rest:
        raise ValueError(
            f"axis {axis!r}: there is {', '.join(kinds) or 'none'}; write the name of one that is there, "
            "and its field"
        )
    return tuple(with_value(p, rest, value) if type(p).__name__ == name else p for p in spec)


def _changed(spec: Any, axis: str, value: Any, before: Mapping[str, Any]) -> dict[str, Any]:
    """The first field of a dotted path, name -> its new value; `before` holds the fields that other axes have
    already changed."""
    name, _, rest = axis.partition(".")
    known = [f.name for f in fields(spec)]
    if name not in known:
        raise ValueError(f"axis {name!r} is no field of {type(spec).__name__}; it has {', '.join(known)}")
    if rest:
        inner = before.get(name, getattr(spec, name))
        if not is_dataclass(inner) and not (isinstance(inner, tuple) and all(map(is_dataclass, inner))):
            raise ValueError(
                f"axis {axis!r}: {type(spec).__name__}.{name} is {inner!r} and has no field {rest!r}"
            )
        value = with_value(inner, rest, value)
    elif not _fits(value, field_type(spec, name)):
        raise ValueError(f"{axis}={value!r}: must be {_type_name(field_type(spec, name))}")
    return {name: value}


def field_type(spec: Any, name: str) -> Any:
    """Declared type of a dataclass's field."""
    return _types(type(spec))[name]


@functools.cache
def _types(spec: type) -> dict[str, Any]:
    return typing.get_type_hints(spec)


def _fits(value: Any, declared: Any) -> bool:
    origin, args = typing.get_origin(declared), typing.get_args(declared)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, a) for a in args)
    if origin is Literal:
        return value in args
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        inner = args[:1] * len(value) if args[-1] is Ellipsis else args
        return len(inner) == len(value) and all(_fits(v, a) for v, a in zip(value, inner, strict=True))
    if declared is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if declared is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, declared or type(None))


def _type_name(declared: Any) -> str:
    args = typing.get_args(declared)
    if typing.get_origin(declared) in (typing.Union, types.UnionType):
        return " or ".join(_type_name(a) for a in args)
    if typing.get_origin(declared) is Literal:
        return " or ".join(repr(a) for a in args)
    return getattr(declared, "__name__", str(declared)) if not args else str(declared).replace("typing.", "")
