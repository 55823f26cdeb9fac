"""`lorae.sweep(SWEEP, storage=...)`: what the command `lorae sweep` does, from Python and notebooks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.notebook import Results, load
from jobs.driver import run_sweep
from jobs.request import Request, absolute, read_request, sweep_name
from lorae.trial import Sweep


def sweep(
    what: Sweep | str | Path,
    storage: str = "lorae-results",
    *,
    name: str = "sweep",
    overrides: Sequence[str] = (),
    data_root: str | None = None,
    local: bool = False,
    address: str | None = None,
) -> Results:
    """Run a sweep, or what remains of it, and load its results; progress goes to standard error.

    Repeated, it trains nothing that is stored. Ctrl-C, or a notebook's stop button, saves what runs.

    Args:
        what: a Sweep, or the path of a sweep file.
        storage: path or URI where results are kept.
        name: of the sweep in the storage; a file's sweep has the file's name.
        overrides: of a file, as `--set` has them: ["members=1,4", "optimizer.lr=1e-3"].
        data_root: folder with local copies of datasets.
        local: train in this process, one stack after another, without Ray.
        address: Ray cluster, as `--address`.
    Returns:
        The results, without trials that failed; what failed was told.
    Raises:
        ValueError: bad input, before anything is trained; or no trial is done.
    """
    if isinstance(what, Sweep):
        if overrides:
            raise ValueError(
                f"overrides={list(overrides)}: those are for a sweep file; write Sweep(axes=...)"
            )
        request = request_of(what, storage, name, data_root)
    else:
        request = read_request(str(what), overrides, storage, data_root)
    run_sweep(request, local=local, address=address)
    return load(request.storage, request.name, allow_missing=True)


def request_of(what: Sweep, storage: str, name: str, data_root: str | None) -> Request:
    """What a Python program asks for; `command` repeats it."""
    main = getattr(sys.modules["__main__"], "__file__", None)
    where = f"in {Path(main).name}" if main and not hasattr(sys, "ps1") else "in a notebook"
    place = absolute(storage)
    command = f"lorae.sweep(SWEEP, storage={place!r}, name={name!r}) {where}"
    located = what.located(Path(data_root) if data_root else None)
    return Request(sweep_name(name, ()), located, place, command, None)
