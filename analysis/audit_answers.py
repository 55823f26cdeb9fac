"""The check of `analysis.audit` on the texts that members wrote."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from analysis.findings import Finding, Problem, results
from lorae.store.answers import Answers, answers_file
from lorae.store.names import WEIGHTS, member_folder, texts_folder

if TYPE_CHECKING:
    from analysis.audit import Stored


def answers_are_whole(stored: Stored) -> list[Finding]:
    """Every member gives each token of a text a log-probability of at most 0; each text occurs once and was
    written by a member of its pool; the members are those of the entry, as they are stored now; and all
    entries have the same references for a set."""
    problems: list[Problem] = []
    references: dict[str, tuple[str, list[tuple[str, int, str]]]] = {}
    num = 0
    for folder in stored.folders:
        for name in _sets(stored, folder) if folder not in stored.broken else ():
            num += 1
            where = f"{folder}/{answers_file(name)}"
            try:
                found = stored.store.answers(folder, name)
            except ValueError as error:
                problems.append((where, str(error)))
                continue
            problems += [(where, fault) for fault in _faults(stored, folder, found)]
            seen = [(a.example_id, a.draw, a.text) for a in found.answers if a.kind == "reference"]
            first, expected = references.setdefault(name.rpartition("-")[0], (where, seen))
            if seen != expected:
                problems.append((where, f"other references than in {first}"))
    return results("answers are whole", problems, num, "sets of answers")


def _sets(stored: Stored, folder: str) -> list[str]:
    """Names of an entry's answers."""
    start, end = answers_file("\0").split("\0")
    files = (file for file in stored.store.files(folder) if file.startswith(start))
    return sorted(file.removeprefix(start).removesuffix(end) for file in files)


def _faults(stored: Stored, folder: str, found: Answers) -> Iterator[str]:
    """Faults of answers that the entry's own members, as they are stored now, did not write."""
    kind, _, entry = folder.rpartition("/")
    owner = texts_folder(list(found.members)) if kind == "pools" else f"{kind}/{next(iter(found.members))}"
    if owner != folder or (kind != "pools" and len(found.members) > 1):
        yield f"written by {', '.join(found.members)}, which are not the members of {entry}"
    for member, checksum in found.members.items() if kind in ("members", "pools") else ():
        weights = stored.store.checksums(member_folder(member)).get(WEIGHTS)
        if weights is None or weights["sha256"] != checksum:
            yield f"written by a member {member} with other weights than are stored; repeat the sweep"
