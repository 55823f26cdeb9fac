"""Files that are parts of a set, `test-00000-of-00002.parquet`: only one complete set is read."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import PurePath

# A part's number and the number of parts; a hash of the content may follow
PART = re.compile(r"(?P<stem>.+?)[-_.]?(?P<part>\d+)-of-(?P<total>\d+)(?!\d).*")
NUMBER = re.compile(r"(0\d{3,})\.parquet")  # a part in the hub's own export, `test/0000.parquet`


def check_one_set(paths: Iterable[PurePath]) -> None:
    """Refuse files unless each folder has exactly one complete set.

    Args:
        paths: all files that would be read together.
    Raises:
        ValueError: a part is missing or occurs twice, or there are several sets; names the files.
    """
    folders: defaultdict[PurePath, list[str]] = defaultdict(list)
    for path in paths:
        folders[path.parent].append(path.name)
    for folder, names in folders.items():
        _check_folder(folder, sorted(names))


def _check_folder(folder: PurePath, names: list[str]) -> None:
    sets: defaultdict[tuple[str, int], dict[str, int]] = defaultdict(dict)
    for name in names:
        if part := PART.fullmatch(name):
            sets[part["stem"], int(part["total"])][name] = int(part["part"])
    num_parts = sum(map(len, sets.values()))
    if len(sets) > 1 or 0 < num_parts < len(names):
        raise ValueError(
            f"{folder} has files of several sets beside each other: {listed(names)}; remove all but those "
            "that are meant"
        )
    for (stem, total), parts in sets.items():
        numbers = range(total) if 0 in parts.values() else range(1, total + 1)
        _check_set(f"{folder} has {listed(parts)}: of the {total} parts of {stem}", numbers, parts)
    if not sets:
        parts = {name: int(number[1]) for name in names if (number := NUMBER.fullmatch(name))}
        _check_set(f"{folder} has {listed(parts)}:", range(max(parts.values(), default=-1) + 1), parts)


def _check_set(what: str, numbers: range, parts: dict[str, int]) -> None:
    there = Counter(parts.values())
    if wrong := [n for n, count in there.items() if count > 1 or n not in numbers]:
        names = [name for name, number in parts.items() if number in wrong]
        raise ValueError(f"{what} {listed(names)} are too many; remove all but those that are meant")
    if missing := [str(n) for n in numbers if n not in there]:
        raise ValueError(f"{what} number {listed(missing)} is missing; copy it there")


def listed(names: Iterable[str], most: int = 4) -> str:
    """The first names of a list, and the number of further names."""
    every = list(names)
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")
