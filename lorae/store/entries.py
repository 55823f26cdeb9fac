"""Entries of a storage: a folder of files that is there when its DONE.json is."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import pyarrow as pa

from lorae import untrusted
from lorae.combinations import COMBINATIONS
from lorae.draws import Fitted
from lorae.identity import SCHEMA_VERSION
from lorae.store import ownership, tables
from lorae.store.names import (
    CURVE_FILE,
    CUT,
    RECORD,
    SOUP_RECORD,
    WEIGHTS,
    fit_file,
    member_folder,
    soup_folder,
)
from lorae.store.predictions import (
    prediction_file,
)
from lorae.store.records import CURVE, FIT, LEFT_OUT, SOUP, OtherSchemaError, Shape, checked_done
from lorae.store.seen import Seen
from lorae.store.storage import Storage
from lorae.untrusted import MAX_JSON_BYTES

LOG = logging.getLogger("lorae")
T = TypeVar("T")


class Entries:
    """Members, references and soups: each a folder of files under one checksum list.

    Args:
        storage: a `Storage`, or its path or URI.
    """

    def __init__(self, storage: Storage | str) -> None:
        self.storage = Storage(storage) if isinstance(storage, str) else storage
        self._seen: Seen | None = None

    @contextlib.contextmanager
    def remembering(self) -> Iterator[None]:
        """While the block runs each DONE.json is read once, and none of an entry whose folder was not there
        when the first of its kind was asked for.

        What this store writes or sets aside is read again, and so is an entry that seems damaged: it may
        have got more files meanwhile. What other processes store meanwhile may not be seen; whoever trains
        looks again when it holds the members' locks.
        """
        outer, self._seen = self._seen, self._seen or Seen(self.storage)
        try:
            yield
        finally:
            self._seen = outer

    def _forget(self, folder: str) -> bool:
        """Read an entry's DONE.json again; whether one was remembered."""
        return self._seen is not None and self._seen.forget(folder)

    def _judged(self, folder: str, action: Callable[[], T]) -> T:
        """The result of `action`, which is done again if an entry seems damaged by a remembered
        DONE.json."""
        try:
            return action()
        except ValueError:
            if not self._forget(folder):
                raise
        return action()

    def write_entry(self, folder: str, files: dict[str, bytes]) -> None:
        """Add files to a member or reference; its DONE.json is written last and covers old and new files."""
        self._write_done(folder, self._write_files(folder, files))

    def _write_done(self, folder: str, text: str) -> None:
        self.storage.write(f"{folder}/DONE.json", text.encode())
        self._forget(folder)

    def _write_files(self, folder: str, files: dict[str, bytes]) -> str:
        """Write an entry's files; returns what its DONE.json is to say of them and of its older files."""
        self._forget(folder)
        listed = {**(self._listed(folder) or {})}
        self.storage.sweep_entry(folder)
        for name, unmarked in files.items():
            content = ownership.marked(folder, name, unmarked)
            self.storage.write(f"{folder}/{name}", content)
            listed[name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        return _done_json(folder, listed)

    def remove_files(self, folder: str, names: Iterable[str]) -> None:
        """Take files out of an entry: out of its DONE.json first, so that a crash leaves a sound entry."""
        listed = self._listed(folder) or {}
        gone = [name for name in names if name in listed]
        kept = {name: entry for name, entry in listed.items() if name not in gone}
        self._write_done(folder, _done_json(folder, kept))
        for name in gone:
            self.storage.delete(f"{folder}/{name}")

    def discard(self, folder: str) -> None:
        """Undo DONE.json, so that the entry no longer exists."""
        self.storage.delete(f"{folder}/DONE.json")
        self._forget(folder)

    def set_aside(self, name: str, why: str) -> None:
        """Move what is damaged out of the way, to be made again."""
        fault, aside = why.partition("; ")[0], self.storage.set_aside(name)
        self._forget(name)
        LOG.warning("%s; it is set aside as %s and made again", fault, aside)

    def set_damaged_aside(self, folders: Iterable[str]) -> None:
        """Set aside those entries that are damaged, even where no date shows it, so that the repeated sweep
        makes them again."""
        for folder in folders:
            self._forget(folder)
            with contextlib.suppress(OtherSchemaError):  # it is not ours to judge
                if fault := self.damage(folder):
                    self.set_aside(folder, fault)

    def files(self, folder: str) -> set[str]:
        """Names of an entry's files; empty if it does not exist."""
        return set(self._listed(folder) or ())

    def is_member(self, member_id: str) -> bool:
        """Whether a trained member of this identity is stored, if only a copy without weights; `damage` tells
        whether it is sound."""
        folder = member_folder(member_id)
        return WEIGHTS in self.files(folder) or WEIGHTS in self.left_out(folder)

    def has_predictions(self, folder: str, eval_sets: Iterable[str]) -> bool:
        """Whether an entry has every one of these prediction sets."""
        return {prediction_file(name) for name in eval_sets} <= self.files(folder)

    def size_bytes(self, folder: str) -> int:
        """Stored bytes of an entry."""
        return sum(self.file_bytes(folder).values())

    def file_bytes(self, folder: str) -> dict[str, int]:
        """Stored bytes of each of an entry's files, and of what its copy leaves out."""
        return {name: entry["bytes"] for name, entry in self.checksums(folder).items()}

    def checksums(self, folder: str) -> dict[str, dict[str, Any]]:
        """Size and SHA-256 of each of an entry's files, and of what its copy leaves out."""
        return (self._listed(folder) or {}) | self.left_out(folder)

    def damage(self, folder: str, *, changed_only: bool = False) -> str | None:
        """Why an entry cannot be used, or None, also if it is not stored: a file is missing, differs from its
        checksum, is another entry's or a link. A member whose long prompts were cut otherwise than today's is
        damaged, too: its identity does not tell.

        Args:
            changed_only: of the files other than records read only those that were modified after DONE.json
                or have another size. Enough for a plan: whoever uses a file reads it with its checksum.
        """
        try:
            return self._judged(folder, lambda: self._fault(folder, changed_only))
        except FileNotFoundError:
            return f"{folder} has a link in it, and is not whole" if self.storage.has_link(folder) else None
        except OtherSchemaError:
            raise
        except ValueError as error:
            return str(error)

    def _fault(self, folder: str, changed_only: bool) -> str | None:
        """Why a member cannot be used though its files are whole, or None.

        Raises:
            FileNotFoundError: it is not stored.
            ValueError: a file is not whole.
        """
        files = self._done(folder)["files"]
        if RECORD in files and (fault := self._cut_otherwise(folder)):
            return fault
        unchanged = self._unchanged(folder) if changed_only else {}
        for name, entry in files.items():
            if unchanged.get(name) != entry["bytes"]:
                self._sound(folder, name, entry)
        return None

    def _cut_otherwise(self, folder: str) -> str | None:
        """Why an entry is a member that was trained when long prompts lost their beginning, or None."""
        record = self.record(folder, {})
        heads = record.get("classes") is not None  # whose texts lose their end, as ever
        if record.get("truncated_frac") and not heads and record.get("cut") != CUT:
            return f"{folder} was trained on prompts without their beginning, by an older lorae"
        return None

    def _unchanged(self, folder: str) -> dict[str, int]:
        """Sizes of the files that are older than DONE.json, which is written last."""
        found = self.storage.details(folder)
        written = found["DONE.json"].mtime_ns if "DONE.json" in found else 0
        return {name: info.size for name, info in found.items() if info.mtime_ns < written}

    def read(self, folder: str, name: str) -> bytes:
        """Content of an entry's file.

        Raises:
            ValueError: it is missing or damaged.
        """
        return self._judged(folder, lambda: self._read(folder, name))

    def _read(self, folder: str, name: str) -> bytes:
        listed = self._listed(folder)
        if not listed or name not in listed:
            if name in self.left_out(folder):
                raise ValueError(
                    f"{self.storage.path(folder)} is a copy without {name}; use the storage that it was made "
                    "from, or delete it and repeat the sweep"
                )
            raise ValueError(f"{self.storage.path(folder)} has no {name}; repeat the sweep that made it")
        return self._sound(folder, name, listed[name])

    def record(self, folder: str, shape: Shape, name: str = RECORD) -> dict[str, Any]:
        """A member's member.json, or another record of an entry.

        Raises:
            ValueError: it is missing, damaged, or has not the `shape` (see `untrusted.json_object`).
        """
        return untrusted.json_object(self.read(folder, name), f"{folder}/{name}", shape)

    def soup_record(self, member_ids: Sequence[str], soup: str = "weights") -> dict[str, Any]:
        """A soup's soup.json.

        Raises:
            ValueError: it is missing, damaged, or has not the shape SOUP and that of its combination.
        """
        shape = {**SOUP, **COMBINATIONS[soup].record}
        return self.record(soup_folder(member_ids, soup), shape, SOUP_RECORD)

    def weight_checksums(self, member_ids: Sequence[str]) -> dict[str, str]:
        """SHA-256 of each stored member's weights."""
        listed = {m: self.checksums(member_folder(m)) for m in member_ids}
        return {m: files[WEIGHTS]["sha256"] for m, files in listed.items() if WEIGHTS in files}

    def is_of_others(self, member_ids: Sequence[str], soup: str = "weights") -> bool:
        """Whether a soup is stored that was not made of these members as they are now: one of them was
        trained again since, which rounds differently on another device."""
        if SOUP_RECORD not in self.files(soup_folder(member_ids, soup)):
            return False
        try:
            return self.soup_record(member_ids, soup)["members"] != self.weight_checksums(member_ids)
        except ValueError:  # its record is damaged, and says nothing
            return True

    def fit_record(self, member_id: str, draws: Fitted) -> dict[str, Any]:
        """The numbers by which a member is drawn, and the seconds that their search took.

        Raises:
            ValueError: it was not fitted, or the file is damaged or has not its shape.
        """
        return self.record(member_folder(member_id), {**draws.record, **FIT}, fit_file(draws))

    def curve(self, folder: str) -> pa.Table:
        """A member's curve.parquet, with the columns of CURVE.

        Raises:
            ValueError: it is missing, damaged, or another table.
        """
        return tables.table(self.read(folder, CURVE_FILE), f"{folder}/{CURVE_FILE}", CURVE)

    def _sound(self, folder: str, name: str, entry: dict[str, Any]) -> bytes:
        """Content of a file that has the listed size and checksum, and is the entry's own."""
        path = f"{folder}/{name}"

        def checked(content: bytes) -> bytes:
            if hashlib.sha256(content).hexdigest() != entry["sha256"]:
                raise ValueError(f"{path} differs from its checksum; repeat the sweep that made it")
            ownership.check(folder, name, content)
            return content

        try:
            return self.storage.read_as(path, checked, max_bytes=entry["bytes"])
        except FileNotFoundError:
            raise ValueError(f"{path} is missing; repeat the sweep that made it") from None

    def _listed(self, folder: str) -> dict[str, dict[str, Any]] | None:
        """The files of DONE.json -> their size and checksum; None where there is no valid one of this
        entry."""
        try:
            return self._done(folder)["files"]
        except OtherSchemaError:
            raise
        except (FileNotFoundError, ValueError):
            return None

    def _done(self, folder: str) -> dict[str, Any]:
        """An entry's DONE.json.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or another entry's.
        """
        return self._seen.done_of(folder, self._read_done) if self._seen else self._read_done(folder)

    def _read_done(self, folder: str) -> dict[str, Any]:
        name = f"{folder}/DONE.json"
        read = functools.partial(checked_done, where=name)
        done = self.storage.read_as(name, read, MAX_JSON_BYTES)
        for listed in done["files"]:
            self.storage.path(f"{folder}/{listed}")
        if (owner := done.get("entry", folder)) != folder:
            raise ValueError(f"{folder} holds what {str(owner)[:80]} does; repeat the sweep that made it")
        return done

    def left_out(self, folder: str) -> dict[str, dict[str, Any]]:
        """The files that an entry lacks because it is a copy without weights -> their size and checksum."""
        try:
            done = self._done(folder)
            return untrusted.check(done, folder, LEFT_OUT)["left_out"] if "left_out" in done else {}
        except (FileNotFoundError, ValueError):  # `damage` and `files` tell
            return {}


def _done_json(folder: str, listed: dict[str, dict[str, Any]]) -> str:
    """A DONE.json that is written now."""
    done = {"schema": SCHEMA_VERSION, "entry": folder, "files": listed, "written": time.time()}
    return json.dumps(done, indent=1)
