"""What is kept: members, the backbone's own predictions, and the trials of each sweep, each written whole or
not at all.

    <storage>/members/<member_id>/    adapter, recipe, curve and predictions of one member, DONE.json last;
                                      snapshots/ under a cyclic schedule, path.parquet if it was recorded,
                                      what its draws were fitted by (`TFB`, `Laplace`)
    <storage>/reference/<id>/         predictions of the untouched backbone
    <storage>/soups/<id>/             predictions of the mean weights of some members
    <storage>/pools/<id>/             texts of some members together, see `lorae.store.answers`
    <storage>/failures/<member_id>.json
    <storage>/sweeps/<name>/trials.parquet
    <storage>/checkpoints/            stacks whose training has begun and not ended
    <storage>/unfinished/             answers of entries that are still written
    <storage>/journal/                members of a stack that are being stored together
    <storage>/set-aside/              what was found damaged, or another's; nothing reads it

A member exists when its DONE.json lists every file with its checksum and the files agree, and they are its
own (`ownership`).
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from lorae import untrusted
from lorae.identity import SCHEMA_VERSION
from lorae.near import did_you_mean
from lorae.store import tables
from lorae.store.answers import Answers, answers_file, members_of, read_answers
from lorae.store.journal import Journal
from lorae.store.names import PATH_FILE, texts_folder, trials_file
from lorae.store.predictions import (
    PREDICTIONS,
    VALUE,
    VALUE_PREDICTIONS,
    Predictions,
    draws_of,
    gold_of,
    parquet_bytes,
    prediction_file,
    template_of,
)
from lorae.store.tables import MAX_TABLE_BYTES
from lorae.untrusted import MAX_JSON_BYTES
from lorae.uris import shown

LOG = logging.getLogger("lorae")


class Store(Journal):
    """Members, references, soups and sweeps in one storage.

    Args:
        storage: a `Storage`, or its path or URI.
    """

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
        return Predictions(np.concatenate(logits), gold_of(first), ids)

    def prediction_table(self, folder: str, name: str) -> pa.Table:
        """One prediction file of an entry, with the columns of PREDICTIONS, of numbers VALUE_PREDICTIONS;
        `predictions` checks its rows.

        Raises:
            ValueError: it is missing, damaged, or another table.
        """
        content, where = self.read(folder, name), f"{folder}/{name}"
        is_of_values = VALUE.name in tables.table_schema(content, where).names
        return tables.table(content, where, VALUE_PREDICTIONS if is_of_values else PREDICTIONS)

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

    # Answers
    # ------------------------------------------------------------------------------------------------------

    def answers(self, folder: str, name: str) -> Answers:
        """The texts of an entry; `name` as `lorae.store.answers.answer_set` makes it.

        Raises:
            ValueError: they are missing, damaged, or contradict one another.
        """
        file = answers_file(name)
        return read_answers(self.read(folder, file), f"{folder}/{file}")

    def has_answers(self, folder: str, names: Iterable[str]) -> bool:
        """Whether an entry has all these answers."""
        return set(map(answers_file, names)) <= self.files(folder)

    def texts_are_of_others(self, member_ids: Sequence[str]) -> bool:
        """Whether texts of these members together are stored that others of their names wrote: one was
        trained again since."""
        folder, now = texts_folder(member_ids), self.weight_checksums(member_ids)
        try:
            return any(
                members_of(self.read(folder, name), f"{folder}/{name}") != now for name in self.files(folder)
            )
        except ValueError:  # it is damaged
            return True

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
            read = functools.partial(tables.table, where=name)
            table = self.storage.read_as(name, read, MAX_TABLE_BYTES)
        except FileNotFoundError:
            known = self.storage.names("sweeps")
            raise ValueError(
                f"{self.storage.path(name)} is not there; {did_you_mean(sweep, known)}the storage has the "
                f"sweeps: {', '.join(known) or 'none'}"
            ) from None
        found = (table.schema.metadata or {}).get(b"lorae_schema", b"none").decode(errors="replace")
        if found != str(SCHEMA_VERSION):
            raise ValueError(
                f"{name} has schema {found}, this lorae reads {SCHEMA_VERSION}; use the version that wrote it"
            )
        return table
