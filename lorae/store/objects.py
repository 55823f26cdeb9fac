"""Bytes under names: a local folder, NFS, or any `pyarrow.fs` URI. Writes are atomic."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from lorae.store.local_files import FileInfo, LocalFiles, refuse_large
from lorae.uris import remember, shown

LOG = logging.getLogger("lorae")
OBJECT_STORES = ("s3", "gcs", "abfs")  # no folders to create
MAX_FILE_BYTES = 2**36  # no stored file comes near it
SAME_READS, MAX_READS = 5, 20  # reads of a file whose content is refused
MAX_NAME_BYTES = 200  # of one path part; file systems allow 255, and a scratch file's name is longer
SET_ASIDE = "set-aside"  # damaged entries and checkpoints, which nothing reads
FOLDERS = (
    *("members", "reference", "soups", "pools", "sweeps", "failures"),
    *("checkpoints", "unfinished", "journal", "locks", SET_ASIDE),
)  # folders of every storage
T = TypeVar("T")


def _from_uri(uri: str) -> tuple[fs.FileSystem, str]:
    if uri.startswith("s3://") and "allow_delayed_open" not in uri:
        # One request for a small file instead of three, and no upload left open if the process is killed
        uri += ("&" if "?" in uri else "?") + "allow_delayed_open=true"
    try:
        return fs.FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"storage {shown(uri)} cannot be opened ({shown(str(error))}); give a folder or a URI of "
            "pyarrow.fs, / and @ in its credentials written as %2F and %40, or keep those in the environment"
        ) from None  # the cause repeats the URI


class Objects:
    """A root with relative names below it.

    Args:
        uri: a path, or a URI that `pyarrow.fs` understands (s3://bucket/folder, gs://..., file:///...).
    Attributes:
        uri: the URI without credentials, for display.
    Raises:
        ValueError: `pyarrow.fs` does not understand the URI.
    """

    retry_seconds = 300.0  # a file server restarts within minutes; a stack may have taken hours

    def __init__(self, uri: str) -> None:
        remember(uri)
        if "://" in uri:
            self.filesystem, self.root = _from_uri(uri)
        else:
            self.filesystem, self.root = fs.LocalFileSystem(), str(Path(uri).expanduser().resolve())
        self.uri = shown(uri) if "://" in uri else self.root
        self.local = LocalFiles(self.root)  # used where `is_local`

    @property
    def is_local(self) -> bool:
        """Whether the root is a path of this machine (NFS included)."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def path(self, name: str) -> str:
        """Full path of a name, for messages and for readers that take a filesystem.

        Raises:
            ValueError: the name leads out of the root, or is no valid file name.
        """
        parts = name.split("/")
        if (
            {"", ".", ".."} & set(parts)
            or "\0" in name
            or max(len(os.fsencode(p)) for p in parts) > MAX_NAME_BYTES
        ):
            raise ValueError(
                f"{name[:300]!r} is no name of a file in a storage: its parts must be 1 to {MAX_NAME_BYTES} "
                "bytes and not . or ..; rename what it was made from"
            )
        return f"{self.root}/{name}"

    def read(self, name: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        """`read_once`, retried while the storage refuses; only FileNotFoundError means "not there".

        Raises:
            OSError: the storage refused for `retry_seconds`.
        """
        return self._retried(name, lambda: self.read_once(name, max_bytes), (FileNotFoundError,))

    def read_as(self, name: str, parse: Callable[[bytes], T], max_bytes: int = MAX_FILE_BYTES) -> T:
        """`parse` of a file's content. Content that `parse` refuses with a ValueError is read again, and the
        error is raised once the same bytes have come `SAME_READS` times: this judges the stored bytes, not
        the transfer.

        Raises:
            ValueError: from `parse`, or see `read_once`.
            OSError: the storage refused, or sent different bytes each time.
        """
        seen: Counter[bytes] = Counter()
        while True:
            content = self.read(name, max_bytes)
            try:
                return parse(content)
            except ValueError as error:
                digest = hashlib.sha256(content).digest()
                seen[digest] += 1
                if self.is_local or seen[digest] == SAME_READS:
                    raise
                if len(seen) == MAX_READS:
                    raise OSError(
                        f"storage {self.uri} sent other bytes of {name} at each of {MAX_READS} reads; "
                        "mend the connection or mount, then repeat the command"
                    ) from error
                LOG.warning("%s; reading it again", error)

    def read_once(self, name: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        """Content of a file; FileNotFoundError if there is none.

        Raises:
            ValueError: the file is larger than `max_bytes`, or a pipe or device.
        """
        path = self.path(name)
        if self.is_local:
            return self.local.read(name, max_bytes)
        with self.filesystem.open_input_file(path) as stream:
            refuse_large(path, stream.size(), max_bytes)
            for fill in (b"\0", b"\xff"):
                # Arrow does not notice a truncated answer that claims to be complete: it leaves the rest of
                # the buffer alone. The last byte tells, read twice if it may be the fill.
                stream.seek(0)
                content = bytearray(fill * stream.size())
                if (came := stream.readinto(content)) < len(content):
                    raise OSError(f"{path} has {len(content)} bytes, {came} came")
                if not content.endswith(fill):
                    return bytes(content)
            if content:
                raise OSError(f"{path} has {len(content)} bytes, the last ones did not come")
            return b""

    def write(self, name: str, content: bytes) -> None:
        """`write_once`, retried while the storage refuses; OSError after `retry_seconds` of refusals."""
        self._retried(name, lambda: self.write_once(name, content))

    def write_once(self, name: str, content: bytes) -> None:
        """Write a file atomically: a reader, or a crash, leaves either the old content or the new."""
        path = self.path(name)
        if self.is_local:
            self.local.write(name, content)
            return
        if self.filesystem.type_name not in OBJECT_STORES:
            self.filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        with self.filesystem.open_output_stream(
            path
        ) as stream:  # an object appears when its upload completes
            stream.write(content)

    def exists(self, name: str) -> bool:
        """Whether the file exists; retried like `read`."""
        path = self.path(name)
        if self.is_local:
            return self._retried(name, lambda: self.local.is_file(name))
        return self._retried(name, lambda: self.filesystem.get_file_info(path)).type == fs.FileType.File

    def names(self, folder: str) -> list[str]:
        """Names of the files and folders directly in `folder`, sorted, without hidden ones."""
        self.path(folder)
        if self.is_local:
            found = self._retried(folder, lambda: self.local.names(folder))
        else:
            found = [info.base_name for info in self._selected(folder, recursive=False)]
        return sorted(name for name in found if not name.startswith("."))

    def details(self, folder: str) -> dict[str, FileInfo]:
        """Size and modification time of every file below `folder`, by its name relative to it."""
        start = len(self.path(folder)) + 1
        if self.is_local:
            return self._retried(folder, lambda: self.local.details(folder))
        found = self._selected(folder, recursive=True)
        files = [info for info in found if info.type == fs.FileType.File]
        return {info.path[start:]: FileInfo(info.size, info.mtime_ns) for info in files}

    def _selected(self, folder: str, recursive: bool) -> list[fs.FileInfo]:
        selector = fs.FileSelector(self.path(folder), recursive=recursive, allow_not_found=True)
        return self._retried(folder, lambda: self.filesystem.get_file_info(selector))

    def has_link(self, folder: str) -> bool:
        """Whether there is a symbolic link in a folder."""
        self.path(folder)
        return self.is_local and self._retried(folder, lambda: self.local.has_link(folder))

    def delete(self, name: str) -> None:
        """Delete a file if it exists; retried like `write`."""
        path = self.path(name)

        def delete_once() -> None:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                if self.is_local:
                    self.local.delete(name)
                else:
                    self.filesystem.delete_file(path)

        if self.is_local or self.exists(name):
            self._retried(name, delete_once)

    def set_aside(self, name: str) -> str:
        """Move a file, or a folder with all its files, to a new name below SET_ASIDE; returns that name."""
        number = 1
        while self._is_there(target := f"{SET_ASIDE}/{name.replace('/', '-')}-{number}"):
            number += 1
        if self.is_local:
            with contextlib.suppress(FileNotFoundError):  # another process moved it
                self.local.move(name, target)
            return target
        moves = {name: target}
        if not self.exists(name):
            moves = {f"{name}/{file}": f"{target}/{file}" for file in self.details(name)}
        for source, destination in moves.items():
            if self.filesystem.type_name not in OBJECT_STORES:
                self.filesystem.create_dir(self.path(destination).rpartition("/")[0], recursive=True)
            self.filesystem.move(self.path(source), self.path(destination))
        return target

    def _is_there(self, name: str) -> bool:
        if self.is_local:
            return self.local.is_there(name)
        return self.filesystem.get_file_info(self.path(name)).type != fs.FileType.NotFound

    def local_path(self, name: str) -> str:
        """Path of a file or folder for code that opens it itself, such as a database.

        Raises:
            ValueError: the path is or passes through a symbolic link, or is a pipe or device.
        """
        path, parts = self.path(name), name.split("/")
        for depth in range(1, len(parts) + 1):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                mode = os.lstat(f"{self.root}/{'/'.join(parts[:depth])}").st_mode
                if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                    raise ValueError(
                        f"{path} is no plain file or folder of the storage but a link, pipe or "
                        "device; delete it"
                    )
        return path

    def _retried(self, name: str, action: Callable[[], T], answers: tuple[type[OSError], ...] = ()) -> T:
        """The result of `action`; if the storage refuses, it is retried after 1, 2, 4, ... seconds.

        Args:
            answers: errors that are no refusals, and are raised at once.
        """
        deadline, pause = time.monotonic() + self.retry_seconds, 1.0
        while True:
            try:
                return action()
            except answers:
                raise
            except OSError as error:
                if time.monotonic() + pause > deadline:
                    raise OSError(
                        f"storage {self.uri} refused {name} for {self.retry_seconds:.0f} s ({error}); "
                        "free space or mend it, then repeat the command"
                    ) from error
                LOG.warning("storage refused %s (%s); trying again in %.0f s", name, error, pause)
            time.sleep(pause)
            pause = min(2 * pause, 30.0)

    def check_writable(self) -> None:
        """Write, read and delete a small file; none of the storage's own folders may be a link.

        Raises:
            ValueError: says what the storage refused.
        """
        links = [folder for folder in FOLDERS if self.is_local and Path(self.root, folder).is_symlink()]
        if links:
            raise ValueError(
                f"storage {self.uri} has links in it ({', '.join(links)}), and nothing is written "
                "through those; put the folders themselves there, or give the folder that they lead to"
            )
        name, content = f"write-test-{os.getpid()}", os.urandom(4096)

        def check(found: bytes) -> None:
            if found != content:
                raise ValueError(
                    f"storage {self.uri} returned other bytes than were written; check the disk or mount"
                )

        try:
            self.write_once(name, content)
            self.read_as(name, check)
            self.delete(name)
        except OSError as error:
            raise ValueError(
                f"storage {self.uri} cannot be written ({error}); give a folder with write permission "
                "and free space by --storage"
            ) from error
