"""What was read of a storage's entries while something is planned or tabulated from many of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from lorae.store.storage import Storage

MAX_SEEN = 4096  # DONE.json of the last entries, some kilobytes each


class Seen:
    """Entries as they were when they were first asked for: the DONE.json of each, and the names of all.

    A DONE.json changes when an entry gets more files, so what is seen is used for a while only, and a fault
    that it shows is judged again without it (`Entries.remembering`).
    """

    def __init__(self, storage: Storage) -> None:
        self.storage, self.lock = storage, threading.Lock()
        self.done: dict[str, dict[str, Any]] = {}
        self.names: dict[str, set[str]] = {}

    def done_of(self, folder: str, read: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
        """An entry's DONE.json by `read`, or as it was read before.

        Raises:
            FileNotFoundError: there is none.
        """
        if (done := self.done.get(folder)) is not None:
            return done
        if not self._is_there(folder):
            raise FileNotFoundError(folder)
        done = read(folder)
        with self.lock:
            self.done[folder] = done
            if len(self.done) > MAX_SEEN:
                del self.done[next(iter(self.done))]
        return done

    def _is_there(self, folder: str) -> bool:
        kind, _, entry = folder.rpartition("/")
        with self.lock:
            if kind not in self.names:
                self.names[kind] = set(self.storage.names(kind))
            return entry in self.names[kind]

    def forget(self, folder: str) -> bool:
        """Have an entry read again; whether it had been read."""
        kind, _, entry = folder.rpartition("/")
        with self.lock:
            self.names.get(kind, set()).add(entry)  # it may be there now
            return self.done.pop(folder, None) is not None
