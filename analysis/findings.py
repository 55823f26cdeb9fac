"""The findings of a check of `analysis.audit`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Status = Literal["passed", "failed", "not applicable"]
Problem = tuple[str, str]  # where, what


@dataclass(frozen=True)
class Finding:
    """A finding of a check, which has one if it passed or has nothing to look at, else one per fault."""

    check: str
    status: Status
    where: str  # entry, file and column, or trial
    what: str


def results(check: str, problems: Iterable[Problem], num_seen: int, seen: str) -> list[Finding]:
    """Findings of one check that looked at `num_seen` things, named by `seen`."""
    faults = [Finding(check, "failed", where, what) for where, what in problems]
    if faults:
        return faults
    if num_seen == 0:
        return [Finding(check, "not applicable", "", f"no {seen} to look at")]
    return [Finding(check, "passed", "", f"{num_seen} {seen}")]
