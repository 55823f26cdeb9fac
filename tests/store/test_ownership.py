"""Content is not trusted because its checksum is right: what is another's, wherever it came from, is set
aside, said, and made again. Storages of an older lorae, which say less, are read all the same."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import torch
from toys import Colours
from victims import contents

from analysis.audit import audit
from jobs.search_record import SearchRecord
from lorae.engine.checkpoints import StackCheckpoints
from lorae.engine.run import run_stack
from lorae.planning.stack import Stack, Stopped
from lorae.regularizers import KL, AdapterDropout
from lorae.results import read_trials, trials_table
from lorae.search import ASHA
from lorae.store import ownership
from lorae.store.names import WEIGHTS, member_folder, reference_folder
from lorae.store.predictions import SCHEMA, prediction_bytes, prediction_file
from lorae.store.storage import Storage
from lorae.store.store import Store
from lorae.trial import AdamW, Budget, Trial

SET = "colours__test__12345678"


@pytest.fixture(scope="module")
def stacks(tiny_llama, data_root) -> tuple[Stack, Stack]:
    """Two stacks whose members differ in a number, and in no shape."""
    trial = Trial(
        backbone=tiny_llama,
        task=Colours().located(data_root),
        optimizer=AdamW(lr=1e-2),
        budget=Budget(batch_size=4, steps=4),
        regularizers=(KL(0.1), AdapterDropout(0.1)),
        precision="fp32",
        members=2,
    )
    return Stack(trial, (0, 1)), Stack(replace(trial, regularizers=(KL(0.5), AdapterDropout(0.1))), (0, 1))


def run(stack: Stack, root: Path, stop_after: int | None = None) -> None:
    """Train a stack, checkpointing at every step; stopped after some of them."""
    steps = [0]

    def should_stop() -> bool:
        return stop_after is not None and steps[0] >= stop_after

    def on_progress(progress) -> None:
        steps[0] = max(steps[0], progress.step if progress.phase == "train" else 0)

    run_stack(
        stack,
        str(root),
        num_threads=1,
        checkpoint_seconds=0.0,
        on_progress=on_progress,
        should_stop=should_stop,
    )


@pytest.fixture(scope="module")
def original(stacks, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("original")
    for stack in stacks:
        run(stack, root)
    return root


def aged(root: Path) -> None:
    """Take out of a storage what only this lorae writes: whose each file is."""
    for done in root.rglob("DONE.json"):
        record = json.loads(done.read_text())
        del record["entry"]
        for name in record["files"]:
            path = done.parent / name
            path.write_bytes(without_marks(path))
            content = path.read_bytes()
            record["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        done.write_text(json.dumps(record))


def without_marks(path: Path) -> bytes:
    if path.suffix == ".safetensors":
        return safetensors.numpy.save(safetensors.numpy.load_file(path), metadata={"format": "pt"})
    if path.suffix == ".parquet":
        sink = io.BytesIO()
        pq.write_table(pq.read_table(path).replace_schema_metadata(SCHEMA), sink)
        return sink.getvalue()
    if path.name in ownership.OF_THEMSELVES:
        return path.read_bytes()
    return json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "owner"}).encode()


@pytest.fixture(params=["new", "old"])
def storage(request, original, tmp_path) -> Path:
    """A copy of the storage, or of the one that an older lorae would have written."""
    shutil.copytree(original, tmp_path / "store", ignore=shutil.ignore_patterns("locks"))
    if request.param == "old":
        aged(tmp_path / "store")
    return tmp_path / "store"


def members(stacks: tuple[Stack, Stack]) -> list[str]:
    return [member_folder(m) for stack in stacks for m in stack.member_ids()]


def with_mtimes(source: Path, target: Path) -> None:
    shutil.copytree(source, target, copy_function=shutil.copy2)


def learned(root: Path) -> dict[str, np.ndarray]:
    """Weights and predictions of all members, whatever their files say beside that."""
    found = {}
    for name, content in contents(root).items():
        if name.endswith(".parquet"):
            found[name] = np.array(pq.read_table(io.BytesIO(content))["logits"].to_pylist())
        else:
            found |= {f"{name} {k}": v for k, v in safetensors.numpy.load(content).items()}
    return found


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Up to the rounding by which a member alone differs from one in a stack."""
    assert found.keys() == expected.keys()
    assert all(np.allclose(found[name], expected[name], atol=1e-5) for name in expected)


def swapped(root: Path, one: str, other: str) -> None:
    (root / one).rename(root / "hand")
    (root / other).rename(root / one)
    (root / "hand").rename(root / other)


def copied(root: Path, one: str, other: str) -> None:
    shutil.rmtree(root / one)
    with_mtimes(root / other, root / one)


def linked(root: Path, one: str, other: str) -> None:
    shutil.rmtree(root / one)
    (root / one).symlink_to(root / other)


def hard_linked(root: Path, one: str, other: str) -> None:
    shutil.rmtree(root / one)
    shutil.copytree(root / other, root / one, copy_function=os.link)


def record_and_list_of(root: Path, one: str, other: str) -> None:
    """Only the files that name things; the rest is its own."""
    for name in ("member.json", "DONE.json"):
        shutil.copy2(root / other / name, root / one / name)


FOREIGN: list[Callable[[Path, str, str], None]] = [swapped, copied, linked, hard_linked, record_and_list_of]


@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("other", [1, 2], ids=["same stack", "other stack"])
def test_a_member_that_is_another_is_set_aside_and_trained_again(
    storage, original, stacks, caplog, foreign, other
):
    """In a plan, too, which writes nothing."""
    folders = members(stacks)
    foreign(storage, folders[0], folders[other])
    store = Store(str(storage))
    assert store.damage(folders[0], changed_only=True) and store.damage(folders[0])
    assert store.damage(folders[3], changed_only=True) is None and not (storage / "set-aside").exists()
    for stack in stacks:
        run(stack, storage)
    assert_same(learned(storage), learned(original))
    aside = storage / "set-aside" / (folders[0].replace("/", "-") + "-1")
    assert aside.exists() and f"set aside as set-aside/{aside.name}" in caplog.text


def test_a_reference_that_is_another_is_made_again(storage, original, stacks):
    """A whole one, of another id by its rows alone: so are all those of an older lorae."""
    folder, store = reference_folder(stacks[0].trial.reference_id()), Store(str(storage))
    name = min(store.files(folder))
    table, sink = pq.read_table(io.BytesIO(store.read(folder, name))), io.BytesIO()
    names = pa.array(["0123456789abcdef"] * len(table))
    foreign = table.set_column(0, table.schema.field(0), names).replace_schema_metadata(SCHEMA)
    pq.write_table(foreign, sink)
    file_of_another(store, folder, name, sink.getvalue())
    with pytest.raises(ValueError, match="is of 0123456789abcdef"):
        store.read(folder, name)
    run(stacks[0], storage)
    eval_set = name.removeprefix("predictions/").removesuffix(".parquet")
    same = [Store(str(root)).predictions([folder], eval_set).logits_MNC for root in (storage, original)]
    assert np.array_equal(*same) and (storage / "set-aside" / f"{folder.replace('/', '-')}-1").is_dir()


def test_a_storage_of_an_older_lorae_is_whole(storage, stacks, original):
    store = Store(str(storage))
    before = contents(storage)
    assert not [f for f in store.storage.names("members") if store.damage(member_folder(f))]
    for stack in stacks:
        run(stack, storage)
    trials = [(stack.trial, []) for stack in stacks]
    store.write_table("toy", trials_table(store, "toy", trials, {}))
    assert contents(storage) == before and not (storage / "set-aside").exists()
    assert not [f for f in audit(str(storage)) if f.status == "failed"]


# Files of an entry -----------------------------------------------------------------------------------------


def file_of_another(store: Store, folder: str, name: str, content: bytes) -> None:
    """Put a file into an entry, and its checksum with it, as whoever can write to the storage can."""
    entry = Path(store.storage.root) / folder
    (entry / name).write_bytes(content)
    done = json.loads((entry / "DONE.json").read_text())
    done["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (entry / "DONE.json").write_text(json.dumps(done))


def test_every_kind_of_file_says_whose_it_is(tmp_path):
    """And keeps what else it says."""
    logits, eval_sets = np.zeros((1, 1, 3), np.float32), (SET, "colours__validation__12345678")
    sets = {prediction_file(s): s for s in eval_sets}
    store = Store(str(tmp_path))
    for member in "mn":
        files = {
            WEIGHTS: safetensors.numpy.save({"a": np.ones(2)}, {"format": "pt"}),
            "later.json": b'{"a": 1}',
        }
        files |= {f: prediction_bytes(member, s, ["a"], [0], [3], logits) for f, s in sets.items()}
        store.write_entry(member_folder(member), files)
        assert store.damage(member_folder(member)) is None
    content = store.read("members/m", WEIGHTS)
    assert ownership.tensors_metadata(content) == {"format": "pt", ownership.OWNER: "m"}
    assert safetensors.numpy.load(content)["a"].tolist() == [1, 1]
    assert store.record("members/m", {}, "later.json") == {"a": 1, "owner": "m"}
    for name in (*files, prediction_file(SET)):
        original = store.read("members/m", name)
        file_of_another(store, "members/m", name, store.read("members/n", name))
        with pytest.raises(ValueError, match=f"members/m/{name} is of n"):
            store.read("members/m", name)
        file_of_another(store, "members/m", name, original)
    other = store.read("members/m", prediction_file(eval_sets[1]))
    file_of_another(store, "members/m", prediction_file(SET), other)
    with pytest.raises(ValueError, match=f"has the predictions of {eval_sets[1]}"):
        store.predictions(["members/m"], SET)


@pytest.mark.parametrize(
    "content",
    [b"", b"w", b"\xff" * 40, (99).to_bytes(8, "little") + b"[]", b"[1]", b"{", b"[" * 9999, b"null"],
    ids=range(8),
)
def test_a_file_that_is_no_such_file_is_stored_as_it_is(tmp_path, content):
    """Its reader will tell."""
    for name in ("a.safetensors", "a.json", "a.parquet", "member.json"):
        assert ownership.marked("members/m", name, content) == content
        assert ownership.owner_of(name, content) is None


# Checkpoints -----------------------------------------------------------------------------------------------


def checkpoint_of(root: Path, stack: Stack) -> Path:
    return root / "checkpoints" / f"{stack.id}.safetensors"


def test_exchanged_checkpoints_cost_only_themselves(tmp_path, original, stacks, caplog):
    for stack in stacks:
        with pytest.raises(Stopped):
            run(stack, tmp_path, stop_after=2)
    swapped(tmp_path, *(str(checkpoint_of(tmp_path, s).relative_to(tmp_path)) for s in stacks))
    for stack in stacks:
        run(stack, tmp_path)
    assert contents(tmp_path) == contents(original)
    assert caplog.text.count("it is of the stack") == 2
    assert len(list((tmp_path / "set-aside").glob("checkpoints-*"))) == 2


def rewritten(path: Path, edit: Callable[[dict, dict], object]) -> None:
    """A checkpoint without the name of its stack, its tensors and header changed, its checksum right."""
    content = path.read_bytes()[:-32]
    tensors = safetensors.numpy.load(content)
    header = json.loads(ownership.tensors_metadata(content)["header"])
    edit(tensors, header)
    content = safetensors.numpy.save(tensors, metadata={"header": json.dumps(header)})
    path.write_bytes(content + hashlib.sha256(content).digest())


def first(tensors: dict, prefix: str) -> str:
    return next(name for name in sorted(tensors) if name.startswith(prefix))


@pytest.mark.slow
@pytest.mark.parametrize(
    "edit",
    [
        lambda t, h: t.pop(first(t, "parameter/")),
        lambda t, h: t.update({first(t, "parameter/"): np.zeros((2, 1), np.float32)}),
        lambda t, h: t.pop(first(t, "exp_avg_sq/")),
        lambda t, h: t.update({first(t, "exp_avg/"): np.zeros(3, np.float32)}),
        lambda t, h: t.update({"state/0/x": np.zeros(3, np.float32)}),
        lambda t, h: t.pop("curve/1"),
        lambda t, h: t.update({"curve/1": np.zeros((8, 9))}),
        lambda t, h: t["curve/0"].fill(np.nan),
        lambda t, h: h.update(active=[0, 0]),
        lambda t, h: h.update(active=[0, 7]),
        lambda t, h: h.update(active=[0]),
        lambda t, h: h.update(step=-1),
        lambda t, h: h["runs"].pop(),
        lambda t, h: h["runs"].reverse(),
        lambda t, h: h["runs"][0].pop("best_step"),
        lambda t, h: h["runs"][0].update(best_nll="low"),
        lambda t, h: h["runs"][0].update(snapshots=10**6),
        lambda t, h: h["runs"][0].update(error=3),
        lambda t, h: h["runs"][0].update(train_tokens=-1),
        lambda t, h: h.pop("runs"),
    ],
    ids=range(20),
)
def test_a_checkpoint_that_does_not_fit_its_stack_starts_it_anew(tmp_path, original, stacks, caplog, edit):
    with pytest.raises(Stopped):
        run(stacks[0], tmp_path, stop_after=2)
    rewritten(checkpoint_of(tmp_path, stacks[0]), edit)
    run(stacks[0], tmp_path)
    assert contents(tmp_path).items() <= contents(original).items()
    assert "is no checkpoint of this stack" in caplog.text and "set-aside/checkpoints-" in caplog.text


def test_a_checkpoint_of_an_older_lorae_is_gone_on_from(tmp_path, original, stacks, caplog):
    with pytest.raises(Stopped):
        run(stacks[0], tmp_path, stop_after=2)
    rewritten(checkpoint_of(tmp_path, stacks[0]), lambda tensors, header: None)
    saved = StackCheckpoints(Storage(str(tmp_path)), stacks[0].id, 1.0, lambda: False).load()
    assert saved and saved[1]["step"] == 3
    run(stacks[0], tmp_path)
    assert contents(tmp_path).items() <= contents(original).items() and "set aside" not in caplog.text


def test_what_a_header_says_beyond_the_known_is_not_taken_over(tmp_path, stacks):
    """Such as a method of the object that it fills."""
    with pytest.raises(Stopped):
        run(stacks[0], tmp_path, stop_after=2)
    rewritten(checkpoint_of(tmp_path, stacks[0]), lambda t, h: h["runs"][0].update(member=0, __class__="x"))
    run(stacks[0], tmp_path)
    assert all(Store(str(tmp_path)).is_member(m) for m in stacks[0].member_ids())


# Records ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b'{"members": ["a"]}', b'{"members": 3}', b"{", b"[]", b"\xff"])
def test_a_stack_that_has_begun_by_the_record_of_another_has_not(tmp_path, caplog, content):
    store = Store(str(tmp_path))
    store.begin("0" * 16, ["b"])
    store.storage.write("checkpoints/0123456789abcdef.json", content)
    assert store.begun() == [] and not (tmp_path / "set-aside").exists()
    store.finish_writes()
    assert store.storage.names("checkpoints") == [] and "is set aside" in caplog.text


@pytest.mark.parametrize("content", [b'{"m": "{}"}', b'{"m": 3}', b"{", b"[]", b'{"n": "{}"}'])
def test_a_journal_that_is_damaged_or_of_others_is_set_aside(tmp_path, caplog, content):
    store = Store(str(tmp_path))
    store.write_entry("members/m", {WEIGHTS: b"w"})
    store.storage.write(f"journal/{ownership.digest(['m'])}.json", content)
    store.finish_writes()
    assert store.storage.names("journal") == [] and "is set aside" in caplog.text
    assert store.damage("members/m") is None and store.files("members/m") == {WEIGHTS}


def test_a_journal_that_a_backup_brings_back_undoes_nothing(tmp_path):
    store = Store(str(tmp_path))
    store.write_members({"m": {WEIGHTS: b"w"}})
    old = (tmp_path / "members/m/DONE.json").read_text()
    store.write_entry("members/m", {"more": b"x"})
    journal = f"journal/{ownership.digest(['m'])}.json"
    store.storage.write(journal, json.dumps({"m": old}).encode())
    store.finish_writes()
    assert store.files("members/m") == {WEIGHTS, "more"} and not store.storage.exists(journal)


def test_a_failure_of_another_member_is_none_of_this_one(tmp_path):
    """Tuning would leave its value out."""
    store = Store(str(tmp_path))
    store.write_failure("m", "diverged")
    shutil.copy(tmp_path / "failures/m.json", tmp_path / "failures/n.json")
    assert store.failure("m") == "diverged" and store.failure("n") is None


def test_the_table_and_the_search_of_another_sweep_are_refused(tmp_path, original, stacks):
    store = Store(str(tmp_path))
    shutil.copytree(original / "members", tmp_path / "members")
    shutil.copytree(original / "reference", tmp_path / "reference")
    store.write_table("one", trials_table(store, "one", [(stacks[0].trial, [])], {}))
    record = SearchRecord(store, "one", ASHA())
    record.add(stacks[0], {"step": 1, "num_steps": 2, "evaluation": 1, "validation_nll": 0.5}, True)
    assert SearchRecord(store, "one", ASHA()).ended(stacks[0]) and len(read_trials(store, "one")) == 1
    shutil.copytree(tmp_path / "sweeps/one", tmp_path / "sweeps/two")
    assert not SearchRecord(store, "two", ASHA()).ended(stacks[0])
    with pytest.raises(ValueError, match=r"sweeps/two/trials\.parquet row 0: it is of the sweep one"):
        read_trials(store, "two")


@pytest.mark.parametrize("uri", ["folder", "mock:///root"])
def test_what_is_set_aside_never_replaces_what_was(tmp_path, uri):
    store = Store(uri if "://" in uri else str(tmp_path / uri))
    for content in (b"1", b"2"):
        store.write_entry("members/m", {"inner/a": content})
        store.set_aside("members/m", "damaged")
        assert not store.storage.exists("members/m/DONE.json")
    found = [store.storage.read(f"set-aside/members-m-{n}/inner/a") for n in (1, 2)]
    assert found == [b"1", b"2"]
    store.storage.write("checkpoints/s", b"3")
    store.set_aside("checkpoints/s", "damaged")
    assert store.storage.read("set-aside/checkpoints-s-1") == b"3"


def test_torch_reads_a_marked_file(tmp_path):
    content = ownership.marked(
        "members/m", WEIGHTS, safetensors.numpy.save({"a": np.arange(3, dtype=np.int8)})
    )
    (tmp_path / "f").write_bytes(content)
    assert torch.equal(safetensors.torch.load_file(tmp_path / "f")["a"], torch.arange(3, dtype=torch.int8))
