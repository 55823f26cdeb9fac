"""Entries that are written together, and stacks that have begun: what survives a crash."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any

from lorae import untrusted
from lorae.identity import digest
from lorae.store.ahead import ahead
from lorae.store.entries import Entries
from lorae.store.names import (
    checkpoint_file,
    journal_file,
    member_folder,
)
from lorae.store.records import OtherSchemaError, checked_done, written_at
from lorae.untrusted import MAX_JSON_BYTES


class Journal(Entries):
    """Entries whose members of a stack exist all or not at all, and the stacks whose training has begun."""

    def write_members(self, members: dict[str, dict[str, bytes]]) -> None:
        """Add the members of a stack, by id: after a crash all of them exist, or none, so that never a part
        of the stack is trained again, which would round differently."""
        done = {member_id: self._write_files(member_folder(member_id), f) for member_id, f in members.items()}
        name = journal_file(members)
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
        complete = ahead(lambda members: all(map(self.is_member, members)), begun.values())
        for stack_id, is_complete in zip(begun, complete):
            if is_complete:
                self.end(stack_id)

    def _finish(self, journal: str) -> None:
        """From the moment that the journal is there its members' files are, and only DONE.json is missing.
        One that a backup has brought back must not undo a later DONE.json."""

        def read(content: bytes) -> dict[str, tuple[str, dict[str, Any]]]:
            done = untrusted.json_object(content, journal, {str: str})
            if journal != journal_file(done):
                raise ValueError(f"{journal} is of other members: {', '.join(done)[:80]}")
            return {m: (text, checked_done(text.encode(), journal)) for m, text in done.items()}

        try:
            written = self.storage.read_as(journal, read, MAX_JSON_BYTES)
        except OtherSchemaError:
            raise
        except ValueError as error:
            self.set_aside(journal, str(error))
            return
        for member_id, (text, record) in written.items():
            folder = member_folder(member_id)
            if self._listed(folder) is None or written_at(record) >= written_at(self._done(folder)):
                self._write_done(folder, text)
        self.storage.delete(journal)

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
        names = self.storage.names("checkpoints")
        stacks = [name.removesuffix(".json") for name in names if name.endswith(".json")]
        read = dict(zip(stacks, ahead(self._members_begun, stacks)))
        found = {stack_id: members for stack_id, members in read.items() if isinstance(members, list)}
        faults = {f"checkpoints/{s}.json": fault for s, fault in read.items() if isinstance(fault, str)}
        return found, faults

    def _members_begun(self, stack_id: str) -> list[str] | str | None:
        """Member ids of a stack that has begun; why its file says nothing; None if it has ended."""
        name = f"checkpoints/{stack_id}.json"

        def read(content: bytes) -> list[str]:
            members = untrusted.json_object(content, name, {"members": [str]})["members"]
            if digest(sorted(members)) != stack_id:
                raise ValueError(f"{name} is of another stack")
            return members

        try:
            return self.storage.read_as(name, read, MAX_JSON_BYTES)
        except FileNotFoundError:  # another process ends it now
            return None
        except ValueError as error:
            return str(error)
