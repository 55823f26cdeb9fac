"""Checks of a task itself, made when it is created."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import string
from collections.abc import Iterator
from typing import Any

# Attributes that a subclass of `Task` may set and that are not fields
ATTRIBUTES = {"name", "home", "train", "test", "modality", "prompt_version", "template"}
QUESTION = "{question}"
PAIR = "{pair}"  # the second sentence of a pair


def check_template(template: Any, where: str) -> None:
    """Refuse a template with placeholders other than the question, or both sentences of a pair.

    Raises:
        ValueError: it has no {question}, a placeholder other than {question} and {pair}, or a single brace.
    """
    if not isinstance(template, str):
        raise ValueError(f"{where}: template={template!r} must be text with {QUESTION}")
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{where}: template {template!r}: {error}; {_BRACES}") from error
    placeholders = [_written(name, spec, how) for _, name, spec, how in parsed if name is not None]
    if others := [p for p in placeholders if p not in (QUESTION, PAIR)]:
        raise ValueError(f"{where}: nothing fills {others[0]} of the template {template!r}; {_BRACES}")
    if QUESTION not in placeholders:
        raise ValueError(
            f"{where}: the template {template!r} has no {QUESTION}, so all prompts would be equal; write "
            f"{QUESTION} where the question belongs"
        )


_BRACES = f"write {QUESTION} for the question, and double braces for braces of the text: {{{{ and }}}}"


def _written(name: str | None, spec: str | None, conversion: str | None) -> str:
    """A placeholder as written in the template."""
    return "{" + (name or "") + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "") + "}"


@functools.cache
def check_class(kind: type, base: type) -> None:
    """Refuse a subclass of `Task` whose settings would be ignored.

    Raises:
        ValueError: a class sets or adds a field without being a dataclass, or without the field's type.
    """
    for cls in kind.__mro__[: kind.__mro__.index(base)]:
        bases, written = filter(dataclasses.is_dataclass, cls.__mro__[1:]), inspect.get_annotations(cls)
        inherited = {field.name for b in bases for field in dataclasses.fields(b)}
        untyped = [name for name in vars(cls) if name in inherited and name not in written]
        if untyped:
            raise ValueError(
                f"class {cls.__name__} sets {untyped[0]} without its type, so it would be ignored; write it "
                f"with its type, such as scoring: Scoring = LabelWords(), below {_DATACLASS}"
            )
        if "__dataclass_fields__" not in vars(cls) and (lost := [*_fields(written)]):
            raise ValueError(
                f"class {cls.__name__} sets {lost[0]}, but is no dataclass, so it would be ignored; write "
                f"{_DATACLASS} above the class"
            )


_DATACLASS = "@dataclass(frozen=True, kw_only=True)"


def check_hashable(task: Any) -> None:
    """Refuse unhashable fields, such as a list: a task is looked up by its hash.

    Raises:
        ValueError: names the field.
    """
    for field in dataclasses.fields(task):
        try:
            hash(getattr(task, field.name))
        except TypeError:
            raise ValueError(
                f"{field.name}={getattr(task, field.name)!r}: a task's fields must be hashable; write a tuple"
            ) from None


def _fields(annotations: dict[str, Any]) -> Iterator[str]:
    for name, kind in annotations.items():
        if name not in ATTRIBUTES and "ClassVar" not in (kind if isinstance(kind, str) else repr(kind)):
            yield name


def check_files(task: Any, kinds: dict[str, Any]) -> None:
    """Refuse a task without attributes of these types, which say where its rows are.

    Raises:
        ValueError: names the attribute, and says how to write it.
    """
    for name, kind in kinds.items():
        value = getattr(task, name, "nothing")
        if not isinstance(value, kind):
            raise ValueError(
                f"class {type(task).__name__}: {name} is {value!r}; write {name} = "
                + ('Files("folder") or Hub("owner/name")' if name == "home" else f'parquet("{name}-*")')
            )
