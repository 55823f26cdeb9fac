"""`lorae check`: report every fault of a sweep file, its data and its backbones' files at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jobs.request import load_module, sweep_file, sweep_of, with_override
from lorae.planning.faults import sweep_faults
from lorae.uris import shown


def run_check(file: str, overrides: Sequence[str], data_root: str | None, smoke: bool) -> int:
    """Print each fault on a line; returns 1 if there are any, else 0.

    Raises:
        ValueError: no such file, or an override that does not fit the sweep.
    """
    path = sweep_file(file)
    try:
        sweep = sweep_of(load_module(path), smoke)
    except ValueError as error:
        return _report(path, [str(error)])
    for override in overrides:
        sweep = with_override(sweep, override)
    return _report(path, sweep_faults(sweep, Path(data_root) if data_root else None))


def _report(path: Path, faults: Sequence[str]) -> int:
    for fault in faults:
        print(shown(fault))
    print(f"{path}: {len(faults) or 'no'} fault{'' if len(faults) == 1 else 's'}")
    return int(bool(faults))
