"""The storage is read as untrusted input: whatever lies in it, a reader gets what was written, or an error
that names the file."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.audit import audit
from analysis.backbone import stored_tensors
from analysis.data import load_trials
from jobs.export import export_member
from lorae import untrusted
from lorae.backbone.gguf import check_header
from lorae.engine.checkpoints import StackCheckpoints
from lorae.engine.run import run_stack
from lorae.planning.stack import Stack
from lorae.results import read_trials, trials_table
from lorae.sources import Files, backbone_config
from lorae.store import footer
from lorae.store.names import WEIGHTS, member_folder
from lorae.store.peft_format import read_state, read_update
from lorae.store.predictions import PREDICTIONS, parquet_bytes, prediction_bytes, prediction_file
from lorae.store.records import CURVE
from lorae.store.storage import Storage
from lorae.store.store import Store
from lorae.trial import Budget

SET = "colours__test__12345678"
ROWS = {"example_id": ["a", "b", "a", "b"], "label": [0, 1, 0, 1], "draw": [0, 0, 1, 1]}
LOGITS = [[1.0, 2.0, 3.0], [4.0, 5.0], [6.0, 7.0, 8.0], [9.0, 0.0]]


def stored(folder: Path, **columns: list[Any]) -> Store:
    """A member with two draws of two examples, some columns replaced."""
    size = len(next(iter(columns.values()), LOGITS))
    rows = {"member_id": ["m"] * size, "task": ["colours"] * size, "split": ["test"] * size}
    rows |= {**ROWS, "logits": LOGITS, **columns}
    table = pa.table({name: values[:size] for name, values in rows.items()}, schema=PREDICTIONS)
    store = Store(str(folder))
    store.write_entry("members/m", {WEIGHTS: b"w", prediction_file(SET): parquet_bytes(table)})
    return store


# Predictions -----------------------------------------------------------------------------------------------


def test_what_was_written_is_read(tmp_path):
    found = stored(tmp_path).predictions(["members/m"], SET)
    assert found.example_ids == ("a", "b") and found.labels_N.tolist() == [0, 1]
    assert found.logits_MNC.tolist() == [[[1, 2, 3], [4, 5, -np.inf]], [[6, 7, 8], [9, 0, -np.inf]]]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"draw": [0, 0, -1, -1]}, "the last of draw -1"),
        ({"draw": [0, 0, 1, 2**31 - 1]}, "the last of draw 2147483647"),
        ({"draw": [0, 1, 0, 1]}, "not together"),
        ({"draw": [0, 0, 0, 1]}, "missing, repeated"),
        ({"draw": [0, 0, 1]}, "3 rows"),
        ({"logits": []}, "0 rows"),
        ({"example_id": ["a", "a", "a", "a"]}, "an example repeats"),
        ({"example_id": ["a", "b", "b", "a"]}, "in another order"),
        ({"label": [0, 1, 0, 0]}, "different examples"),
        ({"label": [0, 2, 0, 2]}, "no class of its example"),
        ({"label": [0, -7, 0, -7]}, "no class of its example"),
        ({"logits": [[1.0, 2.0], [1.0, 2.0], [1.0], [1.0, 2.0]]}, "different examples"),
        ({"logits": [[], [1.0, 2.0], [], [1.0, 2.0]]}, "no class of its example"),
        ({"logits": [[1.0, np.nan], [1.0, 2.0]] * 2}, "not finite"),
        ({"logits": [[1.0, np.inf], [1.0, 2.0]] * 2}, "not finite"),
        ({"logits": [[1.0, None], [1.0, 2.0]] * 2}, "not finite"),
    ],
)
def test_rows_that_are_no_predictions(tmp_path, columns, said):
    store = stored(tmp_path, **columns)
    with pytest.raises(ValueError, match=rf"members/m/predictions/{SET}\.parquet.*{said}.*delete it"):
        store.predictions(["members/m"], SET)


@settings(max_examples=40, deadline=None)
@given(
    draws=st.lists(st.integers(-2, 3), min_size=1, max_size=6),
    ids=st.lists(st.sampled_from("abc"), min_size=6, max_size=6),
    widths=st.lists(st.integers(0, 3), min_size=6, max_size=6),
    labels=st.lists(st.integers(-2, 3), min_size=6, max_size=6),
)
def test_any_rows_are_read_exactly_or_refused(tmp_path_factory, draws, ids, widths, labels):
    """Against the definition: draws 0, 1, ... in turn, each of the same distinct examples."""
    num = len(draws)
    logits = [[float(n)] * width for n, width in enumerate(widths[:num])]
    store = stored(
        tmp_path_factory.mktemp("rows"), draw=draws, example_id=ids[:num], label=labels[:num], logits=logits
    )
    by_draw = [[n for n in range(num) if draws[n] == k] for k in sorted(set(draws))]
    seen = [[(ids[n], labels[n], widths[n]) for n in rows] for rows in by_draw]
    sound = (
        draws == sorted(draws)
        and sorted(set(draws)) == list(range(len(by_draw)))
        and all(one == seen[0] for one in seen)
        and len({example for example, *_ in seen[0]}) == len(seen[0])
        and all(-1 <= label < width for _, label, width in seen[0])
    )
    if not sound:
        with pytest.raises(ValueError, match=SET):
            store.predictions(["members/m"], SET)
        return
    found = store.predictions(["members/m"], SET)
    assert [row[np.isfinite(row)].tolist() for draw in found.logits_MNC for row in draw] == logits


@pytest.mark.parametrize("change", ["missing", "further", "type", "nullable"])
def test_other_columns_are_refused(tmp_path, change):
    """A missing column would be read as nulls, a further one silently dropped."""
    store = stored(tmp_path)
    table = store.prediction_table("members/m", prediction_file(SET))
    place = table.schema.get_field_index("label")
    wide = pa.field("label", pa.int64(), nullable=False)
    changed = {
        "missing": lambda: table.drop_columns("label"),
        "further": lambda: table.append_column("more", table["label"]),
        "type": lambda: table.set_column(place, wide, table["label"].cast("int64")),
        "nullable": lambda: table.set_column(place, "label", pa.array([None] * 4, pa.int32())),
    }[change]()  # fmt: skip
    store.write_entry("members/m", {prediction_file(SET): parquet_bytes(changed)})
    with pytest.raises(ValueError, match="its columns are"):
        store.predictions(["members/m"], SET)


def test_two_members_with_other_numbers_of_classes_are_not_mixed(tmp_path):
    store = stored(tmp_path)
    wider = prediction_bytes("n", SET, ["a", "b"], [0, 1], [3, 3], np.zeros((2, 2, 3), np.float32))
    store.write_entry("members/n", {prediction_file(SET): wider})
    with pytest.raises(ValueError, match="different examples"):
        store.predictions(["members/m", "members/n"], SET)


# Size ------------------------------------------------------------------------------------------------------


def repeated_text() -> bytes:
    """1,000,000 rows of one string of 1 MB, in a few kilobytes."""
    column = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(1_000_000, np.int32)), pa.array(["x" * 1_000_000])
    )
    sink = io.BytesIO()
    pq.write_table(pa.table({"s": column}), sink, compression="zstd", store_schema=False)
    return sink.getvalue()


def many_values() -> bytes:
    """More numbers than fit, in 65 row groups."""
    groups, sink = 2**6 + 1, io.BytesIO()
    table = pa.table({"n": pa.array(np.zeros(2**21, np.int8))})
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        for _ in range(groups):
            writer.write_table(table)
    return sink.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("bomb", [repeated_text, many_values])
def test_a_small_file_that_unpacks_to_more_than_memory_is_refused(tmp_path, bomb):
    content = bomb()
    assert len(content) < 2_000_000
    store = Store(str(tmp_path))
    store.storage.write("sweeps/x/trials.parquet", content)
    before = pa.total_allocated_bytes()
    with pytest.raises(ValueError, match=r"trials\.parquet cannot be read: .* at most .* are read"):
        read_trials(store, "x")
    assert pa.total_allocated_bytes() - before < 2**24


def test_one_wide_row_does_not_widen_all(tmp_path):
    """200,000 examples of two classes and one of 2,000,000: padded, 3 TB."""
    rows = 200_000
    lengths = np.full(rows, 2)
    lengths[7] = 2_000_000
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    logits = pa.ListArray.from_arrays(offsets, pa.array(np.zeros(lengths.sum(), np.float32)))
    text = pa.array(["m"] * rows)
    columns = [
        text,
        np.zeros(rows, np.int32),
        text,
        text,
        [f"e{n}" for n in range(rows)],
        np.zeros(rows, np.int32),
    ]
    arrays = [pa.array(c, f.type) for c, f in zip([*columns, logits], PREDICTIONS, strict=True)]
    store = Store(str(tmp_path))
    content = parquet_bytes(pa.Table.from_arrays(arrays, schema=PREDICTIONS))
    store.write_entry("members/m", {prediction_file(SET): content})
    with pytest.raises(ValueError, match="200000 rows of up to 2000000 classes"):
        store.predictions(["members/m"], SET)


def test_a_file_larger_than_listed_is_not_read(tmp_path):
    """A sparse file of 1 TB costs its reader nothing."""
    store = stored(tmp_path)
    os.truncate(tmp_path / "members/m" / WEIGHTS, 2**40)
    tracemalloc.start()
    with pytest.raises(ValueError, match="1099511627776 bytes, at most 1 are read"):
        store.read("members/m", WEIGHTS)
    assert "at most 1 are read" in str(store.damage("members/m"))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    os.truncate(tmp_path / "members/m/DONE.json", 2**40)
    assert not store.is_member("m")


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path):
    store = stored(tmp_path)
    for name in (WEIGHTS, "DONE.json"):
        (tmp_path / "members/m" / name).unlink()
        os.mkfifo(tmp_path / "members/m" / name)
        if name == WEIGHTS:
            assert "no regular file" in str(store.damage("members/m"))
    assert not store.is_member("m")


# JSON ------------------------------------------------------------------------------------------------------

HOSTILE_JSON = [
    b"",
    b"\xff\xfe",
    b"[]",
    b"null",
    b'"files"',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"schema": 1, "files": ' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"schema": 1, "files": ' + b"9" * 5000 + b"}",
    b'{"schema": 1, "files": NaN}',
    b'{"schema": 1}',
    b'{"schema": 1, "files": []}',
    b'{"schema": 1, "files": {"a": 3}}',
    b'{"schema": 1, "files": {"a": {"sha256": 3, "bytes": 3}}}',
    b'{"schema": 1, "files": {"a": {"sha256": "", "bytes": -3}}}',
    b'{"schema": 1, "files": {"a": {"sha256": "", "bytes": 1e999}}}',
    b'{"schema": 1, "files": {"a": {"sha256": "", "bytes": 1.5}}}',
    b'{"schema": 1, "files": {"a": {"sha256": "", "bytes": true}}}',
    b'{"schema": 1, "files": {"\\ud800": {"sha256": "", "bytes": 1}}}',
]


@pytest.mark.parametrize("content", HOSTILE_JSON, ids=range(len(HOSTILE_JSON)))
def test_hostile_done_is_no_entry(tmp_path, content):
    """It is then trained again, and written anew."""
    store = stored(tmp_path)
    (tmp_path / "members/m/DONE.json").write_bytes(content)
    assert (
        not store.is_member("m") and store.files("members/m") == set() and store.size_bytes("members/m") == 0
    )
    with pytest.raises(ValueError, match="has no predictions"):
        store.predictions(["members/m"], SET)
    store.write_entry("members/m", {WEIGHTS: b"new"})
    assert store.read("members/m", WEIGHTS) == b"new"


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/../../b", "", "a//b", ".", "a\0b", "x" * 300]
)
def test_done_that_lists_files_elsewhere_is_no_entry(tmp_path, name):
    store = stored(tmp_path)
    done = json.loads((tmp_path / "members/m/DONE.json").read_text())
    done["files"][name] = {"sha256": "0" * 64, "bytes": 1}
    (tmp_path / "members/m/DONE.json").write_text(json.dumps(done))
    assert store.files("members/m") == set()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=12,
)
SHAPE = {"cost": {"seconds": untrusted.number}, "runs": [{"member": int}], "all": {str: str}}


@settings(max_examples=100, deadline=None)
@given(st.fixed_dictionaries({}, optional={"cost": json_values, "runs": json_values, "all": json_values}))
def test_any_json_is_refused_unless_it_has_the_shape(value):
    """Whatever is let through can be used as its shape says."""
    try:
        found = untrusted.json_object(json.dumps(value).encode(), "member.json", SHAPE)
    except ValueError as error:
        assert "member.json cannot be read" in str(error)
        return
    assert 0 <= found["cost"]["seconds"] < 2**50
    assert all(type(run["member"]) is int for run in found["runs"])
    assert all(type(text) is str for text in found["all"].values())


def test_the_shape_is_let_through():
    value = {"cost": {"seconds": 0.5, "more": None}, "runs": [{"member": 3}], "all": {"a": "b"}, "new": [1]}
    assert untrusted.json_object(json.dumps(value).encode(), "member.json", SHAPE) == value


def test_hostile_failure_is_a_reason(tmp_path):
    store = Store(str(tmp_path))
    for content in (*HOSTILE_JSON, b'{"error": 3}'):
        store.storage.write("failures/m.json", content)
        assert "failures/m.json cannot be read" in str(store.failure("m"))


# Adapters and checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 100,
        (2**63).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}" + b"tail",
        (99).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,99999]}}'.ljust(99),
    ],
    ids=["empty", "bytes", "header size", "tail", "offsets"],
)
def test_hostile_safetensors(tmp_path, content, caplog):
    with pytest.raises(ValueError, match="no adapter"):
        read_state(content)
    import hashlib

    storage = Storage(str(tmp_path))
    storage.write("checkpoints/s.safetensors", content + hashlib.sha256(content).digest())
    assert StackCheckpoints(storage, "s", 1.0, lambda: False).load() is None
    assert "starts anew" in caplog.text


def test_a_checkpoint_of_an_older_lorae_costs_the_checkpoint_only(tmp_path, caplog):
    """The records of the curve were in its header."""
    checkpoints = StackCheckpoints(Storage(str(tmp_path)), "s", 1.0, lambda: False)
    header = {"step": 1, "active": [0], "runs": [{"member": 0, "snapshots": 0, "path": 0, "curve": 1}]}
    checkpoints.save({}, header)
    assert checkpoints.load() == ({}, header)
    header["runs"][0]["curve"] = [{"step": 1, "split": "train", "loss": 0.5}]
    checkpoints.save({}, header)
    assert checkpoints.load() is None
    assert "starts anew" in caplog.text


# A whole storage -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_llama, data_root) -> Path:
    """A storage with one member that was trained for two steps, its reference and its sweep."""
    from toys import Colours

    from lorae.methods import Lora
    from lorae.trial import Trial

    root = tmp_path_factory.mktemp("whole")
    trial = Trial(
        backbone=tiny_llama,
        task=Colours().located(data_root),
        method=Lora(rank=1),
        budget=Budget(batch_size=2, steps=2),
        precision="fp32",
    )
    run_stack(Stack(trial, (0,)), str(root), num_threads=1)
    store = Store(str(root))
    store.write_table("toy", trials_table(store, "toy", [(trial, [])], {}))
    return root


def everything(root: Path, out: Path) -> list[Any]:
    """All that readers make of a storage, down to the bytes."""
    trials = load_trials(str(root), "toy")
    (row,) = trials.rows
    folder = member_folder(row["member_ids"][0])
    predictions = [trials.predictions(row, where) for where in ("test", "validation")]
    store = trials.store
    found: list[Any] = [
        row,
        [(p.logits_MNC.tobytes(), p.labels_N.tobytes(), p.example_ids) for p in predictions],
    ]
    found += [store.curve(folder).to_pylist(), store.record(folder, {"provenance": {}})]
    found += [{k: v.numpy().tobytes() for k, v in read_state(store.read(folder, WEIGHTS)).items()}]
    found += [
        sorted(p.read_bytes() for p in export_member(str(root), row["member_ids"][0], str(out)).iterdir())
    ]
    return found


def relist(store: Store, path: Path) -> None:
    """Make the checksum agree with a changed file, as whoever can write to the storage can."""
    for folder in (p.parent for p in Path(store.storage.root).rglob("DONE.json")):
        if path.is_relative_to(folder) and path.name != "DONE.json":
            name = str(folder.relative_to(store.storage.root))
            store.write_entry(name, {str(path.relative_to(folder)): path.read_bytes()})


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Some bytes replaced, a part cut out, repeated or the end cut off."""
    kind, at = rng.randrange(4), rng.randrange(len(content))
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + content[at + rng.randrange(1, 9) :]
    if kind == 2:
        return content[:at] + content[max(0, at - 8) :]
    changed = bytearray(content)
    for _ in range(rng.randrange(1, 4)):
        changed[rng.randrange(len(changed))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    return bytes(changed)


@pytest.mark.slow
@pytest.mark.parametrize("listed", [False, True], ids=["damage", "hostile"])
def test_fuzzed_storage_reads_as_written_or_is_refused(whole, tmp_path, listed):
    """Every file changed 8 times, alone or with its checksum: an exception of another kind fails the test.

    Without the checksum what is read must be what was written, but for trials.parquet and DONE.json, which
    have none.
    """
    rng, expected = random.Random(0), everything(whole, tmp_path / "expected")
    files = [p for p in sorted(whole.rglob("*")) if p.is_file() and "locks" not in p.parts]
    originals = {path: path.read_bytes() for path in files}
    assert len(files) >= 10
    store, outcomes = Store(str(whole)), {"same": 0, "other": 0, "refused": 0}
    for number, path in enumerate(p for p in files for _ in range(8)):
        path.write_bytes(mutated(originals[path], rng))
        if listed:
            relist(store, path)
        try:
            found = everything(whole, tmp_path / f"out-{number}")
            outcome = "same" if found == expected else "other"
        except (ValueError, OSError):
            outcome = "refused"
        outcomes[outcome] += 1
        if not listed and path.name not in ("trials.parquet", "DONE.json"):
            assert outcome != "other", path
        if number % 6 == 0:
            audit(str(whole))
        for name, content in originals.items():
            if name.read_bytes() != content:
                name.write_bytes(content)
    assert outcomes["same"] and outcomes["refused"]


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("status", "great", "status 'great'"),
        ("eval_sets", "{}", "/test is 'None'"),
        ("eval_sets", '{"test": 1, "validation": "v"}', "/test is '1'"),
        ("recipe", "[" * 5000, "no JSON"),
        ("recipe", None, "recipe is null"),
        ("provenance", "[]", "it is no object"),
        ("members", -1, "members=-1"),
        ("member_ids", [None], "member_ids"),
        ("combine", "sum", "combine 'sum'"),
    ],
)
def test_trials_with_a_hostile_cell(whole, tmp_path, column, value, said):
    source = read_trials(Store(str(whole)), "toy")
    rows = [row | {column: value} for row in source.to_pylist()]
    store = Store(str(tmp_path))
    store.write_table("toy", pa.Table.from_pylist(rows, schema=source.schema))
    with pytest.raises(ValueError, match=rf"trials\.parquet row 0.*{said}"):
        load_trials(str(tmp_path), "toy")


def test_trials_with_a_column_of_another_type(whole, tmp_path):
    table = read_trials(Store(str(whole)), "toy")
    store = Store(str(tmp_path))
    for name in ("seed", "ensemble_nll", "member_ids"):
        place = table.schema.get_field_index(name)
        store.write_table("toy", table.set_column(place, name, pa.array(["x"])))
        with pytest.raises(ValueError, match="columns of other types"):
            load_trials(str(tmp_path), "toy")


@pytest.mark.parametrize("member", ["../../../etc", "/etc", "a\0b", "..", "x" * 5000])
def test_trials_that_name_members_elsewhere(whole, tmp_path, member):
    table = read_trials(Store(str(whole)), "toy")
    rows = [row | {"member_ids": [member]} for row in table.to_pylist()]
    store = Store(str(tmp_path))
    store.write_table("toy", pa.Table.from_pylist(rows, schema=table.schema))
    trials = load_trials(str(tmp_path), "toy")
    with pytest.raises(ValueError, match=r"has no predictions|no name of a file"):
        trials.predictions(trials.rows[0])
    assert any(f.status == "failed" for f in audit(str(tmp_path)))


def edited_record(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Store, str], None]:
    def apply(store: Store, folder: str) -> None:
        record = json.loads(store.read(folder, "member.json"))
        edit(record)
        store.write_entry(folder, {"member.json": json.dumps(record).encode()})

    return apply


def empty_curve(store: Store, folder: str) -> None:
    store.write_entry(folder, {"curve.parquet": parquet_bytes(CURVE.empty_table())})


def other_dtype(store: Store, folder: str) -> None:
    content = safetensors.numpy.save({"a": np.zeros(2, np.float32)}).replace(b"F32", b"F99")
    store.write_entry(folder, {WEIGHTS: content})


@pytest.mark.parametrize(
    "breaking",
    [
        edited_record(lambda r: r.pop("recipe")),
        edited_record(lambda r: r["recipe"].update(method=3)),
        edited_record(lambda r: r["recipe"].update(precision=["fp32"])),
        edited_record(lambda r: r["recipe"].update(regularizers=[{"type": "KL"}])),
        edited_record(lambda r: r.update(streams=[])),
        empty_curve,
        other_dtype,
    ],
)
def test_audit_names_an_entry_that_cannot_be_read(whole, tmp_path, breaking):
    import shutil

    shutil.copytree(whole, tmp_path / "copy")
    store = Store(str(tmp_path / "copy"))
    (member,) = store.storage.names("members")
    breaking(store, member_folder(member))
    faults = [f for f in audit(str(tmp_path / "copy")) if f.status == "failed"]
    assert faults[0].check == "entries are whole" and faults[0].where == member_folder(member), faults


# Files that end or fill a process whose reader trusts them ------------------------------------------------


@pytest.fixture(scope="module")
def tables() -> list[bytes]:
    curve = pa.Table.from_pylist([{"step": 1, "split": "train", "loss": 1.0}], schema=CURVE)
    nested = pa.table({"a": [[1, 2], []], "b": [{"c": 1}, None], "d": ["x" * 5000, None]})
    logits = np.zeros((2, 2, 3), np.float32)
    return [
        prediction_bytes("m", SET, ["a", "b"], [0, 1], [3, 2], logits),
        *map(parquet_bytes, (curve, nested, CURVE.empty_table())),
    ]


@pytest.mark.slow
def test_declared_sizes_are_those_of_pyarrow(tables, data_root):
    """Of sound files, where pyarrow can be asked; also of data sets that other programs wrote."""
    others = [path.read_bytes() for path in sorted(data_root.rglob("*.parquet"))]
    assert others
    for content in [*tables, *others, many_values()]:
        metadata = pq.read_metadata(pa.BufferReader(content))
        groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
        columns = [group.column(n) for group in groups for n in range(metadata.num_columns)]
        declared = sum(c.num_values for c in columns), sum(c.total_uncompressed_size for c in columns)
        assert footer.declared_size(content) == declared


FLIPPED = """
import sys
from lorae.store.tables import table
content = sys.stdin.buffer.read()
first = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
for at in range(first, len(content)):
    for bit in {at % 8, 7}:
        changed = bytearray(content)
        changed[at] ^= 1 << bit
        try:
            table(bytes(changed), "t.parquet")
        except ValueError as error:
            assert "t.parquet cannot be read" in str(error), error
print(len(content) - first)
"""


@pytest.mark.process
def test_flipped_bits_of_every_byte_of_a_footer_are_read_or_refused(tables):
    """pyarrow aborted at some of them, so a process of its own tries. (A fork of one that has used pyarrow
    waits for threads that it has not.)"""
    done = subprocess.run([sys.executable, "-c", FLIPPED], input=tables[0], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-500:]
    assert int(done.stdout) > 1000


def test_json_of_many_values_is_refused_before_it_fills_the_memory():
    """16 MB of empty lists would be a gigabyte of Python."""
    tracemalloc.start()
    for part in (b"[],", b"{},", b'"",', b"1,"):
        content = b'{"files": [' + part * (2**24 // len(part) - 10) + b"0]}"
        with pytest.raises(ValueError, match=r"DONE\.json cannot be read: .* values of JSON, at most"):
            untrusted.json_object(content, "DONE.json", {})
    with pytest.raises(ValueError, match=r"DONE\.json cannot be read: .* bytes of JSON, at most"):
        untrusted.json_object(b" " * (2**24 + 1), "DONE.json", {})
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


LARGEST = """
from pathlib import Path
from lorae import untrusted
for part in (b"[],", b"{},", b'"xy",', b'{"a":1},'):
    marks = sum(map(part.count, (b",", b"[", b"{", b":")))
    content = b'{"files": [' + part * ((untrusted.MAX_JSON_VALUES - 10) // marks) + b"0]}"
    untrusted.json_object(content, "DONE.json", {"files": list})
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
print(1024 * int(peak.split()[1]))
"""


@pytest.mark.process
def test_as_much_json_as_is_read_fits_into_memory():
    done = subprocess.run([sys.executable, "-c", LARGEST], capture_output=True, text=True)
    assert done.returncode == 0 and int(done.stdout) < 500 * 10**6, done.stderr


@pytest.mark.parametrize(
    "content", [b"3", b"[]", b'{"search": 3}', b'{"stacks": {"a": 1}}', b"[" * 9999, b"\xff"]
)
def test_a_hostile_record_of_a_search_begins_it_anew(tmp_path, content, caplog):
    from jobs.search_record import SearchRecord
    from lorae.search import ASHA

    store = Store(str(tmp_path))
    store.storage.write("sweeps/x/search.json", content)
    assert SearchRecord(store, "x", ASHA()).stacks == {}
    assert "sweeps/x/search.json cannot be read" in caplog.text and "begins anew" in caplog.text


@pytest.mark.parametrize("metadata", [None, [], "x"])
def test_a_checkpoint_without_metadata_starts_the_stack_anew(tmp_path, metadata, caplog):
    header = json.dumps(
        {"__metadata__": metadata, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    )
    content = len(header).to_bytes(8, "little") + header.encode() + bytes(4)
    store = Store(str(tmp_path))
    store.storage.write("checkpoints/s.safetensors", content + hashlib.sha256(content).digest())
    assert StackCheckpoints(store.storage, "s", 1.0, lambda: False).load() is None
    assert "is no checkpoint" in caplog.text and not store.storage.exists("checkpoints/s.safetensors")


def test_an_adapter_of_no_layer_is_refused():
    weights = safetensors.numpy.save({"base_model.model.q_proj.loza_A.weight": np.zeros((1, 4), np.float32)})
    with pytest.raises(ValueError, match="has no layer that LORA adapts"):
        read_update(b'{"peft_type": "LORA", "r": 1, "lora_alpha": 1}', weights)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (b"3", "it is no object"),
        (b'{"hidden_size": "x"}', "hidden_size"),
        (b'{"hidden_size": -1}', "hidden_size"),
        (b'{"vocab_size": 1e999}', "vocab_size"),
        (b'{"model_type": 3}', "model_type"),
        (b'{"architectures": "x"}', "architectures"),
        (b'{"a":' * 60 + b"1" + b"}" * 60, "nested deeper"),
        (b'{"a":' * 9999, "no JSON"),
        (b'{"a": "' + b"x" * 2**24 + b'"}', "bytes of JSON"),
    ],
)
def test_a_hostile_config_is_named(tmp_path, config, said):
    (tmp_path / "config.json").write_bytes(config)
    with pytest.raises(ValueError, match=rf"config\.json cannot be read: .*{said}.*copy the file again"):
        backbone_config(Files(str(tmp_path)))


def test_a_config_may_have_numbers_that_json_has_not(tmp_path):
    """As Mamba's has: `time_step_limit`."""
    (tmp_path / "config.json").write_text('{"model_type": "llama", "time_step_limit": [0.0, Infinity]}')
    assert backbone_config(Files(str(tmp_path)))["time_step_limit"] == [0.0, np.inf]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peft_type": "LORA"}, "lora_alpha"),
        ({"peft_type": "LORA", "lora_alpha": 1, "r": 0}, "/r is '0'"),
        ({"peft_type": "LORA", "lora_alpha": "1", "r": 1}, "lora_alpha"),
        ({"peft_type": 3}, "peft_type"),
        ({"peft_type": "LORA", "lora_alpha": 1, "r": 1}, "it lacks q_proj.lora_B.weight"),
        ({"peft_type": "VERA"}, "it lacks q_proj.vera_lambda_b"),
    ],
)
def test_a_hostile_adapter_config_is_named(settings, said):
    names = ("lora_A.weight", "vera_lambda_d")
    weights = {f"base_model.model.q_proj.{name}": np.zeros((1, 2), np.float32) for name in names}
    with pytest.raises(ValueError, match=rf"adapter_(config\.json|model\.safetensors) .*{said}"):
        read_update(json.dumps(settings).encode(), safetensors.numpy.save(weights))


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "has 8 bytes, not 4"),
        ({"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}, "bytes"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}, "bytes"),
        ({"dtype": "F32", "shape": [1], "data_offsets": []}, "bytes"),
        ({"dtype": 3, "shape": [1], "data_offsets": [0, 4]}, "dtype"),
        (3, "no object"),
    ],
)
def test_hostile_places_of_tensors_are_named(tmp_path, entry, said):
    header = json.dumps({"w": entry}).encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ValueError, match=rf"w\.safetensors .*{said}.*copy the file again"):
        stored_tensors(Storage(str(tmp_path)), "w.safetensors")


def a_gguf(*settings: tuple[int, bytes], num_tensors: int = 0) -> bytes:
    """Settings by type and content."""
    parts = [struct.pack("<Q", 1) + b"k" + struct.pack("<I", kind) + content for kind, content in settings]
    return b"GGUF" + struct.pack("<IQQ", 3, num_tensors, len(parts)) + b"".join(parts)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "does not begin"),
        (b"GGUF", "requires a buffer"),
        (a_gguf(num_tensors=2**63), f"{2**63} tensors"),
        (a_gguf((9, struct.pack("<IQ", 0, 2**40))), "elements, at most"),
        (a_gguf((9, struct.pack("<IQ", 9, 3))), "a list of type 9"),
        (a_gguf((9, struct.pack("<IQQ", 8, 2, 2**63))), "cut off"),
        (a_gguf((8, struct.pack("<Q", 2**62))), "a text of"),
        (a_gguf((13, b"")), "a setting of type 13"),
        (
            a_gguf(num_tensors=1) + struct.pack("<QcIQQIQ", 1, b"w", 2, 2**20, 2**20, 0, 0),
            "its tensors end at",
        ),
        (a_gguf(num_tensors=1) + struct.pack("<QcI", 1, b"w", 2**31), "dimensions"),
    ],
)
def test_a_gguf_header_that_claims_too_much_is_refused_at_once(tmp_path, content, said):
    """The package that reads it would make an object of every element."""
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    started = time.process_time()
    with pytest.raises(ValueError, match=rf"model\.gguf is no GGUF file that can be read: .*{said}"):
        check_header(path)
    assert time.process_time() - started < 2


def test_a_gguf_file_that_the_package_wrote_is_sound(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(tmp_path / "model.gguf"), "llama")
    writer.add_string("general.name", "tiny")
    writer.add_array("tokenizer.ggml.tokens", ["a", "bb", "é"])
    writer.add_array("tokenizer.ggml.scores", [0.0, 1.0, 2.0])
    writer.add_bool("flag", True)
    writer.add_tensor("w", np.zeros((4, 32), np.float32))
    writer.add_tensor("v", np.zeros(7, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    check_header(tmp_path / "model.gguf")
    os.truncate(tmp_path / "model.gguf", (tmp_path / "model.gguf").stat().st_size - 64)
    with pytest.raises(ValueError, match="its tensors end at"):
        check_header(tmp_path / "model.gguf")
