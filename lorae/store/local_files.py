"""Files below a root folder, never reached through a symbolic link: someone who may write to a storage must
not control which other files its readers and writers touch. The root itself may be a link.

Every name is walked from the root, one folder at a time by descriptor, so that a link that appears meanwhile
is not followed either.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass

DAY = 86_400.0  # seconds after which, without locks, a file's writer is assumed dead
MAX_DEPTH = 4  # folder levels below a listed folder; an entry has one
SCRATCH = re.compile(r"\..+\.[a-z0-9_]{8}")  # name of a file that is being written
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)


class LinkError(ValueError):
    """A name in a storage is a symbolic link, or lies behind one."""


class NoLocksError(OSError):
    """The file system cannot lock files."""


@dataclass(frozen=True)
class FileInfo:
    """Size in bytes and time of the last change of a file."""

    size: int
    mtime_ns: int


class LocalFiles:
    """Files by their names relative to a root; names are valid (`Storage.path`).

    All methods raise LinkError if a part of the name is a link.
    """

    def __init__(self, root: str) -> None:
        self.root = root

    @contextlib.contextmanager
    def folder(self, name: str, make: bool = False) -> Iterator[int]:
        """Descriptor of a folder; "" is the root.

        Args:
            make: create the folder and its parents.
        """
        if make:
            os.makedirs(self.root, exist_ok=True)
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for part in filter(None, name.split("/")):
                inner = self._inner(descriptor, part, name, make)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    def _inner(self, outer: int, part: str, name: str, make: bool) -> int:
        if make:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, dir_fd=outer)
        try:
            return os.open(part, _FOLDER, dir_fd=outer)
        except OSError:
            self._refuse_link(outer, part, name)
            raise

    def _refuse_link(self, folder: int, part: str, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISLNK(os.lstat(part, dir_fd=folder).st_mode):
                raise LinkError(
                    f"{self.root}/{name}: {part} is a symbolic link, and nothing inside a storage is read or "
                    "written through one; delete the link (the storage's own folder may be one)"
                )

    @contextlib.contextmanager
    def opened(self, name: str, flags: int, make: bool = False) -> Iterator[int]:
        """Descriptor of a regular file.

        Raises:
            ValueError: the name is a pipe, device or folder.
        """
        folder, _, file = name.rpartition("/")
        with self.folder(folder, make) as inside:
            try:
                descriptor = os.open(file, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644, dir_fd=inside)
            except OSError as error:
                self._refuse_link(inside, file, name)
                if error.errno in (errno.EISDIR, errno.ENXIO):
                    raise self._irregular(name) from error
                raise
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise self._irregular(name)
            yield descriptor
        finally:
            os.close(descriptor)

    def _irregular(self, name: str) -> ValueError:
        return ValueError(
            f"{self.root}/{name} is no regular file; delete it and repeat the sweep that made it"
        )

    def read(self, name: str, max_bytes: int) -> bytes:
        """Content of a file; FileNotFoundError if there is none.

        Raises:
            ValueError: the file is larger than `max_bytes`, or a pipe or device.
        """
        try:
            with self.opened(name, os.O_RDONLY) as descriptor:
                refuse_large(f"{self.root}/{name}", os.fstat(descriptor).st_size, max_bytes)
                with open(descriptor, "rb", closefd=False) as stream:
                    return stream.read()
        except NotADirectoryError as error:  # a part of the path is a file
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self.root}/{name}") from error

    def write(self, name: str, content: bytes) -> None:
        """Write a file atomically: write a scratch file and rename it."""
        folder, _, file = name.rpartition("/")
        with self.folder(folder, make=True) as inside:
            scratch, descriptor = _scratch(inside, file)
            try:
                with os.fdopen(descriptor, "wb") as stream:
                    stream.write(content)
                    stream.flush()
                    os.fsync(descriptor)
                    os.fchmod(descriptor, 0o644)
                    os.replace(scratch, file, src_dir_fd=inside, dst_dir_fd=inside)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(scratch, dir_fd=inside)
                raise

    def sweep(self, folder: str) -> None:
        """Delete a folder's scratch files whose writers have died."""
        for name in filter(SCRATCH.fullmatch, self.names(folder)):
            path = f"{folder}/{name}" if folder else name
            with contextlib.suppress(OSError, ValueError):  # renamed meanwhile, or no file
                self.delete_unlocked(path)

    def delete_unlocked(self, name: str) -> None:
        """Delete a file that no living process has locked."""
        try:
            with self.locked(name, wait=False, make=False) as dead:
                if dead:
                    self.delete(name)
        except NoLocksError:
            with self.opened(name, os.O_RDONLY) as descriptor:
                age = time.time() - os.fstat(descriptor).st_mtime
            if age > DAY:
                self.delete(name)

    def is_file(self, name: str) -> bool:
        """Whether the name is a regular file."""
        folder, _, file = name.rpartition("/")
        try:
            with self.folder(folder) as inside:
                return stat.S_ISREG(os.lstat(file, dir_fd=inside).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def is_there(self, name: str) -> bool:
        """Whether anything has that name, including a link."""
        folder, _, file = name.rpartition("/")
        try:
            with self.folder(folder) as inside:
                os.lstat(file, dir_fd=inside)
                return True
        except (FileNotFoundError, NotADirectoryError):
            return False

    def names(self, folder: str) -> list[str]:
        """Names directly in a folder, including hidden ones; empty if the folder does not exist."""
        try:
            with self.folder(folder) as inside:
                return os.listdir(inside)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def details(self, folder: str) -> dict[str, FileInfo]:
        """Every regular file below a folder, by its name relative to it."""
        try:
            with self.folder(folder) as inside:
                return dict(_files(inside, "", MAX_DEPTH))
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def has_link(self, folder: str) -> bool:
        """Whether a folder exists and has a link in it."""
        try:
            with self.folder(folder) as inside, os.scandir(inside) as found:
                return any(item.is_symlink() for item in found)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def delete(self, name: str) -> None:
        """Delete a file, or a link itself; FileNotFoundError if there is none."""
        folder, _, file = name.rpartition("/")
        with self.folder(folder) as inside:
            os.unlink(file, dir_fd=inside)

    def move(self, name: str, target: str) -> None:
        """Rename a file, a folder, or a link itself."""
        (folder, _, file), (other, _, renamed) = name.rpartition("/"), target.rpartition("/")
        with self.folder(folder) as source, self.folder(other, make=True) as destination:
            os.rename(file, renamed, src_dir_fd=source, dst_dir_fd=destination)

    @contextlib.contextmanager
    def locked(self, name: str, wait: bool, make: bool = True) -> Iterator[bool]:
        """Hold the kernel's lock on a file, without changing its content; yields False if another process
        holds it and `wait` is False.

        Raises:
            NoLocksError: the file system has no locks.
        """
        with self.opened(name, os.O_RDWR | (os.O_CREAT if make else 0), make) as descriptor:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                mine = True
            except BlockingIOError:
                mine = False
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    raise NoLocksError(error.errno, error.strerror, f"{self.root}/{name}") from error
                raise
            yield mine


def refuse_large(path: str, size: int, max_bytes: int) -> None:
    """Raise ValueError if a file is too large to be read."""
    if size > max_bytes:
        raise ValueError(
            f"{path} has {size} bytes, at most {max_bytes} are read; delete it and repeat the sweep that "
            "made it"
        )


def _scratch(folder: int, file: str) -> tuple[str, int]:
    """Name and descriptor of a new, locked scratch file: an unlocked one has a dead writer (`sweep`)."""
    while True:
        name = f".{file}.{secrets.token_hex(4)}"
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=folder)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.lstat(name, dir_fd=folder)
        except (BlockingIOError, FileNotFoundError):  # swept up before it was locked
            os.close(descriptor)
            continue
        except OSError:  # no locks here; its age decides
            pass
        return name, descriptor


def _files(folder: int, prefix: str, depth: int) -> Iterator[tuple[str, FileInfo]]:
    with os.scandir(folder) as found:
        for item in found:
            try:
                info = item.stat(follow_symlinks=False)
            except FileNotFoundError:  # a scratch file that was renamed
                continue
            if stat.S_ISREG(info.st_mode):
                yield prefix + item.name, FileInfo(info.st_size, info.st_mtime_ns)
            elif stat.S_ISDIR(info.st_mode) and depth:
                inner = os.open(item.name, _FOLDER, dir_fd=folder)
                try:
                    yield from _files(inner, f"{prefix}{item.name}/", depth - 1)
                finally:
                    os.close(inner)
