"""What is kept: members, the backbone's own predictions, and the trials of each sweep, each written whole or
not at all.

    <storage>/members/<member_id>/    adapter, recipe, curve and predictions of one member, DONE.json last
    <storage>/reference/<id>/         predictions of the untouched backbone
    <storage>/failures/<member_id>.json
    <storage>/sweeps/<name>/trials.parquet
    <storage>/checkpoints/            running stacks

A member exists when its DONE.json lists every file with its checksum and the files agree.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lorae import SCHEMA_VERSION
from lorae.storage import Storage

WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
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
        listed = self._listed(folder) or {}
        for name, content in files.items():
            self.storage.write(f"{folder}/{name}", content)
            listed[name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        done = {"schema": SCHEMA_VERSION, "files": listed, "written": time.time()}
        self.storage.write(f"{folder}/DONE.json", json.dumps(done, indent=1).encode())

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

    def damage(self, folder: str) -> str | None:
        """The first file of an entry that is missing or differs from its checksum, or None."""
        for name, entry in (self._listed(folder) or {}).items():
            try:
                content = self.storage.read(f"{folder}/{name}")
            except OSError:
                return f"{folder}/{name} is missing"
            if hashlib.sha256(content).hexdigest() != entry["sha256"]:
                return f"{folder}/{name} differs from its checksum"
        return None

    def read(self, folder: str, name: str) -> bytes:
        """Content of an entry's file.

        Raises:
            ValueError: it is missing or damaged.
        """
        listed = self._listed(folder)
        if not listed or name not in listed:
            raise ValueError(f"{self.storage.path(folder)} has no {name}; repeat the sweep that made it")
        try:
            content = self.storage.read(f"{folder}/{name}")
        except FileNotFoundError:
            raise ValueError(f"{self.storage.path(folder)}/{name} is missing; repeat the sweep") from None
        if hashlib.sha256(content).hexdigest() != listed[name]["sha256"]:
            raise ValueError(
                f"{self.storage.path(folder)}/{name} differs from its checksum; repeat the sweep"
            )
        return content

    def _listed(self, folder: str) -> dict[str, dict[str, Any]] | None:
        try:
            done = json.loads(self.storage.read(f"{folder}/DONE.json"))
        except (OSError, ValueError):
            return None
        if done["schema"] != SCHEMA_VERSION:
            raise ValueError(
                f"{self.storage.path(folder)} has schema {done['schema']}, this lorae reads "
                f"{SCHEMA_VERSION}; install the lorae version that wrote it"
            )
        return done["files"]

    # Predictions
    # ------------------------------------------------------------------------------------------------------

    def predictions(self, folders: Sequence[str], eval_set: str) -> Predictions:
        """Logits of the entries on an evaluation set, entries leading.

        Raises:
            ValueError: an entry lacks the set, or two entries saw different examples.
        """
        tables = [self._prediction_table(folder, eval_set) for folder in folders]
        first = tables[0].filter(pc.field("draw") == 0).select(["example_id", "label"])
        for folder, table in zip(folders, tables):
            if not table.filter(pc.field("draw") == 0).select(["example_id", "label"]).equals(first):
                raise ValueError(
                    f"{folder} and {folders[0]} saw different examples of {eval_set}; repeat the sweep"
                )
        ids = tuple(first["example_id"].to_pylist())
        return Predictions(np.concatenate([_draws(t) for t in tables]), first["label"].to_numpy(), ids)

    def _prediction_table(self, folder: str, eval_set: str) -> pa.Table:
        content = self.read(folder, prediction_file(eval_set))
        return pq.read_table(io.BytesIO(content), schema=PREDICTIONS)

    # Failures, sweeps
    # -------------------------------------------------------------------------------------------------

    def write_failure(self, member_id: str, error: str) -> None:
        """Remember why a member failed; storing the member clears it."""
        self.storage.write(f"failures/{member_id}.json", json.dumps({"error": error}).encode())

    def failure(self, member_id: str) -> str | None:
        """Why a member failed when it was last tried, or None."""
        try:
            return json.loads(self.storage.read(f"failures/{member_id}.json"))["error"]
        except OSError:
            return None

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a table of a sweep, `sweeps/<sweep>/<table>.parquet`."""
        self.storage.write(name, parquet_bytes(table))

    def read_table(self, name: str) -> pa.Table:
        """Read a table written by `write_table`.

        Raises:
            ValueError: it is not there, or from another schema.
        """
        try:
            table = pq.read_table(io.BytesIO(self.storage.read(name)))
        except FileNotFoundError:
            known = ", ".join(self.storage.names("sweeps")) or "none"
            raise ValueError(
                f"{self.storage.path(name)} is not there; the storage has the sweeps: {known}"
            ) from None
        found = (table.schema.metadata or {}).get(b"lorae_schema", b"none").decode()
        if found != str(SCHEMA_VERSION):
            raise ValueError(
                f"{name} has schema {found}, this lorae reads {SCHEMA_VERSION}; use the version that wrote it"
            )
        return table


def member_folder(member_id: str) -> str:
    return f"members/{member_id}"


def reference_folder(reference_id: str) -> str:
    return f"reference/{reference_id}"


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
) -> bytes:
    """Parquet file of the K draws of one member on one evaluation set `<task>__<split>__<hash>`.

    Raises:
        ValueError: a logit of an existing class is not finite, with the example's id.
    """
    task, split, _ = eval_set.split("__")
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
    return parquet_bytes(pa.table(columns, schema=PREDICTIONS))


def _draws(table: pa.Table) -> np.ndarray:
    """Logits (K, N, C) of one entry's table, padded with -inf."""
    lengths = pc.call_function("list_value_length", [table["logits"]]).to_numpy()
    logits = np.full((len(lengths), lengths.max()), -np.inf, np.float32)
    logits[np.arange(lengths.max()) < lengths[:, None]] = (
        table["logits"].combine_chunks().flatten().to_numpy()
    )
    num_draws = table["draw"].to_numpy().max() + 1
    return logits.reshape(num_draws, -1, lengths.max())


def parquet_bytes(table: pa.Table) -> bytes:
    """The table as a compressed Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
