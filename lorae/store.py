"""What is kept: members, the backbone's own predictions, and the trials of each sweep, each written whole or
not at all.

    <storage>/members/<member_id>/    adapter, recipe, curve and predictions of one member, DONE.json last;
                                      snapshots/ under a cyclic schedule
    <storage>/reference/<id>/         predictions of the untouched backbone
    <storage>/failures/<member_id>.json
    <storage>/sweeps/<name>/trials.parquet
    <storage>/checkpoints/            running stacks
    <storage>/journal/                members of a stack that are being stored together

A member exists when its DONE.json lists every file with its checksum and the files agree.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lorae import SCHEMA_VERSION, untrusted
from lorae.identity import digest
from lorae.storage import Storage
from lorae.untrusted import MAX_JSON_BYTES, MAX_TABLE_BYTES, MAX_VALUES, count
from lorae.uris import shown

WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
RECORD, CURVE_FILE, PATH_FILE = "member.json", "curve.parquet", "path.parquet"
_TEMPLATE = b"lorae_template"
_META = {b"lorae_schema": str(SCHEMA_VERSION).encode()}

PREDICTIONS = pa.schema(
    [
        pa.field("member_id", pa.string(), nullable=False),
        pa.field("draw", pa.int32(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),  # -1: unlabelled
        pa.field("logits", pa.list_(pa.float32()), nullable=False),  # only the classes that the example has
    ],
    metadata=_META,
)

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
    metadata=_META,
)


Shape = Mapping[Any, Any]
DONE: Shape = {"files": {str: {"sha256": str, "bytes": count}}}


@dataclass(frozen=True, eq=False)
class Predictions:
    """Class logits of the draws of some members on one evaluation set; classes an example lacks are -inf."""

    logits_MNC: np.ndarray
    labels_N: np.ndarray
    example_ids: tuple[str, ...]


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
        """Complete the `write_members` of processes that died in it."""
        for name in self.storage.names("journal"):
            with contextlib.suppress(FileNotFoundError):  # it lives, and has completed it
                self._finish(f"journal/{name}")

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
        return sum(entry["bytes"] for entry in (self._listed(folder) or {}).values())

    def damage(self, folder: str, *, changed_only: bool = False) -> str | None:
        """The first file of an entry that is missing or differs from its checksum, or None.

        Args:
            changed_only: read only files that were modified after DONE.json or have another size. Enough for
                a plan: whoever uses a file reads it with its checksum.
        """
        unchanged = self._unchanged(folder) if changed_only else {}
        for name, entry in (self._listed(folder) or {}).items():
            if unchanged.get(name) == entry["bytes"]:
                continue
            try:
                self._sound(f"{folder}/{name}", entry)
            except ValueError as error:
                return str(error)
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

    def record(self, folder: str, shape: Shape) -> dict[str, Any]:
        """A member's member.json.

        Raises:
            ValueError: it is missing, damaged, or has not the `shape` (see `untrusted.json_object`).
        """
        return untrusted.json_object(self.read(folder, RECORD), f"{folder}/{RECORD}", shape)

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
        """Undo `begin`."""
        self.storage.delete(f"checkpoints/{stack_id}.json")

    def begun(self) -> list[list[str]]:
        """Member ids of each stack whose training has begun and not ended."""
        found = []
        for name in self.storage.names("checkpoints"):
            if name.endswith(".json"):
                with contextlib.suppress(FileNotFoundError):  # another process ends it now
                    content = self.storage.read(f"checkpoints/{name}", MAX_JSON_BYTES)
                    record = untrusted.json_object(content, f"checkpoints/{name}", {"members": [str]})
                    found.append(record["members"])
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
            *(_draws(t, f"{f}/{prediction_file(eval_set)}") for f, t in zip(folders, tables))
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
        return _draws(self.prediction_table(folder, PATH_FILE), f"{folder}/{PATH_FILE}")[1]

    def template(self, folder: str, eval_set: str) -> str:
        """The template of the prompts of an entry's prediction set; "" if its file does not say."""
        content = self.read(folder, prediction_file(eval_set))
        return (pq.read_schema(pa.BufferReader(content)).metadata or {}).get(_TEMPLATE, b"").decode()

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


def trials_file(sweep: str) -> str:
    return f"sweeps/{sweep}/trials.parquet"


def snapshot_file(number: int) -> str:
    """Parameters of a member at the end of a cycle of its learning rate, from 0; the last are WEIGHTS."""
    return f"snapshots/{number}.safetensors"


def prediction_file(eval_set: str) -> str:
    return f"predictions/{eval_set}.parquet"


def prediction_sets(files: Iterable[str]) -> set[str]:
    """Names of the prediction sets among an entry's files."""
    folder, suffix = prediction_file("").split(".")
    return {f.removeprefix(folder).removesuffix("." + suffix) for f in files if f.startswith(folder)}


def prediction_bytes(
    member_id: str,
    eval_set: str,
    example_ids: Sequence[str],
    labels: Sequence[int],
    num_classes: Sequence[int],
    logits_KNC: np.ndarray,
    template: str = "",
) -> bytes:
    """Parquet file of the K draws of one member on one evaluation set `<task>__<split>__<hash>[-<draws>]`.

    Args:
        template: of the prompts, kept in the file's metadata: an audit compares those of two sets.
    Raises:
        ValueError: a logit of an existing class is not finite, with the example's id.
    """
    task, split, _ = eval_set.rsplit("__", 2)
    num_draws, num_examples, width = logits_KNC.shape
    total = num_draws * num_examples
    has_NC = np.arange(width) < np.asarray(num_classes)[:, None]
    bad_KN = (has_NC & ~np.isfinite(logits_KNC)).any(axis=2)
    if bad_KN.any():
        k, n = np.argwhere(bad_KN)[0]
        row = logits_KNC[k, n, : num_classes[n]].tolist()
        raise ValueError(f"member {member_id} predicts logits {row} on {example_ids[n]} of {eval_set}")
    ends = np.cumsum(np.tile(has_NC.sum(axis=1), num_draws))
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    logits = pa.ListArray.from_arrays(offsets, logits_KNC[:, has_NC].ravel().astype(np.float32))
    columns = {
        "member_id": [member_id] * total,
        "draw": np.repeat(np.arange(num_draws, dtype=np.int32), num_examples),
        "task": [task] * total,
        "split": [split] * total,
        "example_id": list(example_ids) * num_draws,
        "label": np.tile(np.asarray(labels, np.int32), num_draws),
        "logits": logits,
    }
    schema = PREDICTIONS.with_metadata(_META | {_TEMPLATE: template.encode()})
    return parquet_bytes(pa.table(columns, schema=schema))


def _examples(table: pa.Table) -> pa.Table:
    """Id, label and number of classes of each row."""
    classes = pc.call_function("list_value_length", [table["logits"]])
    return pa.table({"example_id": table["example_id"], "label": table["label"], "classes": classes})


def _draws(table: pa.Table, where: str) -> tuple[pa.Table, np.ndarray]:
    """The N examples of one entry's table, and its logits (K, N, C) padded with -inf.

    Raises:
        ValueError: the rows are not the same N examples, each once, for draw 0, 1, ..., with finite logits.
    """
    rows, num_draws = _examples(table), table["draw"][-1].as_py() + 1 if len(table) else 0
    if fault := _fault(table, rows, num_draws):
        raise ValueError(f"{where} cannot be used: {fault}; delete it and repeat the sweep that made it")
    classes = rows["classes"].to_numpy()
    logits = np.full((len(rows), classes.max()), -np.inf, np.float32)
    logits[np.arange(classes.max()) < classes[:, None]] = (
        table["logits"].combine_chunks().flatten().to_numpy()
    )
    examples = rows.slice(0, len(rows) // num_draws)
    return examples, logits.reshape(num_draws, len(examples), -1)


def _fault(table: pa.Table, rows: pa.Table, num_draws: int) -> str | None:
    """What is wrong with the rows of a prediction set, or None."""
    if not 1 <= num_draws <= len(rows) or len(rows) % num_draws:
        return f"{len(rows)} rows, the last of draw {num_draws - 1}"
    size = len(rows) // num_draws
    if not np.array_equal(table["draw"].to_numpy(), np.repeat(np.arange(num_draws), size)):
        return "the rows of a draw are missing, repeated or not together"
    if not rows.take(np.tile(np.arange(size), num_draws)).equals(rows):
        return "the draws saw different examples, or in another order"
    if pc.call_function("count_distinct", [rows["example_id"]]).as_py() < size:
        return "an example repeats"
    labels, classes, logits = rows["label"].to_numpy(), rows["classes"].to_numpy(), table["logits"]
    if (labels < -1).any() or (labels >= classes).any():
        return "a label is no class of its example"
    if len(rows) * int(classes.max()) > MAX_VALUES:
        return f"{len(rows)} rows of up to {classes.max()} classes, at most {MAX_VALUES} logits are read"
    values = logits.combine_chunks().flatten()
    if values.null_count or not np.isfinite(values.to_numpy()).all():
        return "a logit is not finite"
    return None


def parquet_bytes(table: pa.Table) -> bytes:
    """The table as a compressed Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
