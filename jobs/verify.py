"""Bit rot changes neither the size nor the time of a file, so entries that a sweep is about to use are read
once per run and compared with their checksums, while the sweep trains."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from lorae.planning.plan import Plan
from lorae.store.ahead import MAX_AHEAD_BYTES, READERS
from lorae.store.names import entry_lock, member_folder, reference_folder, soup_folder
from lorae.store.store import Store

THREADS = 2  # one hashes while the other reads; training needs the rest


def used_entries(plan: Plan) -> list[str]:
    """Folders of the members that a plan found stored, and of backbones' and soups' predictions."""
    members = [*plan.stored, *(plan.tuning.stored if plan.tuning else ())]
    trials = [trial for trial, _ in plan.trials]
    found = [reference_folder(trial.reference_id()) for trial in trials]
    found += [soup_folder(trial.member_ids()) for trial in trials if trial.is_soup]
    return [*dict.fromkeys([*map(member_folder, members), *found])]


@contextlib.contextmanager
def verifying(store: Store, folders: Iterable[str]) -> Iterator[Callable[[], list[str]]]:
    """Read entries in the background; the yielded function waits and returns the damaged ones."""
    folders = [*folders]
    with ThreadPoolExecutor(_num_threads(store, folders)) as pool:
        found = {folder: pool.submit(store.damage, folder) for folder in folders}
        try:
            yield lambda: [folder for folder, damage in found.items() if damage.result()]
        finally:
            pool.shutdown(cancel_futures=True)


def _num_threads(store: Store, folders: Sequence[str]) -> int:
    """More for an object store, which answers slowly: as many as memory allows for files like those of the
    first entry."""
    if store.storage.is_local or not folders:
        return THREADS
    largest = max(store.file_bytes(folders[0]).values(), default=1)
    return max(THREADS, min(READERS, MAX_AHEAD_BYTES // max(1, largest)))


def set_rotten_aside(store: Store, folders: Iterable[str]) -> None:
    """Set damaged entries aside, except those that another process works on, which checks them itself."""
    for folder in folders:
        with store.storage.lock(entry_lock(folder)) as mine:
            if mine:
                store.set_damaged_aside([folder])
