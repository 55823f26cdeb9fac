"""Bytes under names: a local folder, NFS, or any `pyarrow.fs` URI. Writes appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO, TypeVar

import pyarrow as pa
from pyarrow import fs

from lorae.uris import shown

LOG = logging.getLogger("lorae")
OBJECT_STORES = ("s3", "gcs", "abfs")  # have no folders to create
MAX_FILE_BYTES = 2**36  # no stored file comes near it
SAME_READS, MAX_READS = 3, 20  # of a file whose content is refused
MAX_NAME_BYTES = 200  # of one part; file systems allow 255, a scratch file's name is longer than its target's
T = TypeVar("T")


def _from_uri(uri: str) -> tuple[fs.FileSystem, str]:
    if (
        uri.startswith("s3://") and "allow_delayed_open" not in uri
    ):  # one request for a small file, not three,
        uri += (
            "&" if "?" in uri else "?"
        ) + "allow_delayed_open=true"  # and no upload that a kill leaves open
    try:
        return fs.FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"storage {shown(uri)} cannot be opened ({shown(str(error))}); give a folder or a URI of "
            "pyarrow.fs, / and @ in its credentials written as %2F and %40, or keep those in the environment"
        ) from None  # the cause repeats the URI


class Storage:
    """A root with relative names below it.

    Args:
        uri: a path, or a URI that `pyarrow.fs` understands (s3://bucket/folder, gs://..., file:///...).
    Attributes:
        uri: the same without credentials, to be shown.
    Raises:
        ValueError: `pyarrow.fs` does not understand the URI.
    """

    retry_seconds = 300.0  # a file server restarts within minutes; a stack may have taken hours

    def __init__(self, uri: str) -> None:
        if "://" in uri:
            self.filesystem, self.root = _from_uri(uri)
        else:
            self.filesystem, self.root = fs.LocalFileSystem(), str(Path(uri).expanduser().resolve())
        self.uri = shown(uri) if "://" in uri else self.root

    @property
    def is_local(self) -> bool:
        """Whether the root is a path of this machine (NFS included)."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def path(self, name: str) -> str:
        """Full path of a name, for messages and for readers that take a filesystem.

        Raises:
            ValueError: the name leads out of the root, or no file can have it.
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
        """`read_once`, tried again while the storage refuses; FileNotFoundError alone says "not there".

        Raises:
            OSError: the storage refused for `retry_seconds`.
        """
        return self._retried(name, lambda: self.read_once(name, max_bytes), (FileNotFoundError,))

    def read_as(self, name: str, parse: Callable[[bytes], T], max_bytes: int = MAX_FILE_BYTES) -> T:
        """What `parse` makes of a file. Content that it refuses by a ValueError is read again, and refused
        when the same has come `SAME_READS` times: so what is stored is judged, not how it travelled.

        An object store's answer may be cut. Arrow does not notice where the answer says that this is all: the
        bytes that lack are whatever the memory held.

        Raises:
            ValueError: of `parse`; or see `read_once`.
            OSError: the storage refused, or sent something else each time.
        """
        seen: Counter[bytes] = Counter()
        while True:
            content = self.read(name, max_bytes)
            try:
                return parse(content)
            except ValueError as error:
                digest = hashlib.sha256(content).digest()
                seen[digest] += 1
                if seen[digest] == SAME_READS:
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
            ValueError: it is larger than `max_bytes`, or no file but a pipe or device.
        """
        path = self.path(name)
        if self.is_local and not Path(path).exists():  # nor its folder, for which pyarrow has another error
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if self.is_local and not Path(path).is_file():
            raise ValueError(f"{path} is no regular file; delete it and repeat the sweep that made it")
        with self.filesystem.open_input_file(path) as stream:
            if stream.size() > max_bytes:
                raise ValueError(
                    f"{path} has {stream.size()} bytes, at most {max_bytes} are read; delete it and "
                    "repeat the sweep that made it"
                )
            content = stream.read()
            if len(content) < stream.size():
                raise OSError(f"{path} has {stream.size()} bytes, {len(content)} came")
            return content

    def write(self, name: str, content: bytes) -> None:
        """`write_once`, tried again while the storage refuses; OSError when it did so for `retry_seconds`."""
        self._retried(name, lambda: self.write_once(name, content))

    def write_once(self, name: str, content: bytes) -> None:
        """Write a file so that a reader, or a crash, sees the old content or the new one."""
        if not self.is_local:  # an object appears when its upload completes
            if self.filesystem.type_name not in OBJECT_STORES:
                self.filesystem.create_dir(self.path(name).rpartition("/")[0], recursive=True)
            with self.filesystem.open_output_stream(self.path(name)) as stream:
                stream.write(content)
            return
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, scratch = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(scratch, 0o644)
            os.replace(scratch, target)
        except BaseException:
            Path(scratch).unlink(missing_ok=True)
            raise

    def exists(self, name: str) -> bool:
        """Whether there is such a file; tried again like `read`."""
        path = self.path(name)
        return self._retried(name, lambda: self.filesystem.get_file_info(path)).type == fs.FileType.File

    def names(self, folder: str) -> list[str]:
        """Names of the files and folders directly in `folder`, sorted; hidden ones left out."""
        found = self._selected(folder, recursive=False)
        return sorted(info.base_name for info in found if not info.base_name.startswith("."))

    def details(self, folder: str) -> dict[str, fs.FileInfo]:
        """Size and modification time of every file below `folder`, by its name relative to it."""
        start = len(self.path(folder)) + 1
        found = self._selected(folder, recursive=True)
        return {info.path[start:]: info for info in found if info.type == fs.FileType.File}

    def _selected(self, folder: str, recursive: bool) -> list[fs.FileInfo]:
        selector = fs.FileSelector(self.path(folder), recursive=recursive, allow_not_found=True)
        return self._retried(folder, lambda: self.filesystem.get_file_info(selector))

    def delete(self, name: str) -> None:
        """Delete a file if it is there; tried again like `write`."""

        def delete_once() -> None:
            with contextlib.suppress(FileNotFoundError):
                self.filesystem.delete_file(self.path(name))

        if self.exists(name):
            self._retried(name, delete_once)

    def _retried(self, name: str, action: Callable[[], T], answers: tuple[type[OSError], ...] = ()) -> T:
        """The result of `action`; one that the storage refuses is tried again after 1, 2, 4, ... seconds.

        Args:
            answers: errors that are no refusal, and are raised at once.
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
        """Write, read and delete a small file.

        Raises:
            ValueError: what the storage refused.
        """
        name, content = f"write-test-{os.getpid()}", os.urandom(4096)
        try:
            self.write_once(name, content)
            found = self.read_once(name)
            self.delete(name)
        except OSError as error:
            raise ValueError(
                f"storage {self.uri} cannot be written ({error}); give a folder with write permission "
                "and free space by --storage"
            ) from error
        if found != content:
            raise ValueError(
                f"storage {self.uri} returned other bytes than were written; check the disk or mount"
            )

    @contextlib.contextmanager
    def lock(self, name: str, wait: bool = False) -> Iterator[bool]:
        """Hold the exclusive lock `name`; yields False if another process holds it and `wait` is False.

        The kernel releases the lock of a process that dies. Object stores have no locks: there True is
        yielded always, and two sweeps that train the same member at once both store it, file by file; where
        their bytes differ, it may be found damaged, and a repeated sweep trains it again.
        """
        if not self.is_local:
            yield True
            return
        path = Path(self.path(f"locks/{name}"))
        with self._retried(f"locks/{name}", lambda: _opened(path)) as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True


def _opened(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w")
