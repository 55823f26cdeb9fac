"""Every mistake that docs/troubleshooting.md explains, made: its message, exit code 2, no traceback."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sweeps import make_sweep
from trained import swept

from jobs.cli import main
from lorae.methods import Full
from lorae.results import read_trials, trial_id
from lorae.store.names import member_folder
from lorae.store.store import Store
from lorae.trial import Budget

PAGE = (Path(__file__).parents[2] / "docs/troubleshooting.md").read_text()
EXPLAINED = re.findall(r"(?m)^\| `(.*?)`", PAGE.partition("## No mistakes")[0])

FILE = """
from dataclasses import dataclass, replace
from lorae import Budget, Files, Hub, LabelWords, Lora, Sweep, Trial
from lorae.tasks import Scoring
from toys import Colours
BASE = Trial(backbone=Files({backbone!r}), task=Colours(), budget=Budget(epochs=1, max_tokens=32),
             precision="fp32")
SWEEP = Sweep(base=BASE, axes={{"method": [Lora(), Lora(rank=4)]}})
"""
ALIKE = """
@dataclass(frozen=True, kw_only=True)
class Unknowns(Colours):
    def example(self, row):
        return replace(super().example(row), options=("crimson", "teal", "navy"))
SWEEP = replace(SWEEP, base=replace(BASE, task=Unknowns()))
"""
UNTYPED = """
@dataclass(frozen=True, kw_only=True)
class Untyped(Colours):
    scoring = LabelWords()
Untyped()
"""
LABELS = """
@dataclass(frozen=True, kw_only=True)
class Named(Colours):
    def example(self, row):
        return replace(super().example(row), label=("rot", "blau").index("gelb"))
SWEEP = replace(SWEEP, base=replace(BASE, task=Named()))
"""
SHORT = "SWEEP = replace(SWEEP, base=replace(BASE, budget=Budget(epochs=1, max_tokens=3)))"
LAYERS = "SWEEP = replace(SWEEP, axes={'method': [Lora(targets=('query',))]})"
HUB = "SWEEP = replace(SWEEP, base=replace(BASE, backbone=Hub('nobody/nothing')))"


@pytest.fixture
def place(stored, data_root, tiny_llama, tmp_path, monkeypatch) -> SimpleNamespace:
    """A folder to make mistakes in: data, a copy of a storage, and what writes a sweep file."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.copytree(data_root, tmp_path / "data")

    def sweep(more: str = "", *words: str, backbone: str = tiny_llama.path) -> list[str]:
        (tmp_path / "mine.py").write_text(FILE.format(backbone=backbone) + more)
        where = ["--data-root", str(tmp_path / "data"), "--storage", str(tmp_path / "new")]
        return ["sweep", str(tmp_path / "mine.py"), "--dry-run", *where, *words]

    def storage() -> str:
        return str(shutil.copytree(stored.storage, tmp_path / "store"))

    return SimpleNamespace(root=tmp_path, sweep=sweep, storage=storage, trial=stored.trial, patch=monkeypatch)


def folder(place: Any, **files: bytes) -> str:
    made = place.root / "folder"
    made.mkdir()
    for name, content in files.items():
        (made / name.replace("__", ".")).write_bytes(content)
    return str(made)


def with_data(place: Any, content: bytes) -> list[str]:
    (place.root / "data/colours/test.parquet").write_bytes(content)
    return place.sweep()


def rotten(place: Any) -> list[str]:
    storage = place.storage()
    for path in Path(storage).glob("members/*/adapter_model.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"~")
    return ["predict", storage, "--trial", place.trial, "--text", "w1"]


def unlockable(place: Any) -> list[str]:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    place.patch.setattr(fcntl, "flock", refuse)
    return [word for word in place.sweep("", "--local") if word != "--dry-run"]


def two_sweeps(place: Any) -> list[str]:
    store = Store(place.storage())
    table = read_trials(store, "toy").to_pylist()
    store.write_table("other", read_trials(store, "toy").from_pylist([r | {"sweep": "other"} for r in table]))
    return ["table", str(place.root / "store")]


def edited(place: Any, change: Callable[[dict[str, Any]], None]) -> list[str]:
    store = Store(place.storage())
    for member in store.storage.names("members"):
        record = json.loads(store.read(member_folder(member), "member.json"))
        change(record)
        store.write_entry(member_folder(member), {"member.json": json.dumps(record).encode()})
    return ["predict", str(place.root / "store"), "--text", "w1"]


def failed(place: Any) -> list[str]:
    return ["table", make_sweep(place.root / "failed", {"members": [1, 2], "seed": [0, 1]}, failing=[1])]


def of_full(place: Any, tiny_trial: Any) -> list[str]:
    trial = tiny_trial(method=Full(), budget=Budget(batch_size=4, steps=1), members=2)
    return ["export", swept(place.root / "full", trial), trial_id(trial), str(place.root / "out")]


MISTAKES: dict[str, Callable[[Any], list[str]]] = {
    "is no file": lambda place: ["sweep", str(place.root / "nowhere.py")],
    "defines no": lambda place: place.sweep("del SWEEP"),
    "is not defined": lambda place: place.sweep("SWEEP = Swep()"),
    "is no axis": lambda place: place.sweep("", "--set", "lr=1e-3"),
    "the file gives it the values": lambda place: place.sweep("", "--set", "method=lara"),
    "without its type, so it would be ignored": lambda place: place.sweep(UNTYPED),
    "start with the same token": lambda place: place.sweep(ALIKE),
    "raise Budget(max_tokens=...)": lambda place: place.sweep(SHORT),
    "matches no Linear of": lambda place: place.sweep(LAYERS),
    "cannot be fetched": lambda place: place.sweep(HUB),
    "config.json is missing": lambda place: place.sweep(backbone=folder(place)),
    "so lorae reads none": lambda place: place.sweep(
        backbone=folder(place, config__json=b"{}", model__bin=b"")
    ),
    "is a pointer of Git LFS": lambda place: with_data(
        place, b"version https://git-lfs.github.com/spec/v1\n"
    ),
    "is damaged or cut off": lambda place: with_data(place, b"PAR1"),
    "cannot be read (KeyError": lambda place: place.sweep(LABELS.replace('("rot", "blau")', 'row["farbe"]')),
    "cannot be read (ValueError: tuple.index(x)": lambda place: place.sweep(LABELS),
    "differs from its checksum": rotten,
    "cannot lock files": unlockable,
    "has no sweep": lambda place: ["table", folder(place)],
    "choose one by --sweep NAME": two_sweeps,
    "its options are not known": lambda place: edited(place, lambda record: record.pop("options")),
    "made by its own code": lambda place: edited(place, lambda record: record.update(own_prompt=True)),
    "is not the backbone that the members were trained on": lambda place: [
        *("predict", place.storage(), "--text", "w1", "--backbone", folder(place, config__json=b"{}"))
    ],
    "must be a text that is not empty": lambda place: ["predict", place.storage(), "--text", " "],
    "no such set can be removed": lambda place: ["predict", place.storage(), "--remove", "colours"],
    "does not answer as": lambda place: [*("verify", "http://127.0.0.1:9", place.storage(), "--text", "w1")],
    "lacks": failed,
}
WITH_TRIALS = {"which PEFT does not know": of_full}


def test_every_mistake_that_is_explained_is_made_here():
    assert {*EXPLAINED} == MISTAKES.keys() | WITH_TRIALS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("message", [*MISTAKES, *WITH_TRIALS])
def test_a_mistake_is_explained_on_one_line(place, tiny_trial, capfd, message):
    make = MISTAKES.get(message)
    words = make(place) if make else WITH_TRIALS[message](place, tiny_trial)
    before = {path for path in place.root.rglob("*") if "members" in path.parts}
    assert main(words) == 2
    out, err = capfd.readouterr()
    (line,) = [line for line in err.splitlines() if re.match(r"lorae|error: ", line)]
    assert message in line and "Traceback" not in out + err
    assert {path for path in place.root.rglob("*") if "members" in path.parts} <= before, "nothing is trained"
