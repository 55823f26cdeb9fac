"""A storage that passes every check of the audit, for tests that break it in one way."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from toys import Colours, Greys, colour_rows, write_split

from analysis.audit import audit
from analysis.findings import Finding
from lorae.engine.run import run_stack
from lorae.methods import Lora, Vera
from lorae.planning.stack import Stack
from lorae.regularizers import KL, AdapterDropout
from lorae.results import trials_table
from lorae.store.names import WEIGHTS, member_folder
from lorae.store.predictions import parquet_bytes
from lorae.store.store import Store
from lorae.trial import AdamW, Budget, Diversity, Sweep, Trial

TEST_ROWS = 60


@dataclass(frozen=True)
class Sound:
    """A copy of the sound storage, to be broken."""

    store: Store
    trials: list[tuple[Trial, list[Any]]]

    def one(self, method: type, regularised: bool) -> Trial:
        (trial,) = [
            t for t, _ in self.trials
            if t.members and isinstance(t.method, method) and bool(t.regularizers) == regularised
        ]  # fmt: skip
        return trial

    @property
    def lora(self) -> Trial:
        return self.one(Lora, regularised=False)

    @property
    def kl(self) -> Trial:
        return self.one(Lora, regularised=True)

    @property
    def vera(self) -> Trial:
        return self.one(Vera, regularised=False)

    def tabulate(self) -> None:
        """Make the table anew, so that it agrees with the logits."""
        self.store.write_table("toy", trials_table(self.store, "toy", self.trials, {}))

    def edit_rows(self, edit: Callable[[list[dict[str, Any]]], Any]) -> None:
        table = self.store.read_table("toy")
        rows = table.to_pylist()
        edit(rows)
        self.store.write_table("toy", pa.Table.from_pylist(rows, schema=table.schema))

    def edit_file(self, folder: str, name: str, column: str, edit: Callable[[list[Any]], Any]) -> None:
        """Change a column of an entry's table in place, and the checksum with it."""
        table = pq.read_table(io.BytesIO(self.store.read(folder, name)))
        values = table[column].to_pylist()
        edit(values)
        place = table.schema.get_field_index(column)
        field = table.schema.field(place)
        changed = table.set_column(place, field, pa.array(values, field.type))
        self.store.write_entry(folder, {name: parquet_bytes(changed)})
        self.say_what_is_stored()

    def edit_weights(self, member: str, edit: Callable[[dict[str, np.ndarray]], Any]) -> None:
        weights = safetensors.numpy.load(self.store.read(member_folder(member), WEIGHTS))
        edit(weights)
        self.store.write_entry(member_folder(member), {WEIGHTS: safetensors.numpy.save(weights)})
        self.say_what_is_stored()

    def say_what_is_stored(self) -> None:
        """An edit changes a file's size; the table is to be wrong in what the edit is about alone."""

        def edit(rows):
            for row in rows:
                folders = map(member_folder, row["member_ids"])
                row["stored_bytes"] = sum(map(self.store.size_bytes, folders))

        self.edit_rows(edit)

    def weights(self, member: str) -> dict[str, np.ndarray]:
        return safetensors.numpy.load(self.store.read(member_folder(member), WEIGHTS))

    def faults(self, sweep: str | None = None) -> list[Finding]:
        return [f for f in audit(self.store.storage.uri, sweep) if f.status == "failed"]

    def only_fault(self, check: str) -> Finding:
        (fault,) = self.faults()
        assert fault.check == check
        return fault


@pytest.fixture(scope="module")
def original(tiny_llama, tmp_path_factory) -> Sound:
    """LoRA with and without KL on the same data orders, VeRA of one order, and the untouched backbone."""
    root = tmp_path_factory.mktemp("audit")
    write_split(root / "data" / "colours", "train", colour_rows("train", 40, 0))
    write_split(root / "data" / "colours", "test", colour_rows("test", TEST_ROWS, 1))
    write_split(root / "data" / "greys", "test", colour_rows("grey", 12, 2))
    base = Trial(
        backbone=tiny_llama,
        task=Colours(),
        method=Lora(rank=2),
        optimizer=AdamW(lr=1e-2),
        budget=Budget(batch_size=4, steps=4),
        precision="fp32",
        members=2,
    )
    lora = Sweep(base=base, axes={"regularizers": [(), (KL(), AdapterDropout(0.1))]}, ood=[Greys()])
    vera = Sweep(
        base=base,
        axes={"method": [Vera(rank=8)], "diversity": [Diversity(order="shared")], "members": [3]},
        zero_shot=False,
        ood=[Greys()],
    )
    sweeps = [sweep.located(root / "data") for sweep in (lora, vera)]
    trials = [(trial, sweep.eval_tasks(trial)) for sweep in sweeps for trial in sweep.trials()]
    for trial, ood in trials:
        run_stack(Stack(trial, tuple(range(trial.members)), tuple(ood)), str(root / "store"), num_threads=1)
    sound = Sound(Store(str(root / "store")), trials)
    sound.tabulate()
    return sound


@pytest.fixture
def sound(original, tmp_path) -> Sound:
    shutil.copytree(original.store.storage.root, tmp_path / "store")
    return Sound(Store(str(tmp_path / "store")), list(original.trials))
