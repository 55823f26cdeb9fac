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

A member exists when its DONE.json lists every file with its checksum and the files agree.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from lorae import SCHEMA_VERSION, untrusted
from lorae.combinations import COMBINATIONS
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
DONE: Shape = {"files": {str: {"sha256": str, "bytes": count}}}
SOUP: Shape = {"members": {str: str}, "cost": {"predict_seconds": number}}
# Not counted by an older lorae
COUNTED = dict.fromkeys(("search_flops", "search_process_seconds"), amount)
FIT: Shape = {"search_seconds": number, **COUNTED}  # beside the draws' own `record`


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
        name = f"journal/{digest(sorted(members))}.json"
        self.storage.write(name, json.dumps(done).encode())
        self._finish(name)

    def finish_writes(self) -> None:
        """Complete the `write_members` of processes that died in it, and `end` the stacks of those that died
        after it."""
        for name in self.storage.names("journal"):
            with contextlib.suppress(FileNotFoundError):  # it lives, and has completed it
                self._finish(f"journal/{name}")
        for stack_id, members in self._begun().items():
            if all(map(self.is_member, members)):
                self.end(stack_id)

    def _finish(self, journal: str) -> None:
        """From the moment that the journal is there its members' files are, and only DONE.json is missing."""
        content = self.storage.read(journal, MAX_JSON_BYTES)
        for member_id, done in untrusted.json_object(content, journal, {str: str}).items():
            self.storage.write(f"{member_folder(member_id)}/DONE.json", done.encode())
        self.storage.delete(journal)

    def _write_files(self, folder: str, files: dict[str, bytes]) -> str:
        """Write an entry's files; returns what its DONE.json is to say of them and of its older files."""
        listed = self._listed(folder) or {}
        for name, content in files.items():
            self.storage.write(f"{folder}/{name}", content)
            listed[name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        return json.dumps({"schema": SCHEMA_VERSION, "files": listed, "written": time.time()}, indent=1)

    def discard(self, folder: str) -> None:
        """Undo DONE.json, so that the entry no longer exists."""
        self.storage.delete(f"{folder}/DONE.json")

    def discard_damaged(self, folders: Iterable[str]) -> None:
        """Discard those entries that are damaged, even where no date shows it, so that the repeated sweep
        makes them again."""
        for folder in folders:
            with contextlib.suppress(ValueError):  # an entry of another schema is not ours to judge
                if self.damage(folder):
                    self.discard(folder)

    def files(self, folder: str) -> set[str]:
        """Names of an entry's files; empty if it does not exist."""
        return set(self._listed(folder) or ())

    def is_member(self, member_id: str) -> bool:
        """Whether a trained member of this identity is stored; `damage` tells whether it is sound."""
        return WEIGHTS in self.files(member_folder(member_id))

    def has_predictions(self, folder: str, eval_sets: Iterable[str]) -> bool:
        """Whether an entry has every one of these prediction sets."""
        return {prediction_file(name) for name in eval_sets} <= self.files(folder)

    def size_bytes(self, folder: str) -> int:
        """Stored bytes of an entry."""
        return sum(self.file_bytes(folder).values())

    def file_bytes(self, folder: str) -> dict[str, int]:
        """Stored bytes of each of an entry's files."""
        return {name: entry["bytes"] for name, entry in (self._listed(folder) or {}).items()}

    def damage(self, folder: str, *, changed_only: bool = False) -> str | None:
        """The first file of an entry that is missing or differs from its checksum, or None. A member whose
        long prompts were cut otherwise than today's is damaged, too: its identity does not tell.

        Args:
            changed_only: read only files that were modified after DONE.json or have another size. Enough for
                a plan: whoever uses a file reads it with its checksum.
        """
        if fault := self._cut_otherwise(folder):
            return fault
        unchanged = self._unchanged(folder) if changed_only else {}
        for name, entry in (self._listed(folder) or {}).items():
            if unchanged.get(name) == entry["bytes"]:
                continue
            try:
                self._sound(f"{folder}/{name}", entry)
            except ValueError as error:
                return str(error)
        return None

    def _cut_otherwise(self, folder: str) -> str | None:
        """Why an entry is a member that was trained when long prompts lost their beginning, or None."""
        if RECORD not in self.files(folder):
            return None
        with contextlib.suppress(ValueError):  # a damaged record is told as such
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
            raise ValueError(f"{self.storage.path(folder)} has no {name}; repeat the sweep that made it")
        return self._sound(f"{folder}/{name}", listed[name])

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
        listed = {m: self._listed(member_folder(m)) or {} for m in member_ids}
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
        return untrusted.table(self.read(folder, CURVE_FILE), f"{folder}/{CURVE_FILE}", CURVE)

    def _sound(self, name: str, entry: dict[str, Any]) -> bytes:
        """Content of a file that has the listed size and checksum."""
        try:
            content = self.storage.read(name, max_bytes=entry["bytes"])
        except FileNotFoundError:
            raise ValueError(f"{name} is missing; repeat the sweep that made it") from None
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise ValueError(f"{name} differs from its checksum; repeat the sweep that made it")
        return content

    def _listed(self, folder: str) -> dict[str, dict[str, Any]] | None:
        """The files of DONE.json -> their size and checksum; None where there is no valid one."""
        name = f"{folder}/DONE.json"
        try:
            done = untrusted.json_object(self.storage.read(name, MAX_JSON_BYTES), name, {"schema": int})
            if done["schema"] == SCHEMA_VERSION:
                untrusted.check(done, name, DONE)
                for listed in done["files"]:
                    self.storage.path(f"{folder}/{listed}")
        except (FileNotFoundError, ValueError):
            return None
        if done["schema"] != SCHEMA_VERSION:
            raise ValueError(
                f"{self.storage.path(folder)} has schema {done['schema']}, this lorae reads "
                f"{SCHEMA_VERSION}; install the lorae version that wrote it"
            )
        return done["files"]

    def begin(self, stack_id: str, member_ids: Sequence[str]) -> None:
        """Note that the training of a stack begins, so that it is resumed as the same stack (`begun`)."""
        self.storage.write(f"checkpoints/{stack_id}.json", json.dumps({"members": member_ids}).encode())

    def end(self, stack_id: str) -> None:
        """Undo `begin`; nothing is left to resume."""
        self.storage.delete(checkpoint_file(stack_id))
        self.storage.delete(f"checkpoints/{stack_id}.json")

    def begun(self) -> list[list[str]]:
        """Member ids of each stack whose training has begun and not ended."""
        return [*self._begun().values()]

    def _begun(self) -> dict[str, list[str]]:
        """Their member ids by stack id."""
        found = {}
        for name in self.storage.names("checkpoints"):
            if name.endswith(".json"):
                with contextlib.suppress(FileNotFoundError):  # another process ends it now
                    content = self.storage.read(f"checkpoints/{name}", MAX_JSON_BYTES)
                    record = untrusted.json_object(content, f"checkpoints/{name}", {"members": [str]})
                    found[name.removesuffix(".json")] = record["members"]
        return found

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
        return template_of(self.read(folder, prediction_file(eval_set)))

    # Failures, sweeps
    # -------------------------------------------------------------------------------------------------

    def write_failure(self, member_id: str, error: str) -> None:
        """Remember why a member failed; storing the member clears it."""
        self.storage.write(f"failures/{member_id}.json", json.dumps({"error": shown(error)}).encode())

    def failure(self, member_id: str) -> str | None:
        """Why a member failed when it was last tried, or None."""
        name = f"failures/{member_id}.json"
        try:
            return untrusted.json_object(self.storage.read(name, MAX_JSON_BYTES), name, {"error": str})[
                "error"
            ]
        except FileNotFoundError:
            return None
        except ValueError as error:
            return str(error)

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
            table = untrusted.table(self.storage.read(name, MAX_TABLE_BYTES), name)
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


def member_folder(member_id: str) -> str:
    return f"members/{member_id}"


def reference_folder(reference_id: str) -> str:
    return f"reference/{reference_id}"


def soup_folder(member_ids: Sequence[str], soup: str = "weights") -> str:
    """Of the predictions of the soup of these members, whatever their order.

    Args:
        soup: name of the combination that makes it.
    """
    return f"soups/{COMBINATIONS[soup].entry_id(member_ids)}"


def pool_folders(member_ids: Sequence[str], reference_id: str, soup: str | None) -> list[str]:
    """Folders whose draws make up an ensemble: its members', that of their soup, or without members the
    backbone's own."""
    if soup:
        return [soup_folder(member_ids, soup)]
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
