"""Bit rot changes neither the size nor the time of a file: what a sweep is about to use is read once per run,
with its checksums, while the sweep trains."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from lorae.planning.plan import Plan
from lorae.store.ahead import MAX_AHEAD_BYTES, READERS
from lorae.store.names import entry_lock, member_folder, reference_folder, soup_folder
from lorae.store.store import Store

THREADS = 2  # one hashes while the other waits for the disk; training needs the rest


def used_entries(plan: Plan) -> list[str]:
    """Folders of what a plan found stored, and of what backbones and soups have predicted."""
    members = [*plan.stored, *(plan.tuning.stored if plan.tuning else ())]
    trials = [trial for trial, _ in plan.trials]
    found = [reference_folder(trial.reference_id()) for trial in trials]
    found += [soup_folder(trial.member_ids()) for trial in trials if trial.is_soup]
    return [*dict.fromkeys([*map(member_folder, members), *found])]


@contextlib.contextmanager
def verifying(store: Store, folders: Iterable[str]) -> Iterator[Callable[[], list[str]]]:
    """Read entries meanwhile; the yielded function waits, and returns those that are damaged."""
    folders = [*folders]
    with ThreadPoolExecutor(_num_threads(store, folders)) as pool:
        found = {folder: pool.submit(store.damage, folder) for folder in folders}
        try:
            yield lambda: [folder for folder, damage in found.items() if damage.result()]
        finally:
            pool.shutdown(cancel_futures=True)


def _num_threads(store: Store, folders: Sequence[str]) -> int:
    """More for an object store, whose answers take long: as many as there is memory for files like those of
    the first entry."""
    if store.storage.is_local or not folders:
        return THREADS
    largest = max(store.file_bytes(folders[0]).values(), default=1)
    return max(THREADS, min(READERS, MAX_AHEAD_BYTES // max(1, largest)))


def set_rotten_aside(store: Store, folders: Iterable[str]) -> None:
    """Set damaged entries aside, but those that another process works on: it looks at them itself."""
    for folder in folders:
        with store.storage.lock(entry_lock(folder)) as mine:
            if mine:
                store.set_damaged_aside([folder])
