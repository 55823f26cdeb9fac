"""A storage: bytes under names, with locks, and what dead processes left swept up."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterator

from lorae.store.local_files import NoLocksError
from lorae.store.objects import Objects

SINGLE_DRIVER = "locks/single-driver"  # there while the one driver of a storage without locks runs


class Storage(Objects):
    """A root with relative names below it; see `Objects`."""

    @contextlib.contextmanager
    def lock(self, name: str, wait: bool = False) -> Iterator[bool]:
        """Hold the exclusive lock `name`; yields False if another process holds it and `wait` is False.

        The kernel releases the lock of a process that dies. Object stores have no locks: there True is
        yielded always, and two sweeps that train the same member at once both store it, file by file; where
        their bytes differ, it may be found damaged, and a repeated sweep trains it again. So it is on a mount
        without locks while its one driver runs (`driving`).

        Raises:
            ValueError: the mount has no locks, and no driver has said that it is the only one.
        """
        file = f"locks/{name}"
        self.path(file)
        if not self.is_local:
            yield True
            return
        with contextlib.ExitStack() as held:
            try:
                mine = self._retried(
                    file, lambda: held.enter_context(self.local.locked(file, wait)), (NoLocksError,)
                )
            except NoLocksError as error:
                if not self.exists(SINGLE_DRIVER):
                    raise ValueError(_no_locks(self, error)) from error
                mine = True
            yield mine

    def locking_fault(self, make: bool = True) -> str | None:
        """Why this storage cannot tell which members other sweeps train, and what to do; None if it can.

        Args:
            make: the lock that is tried; else, where there is none yet, nothing is found.
        """
        if not self.is_local:
            return None
        try:
            with self.local.locked("locks/taking", wait=False, make=make):
                return None
        except NoLocksError as error:
            return _no_locks(self, error)
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def driving(self, single: bool) -> Iterator[None]:
        """The time in which a driver has stacks trained.

        Args:
            single: the user says that no other driver works on this storage; asked for only where the mount
                has no locks.
        Raises:
            ValueError: the mount has no locks, and `single` is not set or another single driver is there.
        """
        if (fault := self.locking_fault()) is None:
            yield
            return
        if not single:
            raise ValueError(fault)
        self._claim()
        try:
            yield
        finally:
            self.delete(SINGLE_DRIVER)

    def _claim(self) -> None:
        """Create SINGLE_DRIVER, in place of that of a driver that has died here."""
        owner = {"place": _place(), "pid": os.getpid()}
        created = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            with self.local.opened(SINGLE_DRIVER, created, make=True) as descriptor:
                os.write(descriptor, json.dumps(owner).encode())
        except FileExistsError:
            if not self._has_died():
                raise ValueError(
                    f"{self.path(SINGLE_DRIVER)} is of another driver that runs, or ran on another machine; "
                    "wait for its end, or delete the file if it has ended"
                ) from None
            self.delete(SINGLE_DRIVER)
            self._claim()

    def _has_died(self) -> bool:
        """Whether SINGLE_DRIVER is of a process that ran here and has ended; only here can that be known."""
        try:
            owner = json.loads(self.read(SINGLE_DRIVER, max_bytes=1000))
            if owner["place"] == _place():
                os.kill(int(owner["pid"]), 0)
        except ProcessLookupError:
            return True
        except (ValueError, TypeError, KeyError, OSError):
            pass
        return False

    def sweep_entry(self, folder: str) -> None:
        """Delete the files that killed processes were writing in an entry."""
        if self.is_local:
            for inner in (folder, *(f"{folder}/{name}" for name in ("predictions", "answers", "snapshots"))):
                self.local.sweep(inner)

    def sweep(self) -> None:
        """Delete what killed processes left: files that they were writing, tokens of drivers."""
        if self.is_local:
            for folder in ("", "checkpoints", "journal", "failures", "locks"):
                self.local.sweep(folder)
            for name in self.local.names("locks"):
                if name.startswith("driver-"):
                    with contextlib.suppress(OSError, ValueError):
                        self.local.delete_unlocked(f"locks/{name}")


def _no_locks(storage: Storage, error: OSError) -> str:
    return (
        f"storage {storage.uri} cannot lock files ({error.strerror}), so that two sweeps at once would train "
        "the same members; mount it with locks, or run one sweep at a time and say so by --single-driver"
    )


def _place() -> str:
    """Where a process's number means that process."""
    try:
        return f"{platform.node()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()
