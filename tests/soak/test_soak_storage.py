"""Random corruptions of a small real storage, each followed by the sweep and, if that says that all is done,
by the audit: never an exit code of 0 with a table that the audit refuses, no traceback, no hang, nothing
touched outside. `LORAE_SOAK=200 LORAE_SOAK_SEED=0 pytest tests/soak/test_soak_storage.py -s` prints what
came of 200."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from victims import PYTHON_PATH, SERVER, contents, exit_code, printed

from lorae.identity import digest

pytestmark = [pytest.mark.cluster, pytest.mark.process]

NUM, SEED = int(os.environ.get("LORAE_SOAK", "6")), int(os.environ.get("LORAE_SOAK_SEED", "0"))
SECONDS = 120.0  # of one sweep and audit; they take three

SWEEP_FILE = """
from toys import Colours, Greys
from lorae.methods import Lora
from lorae.regularizers import KL
from lorae.sources import Files
from lorae.trial import AdamW, Budget, Sweep, Trial
SWEEP = Sweep(
    base=Trial(
        backbone=Files({backbone!r}), task=Colours(), method=Lora(rank=1), optimizer=AdamW(lr=1e-2),
        budget=Budget(batch_size=4, steps={steps}), members=2, precision="fp32",
    ),
    axes={{"regularizers": [(), (KL(0.1),), (KL(0.5),)], "combine": ["probs", "weights"]}}, ood=[Greys()],
)
"""
STEPS = 4


# Corruptions -----------------------------------------------------------------------------------------------


class Damage:
    """Corruptions of the storage `root`; what links lead to is in `outside`.

    Each returns what it did, or None where there is nothing that it could do.
    """

    def __init__(self, root: Path, outside: Path, rng: random.Random) -> None:
        self.root, self.outside, self.rng = root, outside, rng

    def files(self, pattern: str = "*") -> list[Path]:
        found = (p for p in sorted(self.root.rglob(pattern)) if p.is_file() and not p.is_symlink())
        return [p for p in found if "locks" not in p.parts]

    def entries(self) -> list[Path]:
        """Folders of one kind, at least two."""
        found = [sorted((self.root / kind).glob("*")) for kind in ("members", "soups")]
        kinds = [[p for p in paths if p.is_dir() and not p.is_symlink()] for paths in found]
        return self.rng.choice([kind for kind in kinds if len(kind) > 1] or [[]])

    def pick(self, found: Sequence[Path], num: int = 1) -> list[Path]:
        return self.rng.sample(list(found), num) if len(found) >= num else []

    def replace(self, path: Path, content: bytes, listed: bool = False) -> None:
        """Other bytes, at the old time in half of the cases; with the checksum, if listed."""
        stat = path.stat()
        path.write_bytes(content)
        if self.rng.random() < 0.5:
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        for folder in path.parents if listed else ():
            if (folder / "DONE.json").is_file() and path.name != "DONE.json":
                done = json.loads((folder / "DONE.json").read_text())
                entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
                done["files"][str(path.relative_to(folder))] = entry
                (folder / "DONE.json").write_text(json.dumps(done))

    def flipped_bit(self) -> object:
        for path in self.pick(self.files()):
            content = bytearray(path.read_bytes())
            content[self.rng.randrange(len(content))] ^= 1 << self.rng.randrange(8)
            self.replace(path, bytes(content))
            return path

    def cut_off(self) -> object:
        for path in self.pick(self.files()):
            content = path.read_bytes()
            self.replace(path, content[: self.rng.randrange(len(content))])
            return path

    def deleted(self) -> object:
        for path in self.pick(self.files()):
            path.unlink()
            return path

    def exchanged_files(self) -> object:
        suffix = self.rng.choice((".parquet", ".safetensors", ".json"))
        for one in self.pick(self.files(f"*{suffix}")):
            alike = [p for p in self.files(one.name) if p != one] or self.files(f"*{suffix}")
            for other in self.pick(alike):
                first, second = one.read_bytes(), other.read_bytes()
                listed = self.rng.random() < 0.5
                self.replace(one, second, listed)
                self.replace(other, first, listed)
                return one, other, listed

    def exchanged_checkpoints(self) -> object:
        if pair := self.pick(self.files("checkpoints/*.safetensors"), 2):
            contents = [path.read_bytes() for path in pair]
            for path, content in zip(pair, reversed(contents)):
                self.replace(path, content)
            return pair

    def exchanged_folders(self) -> object:
        if pair := self.pick(self.entries(), 2):
            one, other = pair
            one.rename(self.root / "hand")
            other.rename(one)
            (self.root / "hand").rename(other)
            return one, other

    def copied_folder(self) -> object:
        if pair := self.pick(self.entries(), 2):
            shutil.rmtree(pair[0])
            shutil.copytree(pair[1], pair[0], copy_function=self.rng.choice((shutil.copy2, os.link)))
            return pair

    def linked_folder(self) -> object:
        """To another entry, or to its own files elsewhere."""
        if pair := self.pick(self.entries(), 2):
            target = pair[1]
            if self.rng.random() < 0.5:
                target = self.outside / f"entry-{pair[0].name}"
                shutil.copytree(pair[0], target)
            shutil.rmtree(pair[0])
            pair[0].symlink_to(target)
            return pair[0], target

    def linked_file(self) -> object:
        """To a file outside or another one in the storage, a device, or nothing."""
        for path in self.pick(self.files()):
            targets = [
                self.outside / "file",
                Path("/dev/zero"),
                self.outside / "new",
                self.pick(self.files())[0],
            ]
            target = self.rng.choice(targets)
            path.unlink()
            path.symlink_to(target)
            return path, target

    def linked_lock(self) -> object:
        name = self.rng.choice(["taking", "mlflow", *(p.name for p in (self.root / "members").glob("*"))])
        path = self.root / "locks" / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        target = self.rng.choice([self.outside / "file", *self.pick(self.files())])
        path.symlink_to(target)
        return path, target

    def linked_folder_of_the_storage(self) -> object:
        folder = self.root / self.rng.choice(
            ("checkpoints", "journal", "failures", "locks", "members", "sweeps")
        )
        if folder.exists():
            folder.rename(self.outside.parent / f"moved-{folder.name}")
        folder.symlink_to(self.outside)
        return folder

    def circle(self) -> object:
        for folder in self.pick(sorted(p for p in self.root.rglob("*") if p.is_dir() and not p.is_symlink())):
            for name in ("one", "two"):
                (folder / name).symlink_to(".")
            return folder

    def pipe(self) -> object:
        for path in self.pick(self.files()):
            path.unlink()
            os.mkfifo(path)
            return path

    def forged_json(self) -> object:
        for path in self.pick(self.files("*.json")):
            value, listed = json.loads(path.read_bytes()), self.rng.random() < 0.5
            where = forge(value, self.rng)
            self.replace(path, json.dumps(value).encode(), listed)
            return path, where, listed

    def forged_file(self) -> object:
        """Some bytes of an entry's file, and the checksum with them."""
        for path in self.pick([p for p in self.files() if p.name != "DONE.json" and p.suffix != ".parquet"]):
            content = bytearray(path.read_bytes())
            for _ in range(self.rng.randrange(1, 4)):
                content[self.rng.randrange(len(content))] = self.rng.randrange(256)
            self.replace(path, bytes(content), listed=True)
            return path

    def litter(self) -> object:
        for folder in self.pick(sorted(p for p in self.root.rglob("*") if p.is_dir() and not p.is_symlink())):
            (folder / ".weights.a1b2c3d4").write_bytes(b"half")
            (folder / "notes.txt").write_bytes(b"mine")
            return folder


KINDS: list[Callable[[Damage], object]] = [v for k, v in vars(Damage).items() if k[0] != "_"][4:]


def corrupt(kind: Callable[[Damage], object], damage: Damage) -> object:
    """What a corruption did, unless an earlier one stands in its way."""
    try:
        return kind(damage)
    except (OSError, ValueError) as error:
        return error


def forge(value: Any, rng: random.Random) -> str:
    """Replace or remove something in a JSON object; returns where."""
    places, stack = [], [value]
    while stack:
        inner = stack.pop()
        for key in list(inner) if isinstance(inner, dict) else range(len(inner)):
            places.append((inner, key))
            if isinstance(inner[key], (dict, list)):
                stack.append(inner[key])
    if not places:
        return "empty"
    inner, key = rng.choice(places)
    if isinstance(inner, dict) and rng.random() < 0.2:
        del inner[key]
    else:
        inner[key] = rng.choice([None, 3, -1, 1e300, "x", "../../x", [], {}, [[]], {"a": 1}, True, "0" * 16])
    return str(key)


# Storages --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words(tiny_llama, data_root, tmp_path_factory) -> tuple[object, ...]:
    """Of the sweep; the storage is to be appended."""
    file = tmp_path_factory.mktemp("sweep") / "soak.py"
    file.write_text(SWEEP_FILE.format(backbone=tiny_llama.path, steps=STEPS))
    return ("sweep", file, "--local", "--data-root", data_root, "--storage")


@pytest.fixture(scope="module")
def finished(words, tmp_path_factory) -> Path:
    storage = tmp_path_factory.mktemp("finished") / "store"
    process = SERVER.Process(target=_judge, args=(words, str(storage), storage.with_name("log")))
    process.start()
    assert exit_code(process) == 0 and storage.with_name("log.json").read_text() == "[]"
    return storage


@pytest.fixture(scope="module")
def interrupted(words, finished, tiny_llama, data_root, tmp_path_factory) -> Path:
    """One stack is being stored, the two others have been interrupted."""
    import runpy

    from lorae.engine.run import run_stack
    from lorae.planning.stack import Stack, Stopped

    storage = tmp_path_factory.mktemp("interrupted") / "store"
    shutil.copytree(finished, storage, ignore=shutil.ignore_patterns("locks", "soups", "sweeps"))
    sweep = runpy.run_path(str(words[1]))["SWEEP"].located(data_root)
    stacks = {
        Stack(t, (0, 1), tuple(sweep.ood)).id: Stack(t, (0, 1), tuple(sweep.ood))
        for t in sweep.trials()
        if t.members
    }
    first, *others = stacks.values()
    done = {m: (storage / "members" / m / "DONE.json").read_text() for m in first.member_ids()}
    (storage / "journal").mkdir(exist_ok=True)
    (storage / "journal" / f"{digest(sorted(done))}.json").write_text(json.dumps(done))
    for member in done:
        (storage / "members" / member / "DONE.json").unlink()
    for stack in others:
        for member in stack.member_ids():
            shutil.rmtree(storage / "members" / member)
        steps = [0]

        def note(progress: Any, steps: list[int] = steps) -> None:
            steps[0] = max(steps[0], progress.step if progress.phase == "train" else 0)

        with pytest.raises(Stopped):
            run_stack(
                stack,
                str(storage),
                num_threads=1,
                on_progress=note,
                should_stop=lambda steps=steps: steps[0] > 1,
            )
    return storage


def state_of(folder: Path) -> dict[str, bytes | str]:
    """All that is in a folder; of links where they lead."""
    return {
        str(p.relative_to(folder)): os.readlink(p)
        if p.is_symlink()
        else p.read_bytes()
        if p.is_file()
        else ""
        for p in sorted(folder.rglob("*"))
    }


def _judge(words: tuple[object, ...], storage: str, log: Path) -> None:
    """In a process of its own: the sweep, then the audit of what it says that it has finished."""
    import torch
    from victims import _redirect

    from analysis.audit import audit
    from jobs import driver
    from jobs.cli import main
    from lorae.store.storage import Storage

    _redirect(log.with_suffix(".err"))
    torch.set_num_threads(1)
    Storage.retry_seconds = 1.0
    driver._tracked = lambda *arguments: None  # MLflow shows what is here, and takes longer than the rest
    code = main([str(word) for word in (*words, storage)])
    if code == 0:
        faults = [f for f in audit(storage, "soak") if f.status == "failed"]
        log.with_suffix(".json").write_text(json.dumps([str(f) for f in faults]))
    sys.exit(code)


@pytest.mark.slow
def test_no_corruption_is_taken_for_a_result(words, finished, interrupted, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", PYTHON_PATH)
    ends, wrong, healed = Counter[str](), [], 0
    expected = contents(finished)
    for number in range(NUM):
        rng, folder = random.Random(f"{SEED} {number}"), tmp_path / str(number)
        storage, outside = folder / "store", folder / "outside"
        shutil.copytree(rng.choice((finished, interrupted)), storage)  # with its times
        outside.mkdir()
        (outside / "file").write_bytes(b"not the storage's")
        damage = Damage(storage, outside, rng)
        kinds = [KINDS[number % len(KINDS)], *rng.choices(KINDS, k=rng.randrange(2))]
        did = [(kind.__name__, corrupt(kind, damage)) for kind in kinds]
        before, log = state_of(outside), folder / "log"
        process = SERVER.Process(target=_judge, args=(words, str(storage), log))
        process.start()
        process.join(SECONDS)
        faults, said = [], printed(log)
        if process.is_alive():
            process.kill()
            faults.append("it hung")
        elif process.exitcode not in (0, 1, 2):
            faults.append(f"exit code {process.exitcode}")
        elif process.exitcode == 0:
            faults += json.loads(log.with_suffix(".json").read_text())
            healed += all((storage / name).read_bytes() == content for name, content in expected.items())
        faults += ["a traceback"] if "Traceback" in said else []
        faults += ["it touched what is outside"] if state_of(outside) != before else []
        ends[f"exit {process.exitcode}"] += 1
        if faults:
            wrong.append((number, did, faults, said[-2000:]))
        else:
            shutil.rmtree(folder)
    print(f"\n{NUM} corruptions, seed {SEED}: {dict(ends)}, {healed} with the same bytes, {len(wrong)} wrong")
    assert not wrong, "\n".join(map(str, wrong))
