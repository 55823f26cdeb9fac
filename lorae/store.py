"""What is kept: members, the backbone's own predictions, and the trials of each sweep, each written whole or
not at all.

    <storage>/members/<member_id>/    adapter, recipe, curve and predictions of one member, DONE.json last;
                                      snapshots/ under a cyclic schedule, path.parquet if it was recorded,
                                      what its draws were fitted by (`TFB`, `Laplace`)
    <storage>/reference/<id>/         predictions of the untouched backbone
    <storage>/soups/<id>/             predictions of the mean weights of some members
    <storage>/failures/<member_id>.json
    <storage>/sweeps/<name>/trials.parquet
    <storage>/checkpoints/            stacks whose training has begun and not ended
    <storage>/journal/                members of a stack that are being stored together
    <storage>/set-aside/              what was found damaged, or another's; nothing reads it

A member exists when its DONE.json lists every file with its checksum and the files agree, and they are its
own (`ownership`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from lorae import SCHEMA_VERSION, ownership, untrusted
from lorae.draws import Fitted, read_draws
from lorae.identity import digest
from lorae.prediction_files import (
    PREDICTIONS,
    SCHEMA,
    Predictions,
    draws_of,
    parquet_bytes,
    prediction_file,
    template_of,
)
from lorae.storage import Storage
from lorae.untrusted import MAX_JSON_BYTES, MAX_TABLE_BYTES, amount, count, number
from lorae.uris import shown

LOG = logging.getLogger("lorae")
WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
POSTERIOR = "posterior.safetensors"  # of Gaussian weights what PEFT's adapter has no place for
RECORD, CURVE_FILE, PATH_FILE = "member.json", "curve.parquet", "path.parquet"
LATER_RECORD = "later.json"  # of a member that tuning trained: what its predictions after the choice cost
SOUP_RECORD = "soup.json"  # its members with the checksums of their weights, and what its predictions cost
CUT = "middle"  # of prompts that are too long; records of members that lost the beginning do not say so
CURVE = pa.schema(
    [
        ("step", pa.int32()),
        ("split", pa.string()),
        ("loss", pa.float64()),
        ("nll", pa.float64()),
        ("acc", pa.float64()),
        ("lr", pa.float64()),
        ("grad_norm", pa.float64()),
        ("seconds", pa.float64()),
    ],
    metadata=SCHEMA,
)


Shape = Mapping[Any, Any]
_FILES: Shape = {str: {"sha256": str, "bytes": count}}
DONE: Shape = {"files": _FILES}
LEFT_OUT: Shape = {"left_out": _FILES}  # of a copy without weights, see `analysis.archive`
SOUP: Shape = {"members": {str: str}, "cost": {"predict_seconds": number}}
# Not counted by an older lorae
COUNTED = dict.fromkeys(("search_flops", "search_process_seconds"), amount)
FIT: Shape = {"search_seconds": number, **COUNTED}  # beside the draws' own `record`


class OtherSchemaError(ValueError):
    """An entry was written by a lorae with another schema."""


class Store:
    """Members, references and sweeps in one storage.

    Args:
        storage: a `Storage`, or its path or URI.
    """

    def __init__(self, storage: Storage | str) -> None:
        self.storage = Storage(storage) if isinstance(storage, str) else storage

    # Members and references: a folder of files under one checksum list
    # ------------------------------------------------

    def write_entry(self, folder: str, files: dict[str, bytes]) -> None:
        """Add files to a member or reference; its DONE.json is written last and covers old and new files."""
        self.storage.write(f"{folder}/DONE.json", self._write_files(folder, files).encode())

    def write_members(self, members: dict[str, dict[str, bytes]]) -> None:
        """Add the members of a stack, by id: after a crash all of them exist, or none, so that never a part
        of the stack is trained again, which would round differently."""
        done = {member_id: self._write_files(member_folder(member_id), f) for member_id, f in members.items()}
        name = _journal_file(members)
        self.storage.write(name, json.dumps(done).encode())
        self._finish(name)

    def finish_writes(self) -> None:
        """Complete the `write_members` of processes that died in it, and `end` the stacks of those that died
        after it; set aside records of these that cannot be read, or are others'."""
        for name in self.storage.names("journal"):
            with contextlib.suppress(FileNotFoundError):  # it lives, and has completed it
                self._finish(f"journal/{name}")
        begun, faults = self._begun()
        for name, fault in faults.items():
            self.set_aside(name, fault)
        for stack_id, members in begun.items():
            if all(map(self.is_member, members)):
                self.end(stack_id)

    def _finish(self, journal: str) -> None:
        """From the moment that the journal is there its members' files are, and only DONE.json is missing.
        One that a backup has brought back must not undo a later DONE.json."""

        def read(content: bytes) -> dict[str, tuple[str, dict[str, Any]]]:
            done = untrusted.json_object(content, journal, {str: str})
            if journal != _journal_file(done):
                raise ValueError(f"{journal} is of other members: {', '.join(done)[:80]}")
            return {m: (text, _checked_done(text.encode(), journal)) for m, text in done.items()}

        try:
            written = self.storage.read_as(journal, read, MAX_JSON_BYTES)
        except OtherSchemaError:
            raise
        except ValueError as error:
            self.set_aside(journal, str(error))
            return
        for member_id, (text, record) in written.items():
            folder = member_folder(member_id)
            if self._listed(folder) is None or _written(record) >= _written(self._done(folder)):
                self.storage.write(f"{folder}/DONE.json", text.encode())
        self.storage.delete(journal)

    def _write_files(self, folder: str, files: dict[str, bytes]) -> str:
        """Write an entry's files; returns what its DONE.json is to say of them and of its older files."""
        listed = self._listed(folder) or {}
        self.storage.sweep_entry(folder)
        for name, unmarked in files.items():
            content = ownership.marked(folder, name, unmarked)
            self.storage.write(f"{folder}/{name}", content)
            listed[name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        done = {"schema": SCHEMA_VERSION, "entry": folder, "files": listed, "written": time.time()}
        return json.dumps(done, indent=1)

    def discard(self, folder: str) -> None:
        """Undo DONE.json, so that the entry no longer exists."""
        self.storage.delete(f"{folder}/DONE.json")

    def set_aside(self, name: str, why: str) -> None:
        """Move what is damaged out of the way, to be made again."""
        fault, aside = why.partition("; ")[0], self.storage.set_aside(name)
        LOG.warning("%s; it is set aside as %s and made again", fault, aside)

    def set_damaged_aside(self, folders: Iterable[str]) -> None:
        """Set aside those entries that are damaged, even where no date shows it, so that the repeated sweep
        makes them again."""
        for folder in folders:
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
            files = self._done(folder)["files"]
            if RECORD in files and (fault := self._cut_otherwise(folder)):
                return fault
            unchanged = self._unchanged(folder) if changed_only else {}
            for name, entry in files.items():
                if unchanged.get(name) != entry["bytes"]:
                    self._sound(folder, name, entry)
        except FileNotFoundError:
            return f"{folder} has a link in it, and is not whole" if self.storage.has_link(folder) else None
        except OtherSchemaError:
            raise
        except ValueError as error:
            return str(error)
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

    def soup_record(self, member_ids: Sequence[str]) -> dict[str, Any]:
        """A soup's soup.json.

        Raises:
            ValueError: it is missing, damaged, or has not the shape SOUP.
        """
        return self.record(soup_folder(member_ids), SOUP, SOUP_RECORD)

    def weight_checksums(self, member_ids: Sequence[str]) -> dict[str, str]:
        """SHA-256 of each stored member's weights."""
        listed = {m: self.checksums(member_folder(m)) for m in member_ids}
        return {m: files[WEIGHTS]["sha256"] for m, files in listed.items() if WEIGHTS in files}

    def is_of_others(self, member_ids: Sequence[str]) -> bool:
        """Whether a soup is stored that was not made of these members as they are now: one of them was
        trained again since, which rounds differently on another device."""
        if SOUP_RECORD not in self.files(soup_folder(member_ids)):
            return False
        try:
            return self.soup_record(member_ids)["members"] != self.weight_checksums(member_ids)
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
        return untrusted.table(self.read(folder, CURVE_FILE), f"{folder}/{CURVE_FILE}", CURVE)

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
        name = f"{folder}/DONE.json"
        read = functools.partial(_checked_done, where=name)
        done = self.storage.read_as(name, read, MAX_JSON_BYTES)
        for listed in done["files"]:
            self.storage.path(f"{folder}/{listed}")
        if (owner := done.get("entry", folder)) != folder:
            raise ValueError(f"{folder} holds what {str(owner)[:80]} does; repeat the sweep that made it")
        return done

    def left_out(self, folder: str) -> dict[str, dict[str, Any]]:
        """The files that an entry lacks because it is a copy without weights -> their size and checksum."""
        name = f"{folder}/DONE.json"
        try:
            done = untrusted.json_object(self.storage.read(name, MAX_JSON_BYTES), name, {})
            return untrusted.check(done, name, LEFT_OUT)["left_out"] if "left_out" in done else {}
        except (FileNotFoundError, ValueError):  # `damage` and `files` tell
            return {}

    def begin(self, stack_id: str, member_ids: Sequence[str]) -> None:
        """Note that the training of a stack begins, so that it is resumed as the same stack (`begun`)."""
        self.storage.write(f"checkpoints/{stack_id}.json", json.dumps({"members": member_ids}).encode())

    def end(self, stack_id: str) -> None:
        """Undo `begin`; nothing is left to resume."""
        self.storage.delete(checkpoint_file(stack_id))
        self.storage.delete(f"checkpoints/{stack_id}.json")

    def begun(self) -> list[list[str]]:
        """Member ids of each stack whose training has begun and not ended."""
        return [*self._begun()[0].values()]

    def _begun(self) -> tuple[dict[str, list[str]], dict[str, str]]:
        """Their member ids by stack id; and the files that say nothing, with the reason."""
        found, faults = {}, {}
        for file in self.storage.names("checkpoints"):
            name, stack_id = f"checkpoints/{file}", file.removesuffix(".json")
            if file == stack_id:
                continue

            def read(content: bytes, name: str = name, stack_id: str = stack_id) -> list[str]:
                members = untrusted.json_object(content, name, {"members": [str]})["members"]
                if digest(sorted(members)) != stack_id:
                    raise ValueError(f"{name} is of another stack")
                return members

            try:
                found[stack_id] = self.storage.read_as(name, read, MAX_JSON_BYTES)
            except FileNotFoundError:  # another process ends it now
                continue
            except ValueError as error:
                faults[name] = str(error)
        return found, faults

    # Predictions
    # ------------------------------------------------------------------------------------------------------

    def predictions(self, folders: Sequence[str], eval_set: str) -> Predictions:
        """Logits of the entries on an evaluation set, entries leading.

        Raises:
            ValueError: an entry lacks the set, or two entries saw different examples.
        """
        tables = [self.prediction_table(folder, prediction_file(eval_set)) for folder in folders]
        examples, logits = zip(
            *(draws_of(t, f"{f}/{prediction_file(eval_set)}") for f, t in zip(folders, tables))
        )
        first = examples[0]
        for folder, table in zip(folders, tables):
            if others := set(table["member_id"].unique().to_pylist()) - {folder.rpartition("/")[2]}:
                raise ValueError(
                    f"{folder}/{prediction_file(eval_set)} has predictions of {', '.join(others)[:80]}"
                )
        for folder, seen in zip(folders, examples):
            if not seen.equals(first):
                raise ValueError(
                    f"{folder} and {folders[0]} saw different examples of {eval_set}; repeat the sweep"
                )
        ids = tuple(first["example_id"].to_pylist())
        return Predictions(np.concatenate(logits), first["label"].to_numpy(), ids)

    def prediction_table(self, folder: str, name: str) -> pa.Table:
        """One prediction file of an entry, with the columns of PREDICTIONS; `predictions` checks its rows.

        Raises:
            ValueError: it is missing, damaged, or another table.
        """
        return untrusted.table(self.read(folder, name), f"{folder}/{name}", PREDICTIONS)

    def path(self, folder: str) -> np.ndarray | None:
        """Class logits (K, N, C) of a member on validation along its training, a draw for each point; None if
        none were recorded.

        Raises:
            ValueError: the file is damaged or no such table.
        """
        if PATH_FILE not in self.files(folder):
            return None
        return draws_of(self.prediction_table(folder, PATH_FILE), f"{folder}/{PATH_FILE}")[1]

    def template(self, folder: str, eval_set: str) -> str:
        """The template of the prompts of an entry's prediction set; "" if its file does not say."""
        name = prediction_file(eval_set)
        return template_of(self.read(folder, name), f"{folder}/{name}")

    # Failures, sweeps
    # -------------------------------------------------------------------------------------------------

    def write_failure(self, member_id: str, error: str) -> None:
        """Remember why a member failed; storing the member clears it."""
        record = {"owner": member_id, "error": shown(error)}
        self.storage.write(f"failures/{member_id}.json", json.dumps(record).encode())

    def failure(self, member_id: str) -> str | None:
        """Why a member failed when it was last tried, or None."""
        name = f"failures/{member_id}.json"
        try:
            found = untrusted.json_object(self.storage.read(name, MAX_JSON_BYTES), name, {"error": str})
        except FileNotFoundError:
            return None
        except ValueError as error:
            return str(error)
        return found["error"] if found.get("owner", member_id) == member_id else None  # of another member

    def write_table(self, sweep: str, table: pa.Table) -> None:
        """Write a sweep's table of trials."""
        self.storage.write(trials_file(sweep), parquet_bytes(table))

    def read_table(self, sweep: str) -> pa.Table:
        """Read a table written by `write_table`.

        Raises:
            ValueError: it is not there, no table, or from another schema.
        """
        name = trials_file(sweep)
        try:
            read = functools.partial(untrusted.table, where=name)
            table = self.storage.read_as(name, read, MAX_TABLE_BYTES)
        except FileNotFoundError:
            known = ", ".join(self.storage.names("sweeps")) or "none"
            raise ValueError(
                f"{self.storage.path(name)} is not there; the storage has the sweeps: {known}"
            ) from None
        found = (table.schema.metadata or {}).get(b"lorae_schema", b"none").decode(errors="replace")
        if found != str(SCHEMA_VERSION):
            raise ValueError(
                f"{name} has schema {found}, this lorae reads {SCHEMA_VERSION}; use the version that wrote it"
            )
        return table


def _checked_done(content: bytes, where: str) -> dict[str, Any]:
    """A DONE.json.

    Raises:
        ValueError: it is damaged.
        OtherSchemaError: it is of another lorae.
    """
    done = untrusted.json_object(content, where, {"schema": int})
    if done["schema"] != SCHEMA_VERSION:
        raise OtherSchemaError(
            f"{where} has schema {done['schema']}, this lorae reads {SCHEMA_VERSION}; install the lorae "
            "version that wrote it"
        )
    return untrusted.check(done, where, DONE)


def _written(done: dict[str, Any]) -> float:
    """When a DONE.json was written, in seconds; 0 if it does not say."""
    return done["written"] if number(done.get("written")) else 0.0


def _journal_file(members: Iterable[str]) -> str:
    return f"journal/{digest(sorted(members))}.json"


def member_folder(member_id: str) -> str:
    return f"members/{member_id}"


def reference_folder(reference_id: str) -> str:
    return f"reference/{reference_id}"


def soup_folder(member_ids: Sequence[str]) -> str:
    """Of the predictions that the mean weights of these members make, whatever their order."""
    return f"soups/{digest(sorted(member_ids))}"


def pool_folders(member_ids: Sequence[str], reference_id: str, soup: bool) -> list[str]:
    """Folders whose draws make up an ensemble: its members', that of their soup, or without members the
    backbone's own."""
    if soup:
        return [soup_folder(member_ids)]
    return [member_folder(m) for m in member_ids] or [reference_folder(reference_id)]


def entry_lock(folder: str) -> str:
    """Name of the lock on an entry: a member's is its id."""
    kind, _, entry = folder.rpartition("/")
    return entry if kind == "members" else f"{kind}-{entry}"


def fit_file(draws: Fitted, tensors: bool = False) -> str:
    """Of the numbers of a fit, or of its tensors, if it has any."""
    return f"{draws.label}.{'safetensors' if tensors else 'json'}"


def is_fit_file(name: str) -> bool:
    return isinstance(read_draws(name.rpartition(".")[0]), Fitted)


def checkpoint_file(stack_id: str) -> str:
    """State of a stack whose training has begun, from which it is resumed."""
    return f"checkpoints/{stack_id}.safetensors"


def trials_file(sweep: str) -> str:
    return f"sweeps/{sweep}/trials.parquet"


def snapshot_file(number: int) -> str:
    """Parameters of a member at the end of a cycle of its learning rate, from 0; the last are WEIGHTS."""
    return f"snapshots/{number}.safetensors"
