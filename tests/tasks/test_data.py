"""Rows of a dataset: the same from the hub, from a copy of it in any layout, and known by content."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import pickle
from csv import DictWriter as csv_writer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from toys import write_rows

from lorae.sources import Files, Hub, Wheel
from lorae.tasks import MMLU, ArcEasy, OpenBookQA
from lorae.tasks.data import (
    DataFiles,
    _hub_rows,
    csv,
    data_fingerprint,
    jsonl,
    local_copy,
    parquet,
    read_rows,
)

pytestmark = pytest.mark.usefixtures("lorae_cache")


def arc_row(number: int) -> dict[str, Any]:
    return {
        "id": f"Mercury_{number}",
        "question": f"What is {number}?",
        "choices": {"text": ["one", "two", "three"], "label": ["1", "2", "3"]},
        "answerKey": "2",
    }


def mmlu_row(subject: str, number: int) -> dict[str, Any]:
    return {
        "question": f"{subject} {number}",
        "subject": subject,
        "choices": ["a", "b", "c", "d"],
        "answer": 1,
    }


@pytest.mark.parametrize(
    "path", ["ARC-Easy/test-00000-of-00001.parquet", "ARC-Easy/test.parquet", "test.parquet"]
)
def test_a_copy_may_have_hub_layout_or_be_flat(tmp_path: Path, path: str) -> None:
    write_rows(tmp_path / path, [arc_row(1), arc_row(2)])
    assert read_rows(Files(str(tmp_path)), ArcEasy.test) == [arc_row(1), arc_row(2)]


def test_a_copy_of_the_hubs_parquet_export_is_read_by_split(tmp_path: Path) -> None:
    write_rows(tmp_path / "default/train/0000.parquet", [arc_row(1)])
    write_rows(tmp_path / "default/test/0000.parquet", [arc_row(2)])
    assert read_rows(Files(str(tmp_path)), parquet("default/test/*")) == [arc_row(2)]


def test_local_copies_are_found_by_task_then_by_hub_id(tmp_path: Path) -> None:
    home = Hub("cais/mmlu")
    assert local_copy(tmp_path, "mmlu/stem", home) is None
    for folder in ("cais/mmlu", "mmlu", "mmlu/stem"):
        (tmp_path / folder).mkdir(parents=True)
        assert local_copy(tmp_path, "mmlu/stem", home) == Files(str(tmp_path / folder))


def test_shards_and_patterns_keep_their_order(tmp_path: Path) -> None:
    for part in ("validation", "dev"):
        for shard in (1, 0):
            rows = [mmlu_row("anatomy", shard), mmlu_row(part, shard)]
            write_rows(tmp_path / f"anatomy/{part}-{shard:05}-of-00002.parquet", rows)
    rows = read_rows(Files(str(tmp_path)), MMLU("anatomy").train)
    assert [r["question"] for r in rows[1::2]] == ["dev 0", "dev 1", "validation 0", "validation 1"]


PARTS = ["train-00000-of-00003.parquet", "train-00001-of-00003.parquet", "train-00002-of-00003.parquet"]


@pytest.mark.parametrize(
    "names,message",
    [
        (PARTS[::2], r"of the 3 parts of train number 1 is missing"),
        ([*PARTS, "train-00000-of-00001.parquet"], r"several sets beside each other: train-00000-of-00001"),
        ([*PARTS, "train-00002-of-00003-1f3c.parquet"], r"00002-of-00003-1f3c.* are too many"),
        (["train-1-of-2.parquet", "train-2-of-2.parquet", "train-extra.parquet"], "train-extra.parquet"),
    ],
    ids=["missing", "two-generations", "twice", "others"],
)
def test_parts_that_are_not_one_complete_set_are_refused(
    tmp_path: Path, names: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a local copy and in a repository of the hub alike."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    repository = tmp_path / "toy"
    for name in names:
        write_rows(repository / "main" / name, [arc_row(1)])
    with pytest.raises(ValueError, match=message):
        read_rows(Files(str(repository)), parquet("main/train-*"))
    with pytest.raises(ValueError, match=message):
        read_rows(Hub(str(repository), revision="0" * 40), parquet("main/train-*"))


@pytest.mark.parametrize(
    "names",
    [
        [f"{name[:-8]}-{n}a.parquet" for n, name in enumerate(PARTS)],
        ["train-1-of-2.parquet", "train-2-of-2.parquet"],
    ],
    ids=["hashes-of-their-content", "counted-from-one"],
)
def test_a_complete_set_is_read_whatever_its_parts_are_called(tmp_path: Path, names: list[str]) -> None:
    for n, name in enumerate(names):
        write_rows(tmp_path / name, [arc_row(n)])
    assert read_rows(Files(str(tmp_path)), parquet("train-*")) == [arc_row(n) for n in range(len(names))]


def test_a_gap_in_the_hubs_export_is_refused(tmp_path: Path) -> None:
    for number in (0, 2):
        write_rows(tmp_path / f"default/test/000{number}.parquet", [arc_row(number)])
    with pytest.raises(ValueError, match="number 1 is missing"):
        read_rows(Files(str(tmp_path)), parquet("default/test/*"))


def test_one_split_in_two_layouts_is_refused(tmp_path: Path) -> None:
    for path in ("main/test-00000-of-00001.parquet", "test.parquet"):
        write_rows(tmp_path / path, [arc_row(1)])
    with pytest.raises(
        ValueError, match=r"main/test-00000-of-00001\.parquet and test\.parquet, which are one"
    ):
        read_rows(Files(str(tmp_path)), OpenBookQA.test)


def test_a_missing_file_is_named_in_every_form_it_may_have(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"has no main/test-\*\.parquet or main/test\.parquet or test\.parquet; copy that"
    ):
        read_rows(Files(str(tmp_path)), OpenBookQA.test)


def test_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "test.parquet", [arc_row(n) for n in range(100)])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"test\.parquet is damaged or cut off .*; copy the file again"):
        read_rows(Files(str(tmp_path)), ArcEasy.test)


def test_a_csv_file_may_be_compressed_and_quoted(tmp_path: Path) -> None:
    (tmp_path / "toy.csv.bz2").write_bytes(bz2.compress(b'kind,text\na,"one,\n""two"" \xc3\xa9"\n'))
    files = DataFiles(("toy.csv.bz2",))
    assert read_rows(Files(str(tmp_path)), files) == [{"kind": "a", "text": 'one,\n"two" é'}]
    (tmp_path / "toy.csv.bz2").write_bytes(bz2.compress(b"kind,text\n" * 1000)[:-10])
    with pytest.raises(ValueError, match=r"toy\.csv\.bz2 is damaged or cut off"):
        read_rows(Files(str(tmp_path)), files)


ROWS = [
    {"id": "a", "text": 'one,\n"two" é', "label": 1},
    {"id": "b", "text": "NA", "label": 0},
    {"id": "007", "text": "", "label": 1},
]


def as_text(row: dict[str, Any]) -> dict[str, str]:
    return {name: str(cell) for name, cell in row.items()}


def written(folder: Path, name: str) -> Path:
    """ROWS in the format that the name says."""
    stem, compression = (
        (name.rsplit(".", 1)[0], name.rsplit(".", 1)[1]) if name.count(".") > 1 else (name, "")
    )
    suffix = stem.rsplit(".", 1)[1]
    if suffix == "arrow":
        table = pa.Table.from_pylist(ROWS)
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        return folder / name
    if suffix in ("csv", "tsv"):
        text = io.StringIO(newline="")
        writer = csv_writer(text, ["id", "text", "label"], delimiter="\t" if suffix == "tsv" else ",")
        writer.writeheader()
        writer.writerows(ROWS)
        content = text.getvalue()
    elif suffix == "json":
        content = json.dumps(ROWS, indent=1)
    else:
        content = "\n".join(json.dumps(row) for row in ROWS) + "\n\n"
    compress = {"": bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[compression]
    (folder / name).write_bytes(compress(("\ufeff" * (suffix != "jsonl") + content).encode()))
    return folder / name


NAMES = [
    "a.csv",
    "a.tsv.gz",
    "a.csv.xz",
    "a.json",
    "a.jsonl",
    "a.jsonl.bz2",
    "a.ndjson",
    "a.json.gz",
    "a.arrow",
]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_rows_in_every_format(tmp_path: Path, name: str) -> None:
    written(tmp_path, name)
    rows = read_rows(Files(str(tmp_path)), DataFiles((name,)))
    assert rows == ([as_text(row) for row in ROWS] if name[2:5] in ("csv", "tsv") else ROWS)
    unit, first = ("row", 0) if name in ("a.json", "a.json.gz", "a.arrow") else ("line", 1)
    lines = {"csv": [2, 4, 5], "tsv": [2, 4, 5]}.get(name[2:5], [first, first + 1, first + 2])
    assert [row.place for row in rows] == [f"{unit} {n} of {tmp_path / name}" for n in lines]
    assert pickle.loads(pickle.dumps(rows))[1].place == rows[1].place


def test_csv_and_jsonl_name_their_files(tmp_path: Path) -> None:
    written(tmp_path, "a.csv")
    written(tmp_path, "b.jsonl.gz")
    source = Files(str(tmp_path))
    assert (
        read_rows(source, csv("a.csv"))[2]["id"] == read_rows(source, jsonl("b.jsonl.gz"))[2]["id"] == "007"
    )
    assert data_fingerprint(source, csv("a.csv")) != data_fingerprint(source, jsonl("b.jsonl.gz"))
    (tmp_path / "b.jsonl.gz").rename(tmp_path / "B.JSONL.GZ")
    assert len(read_rows(source, jsonl("B.JSONL.GZ"))) == 3
    with pytest.raises(
        ValueError, match=r'csv\("a\.jsonl"\): must be \.csv or \.tsv; write csv\("train\.csv"\)'
    ):
        csv("a.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"id,text\n1,x\n2,y,z\n", "line 3 has 3 cells, the header 2"),
        ("a.csv", b'id,text\n1,"x\n2,y\n3,z\n', "line 4: unexpected end of data"),
        ("a.csv", b"id,id\n1,x\n", "has two columns of the name 'id'"),
        ("a.tsv", "id\ttext\n1\tcafé\n".encode("latin-1"), "is no text in UTF-8 .*; save it as UTF-8"),
        ("a.jsonl", b'{"id": 1}\n{"id": 2\n', "line 2 is no JSON object"),
        ("a.jsonl", b'{"id": 1}\n[2]\n', "line 2 is a JSON list, not an object"),
        ("a.jsonl", b'{"id": 1, "id": 2}\n', "has an object with a key twice: id, id"),
        ("a.json", b"[1, 2]", "row 0 is int, not an object"),
        ("a.json", b'{"data": [\n{"id": 1}]}', "line 1 is no JSON object"),
        ("a.jsonl.gz", gzip.compress(b'{"id": 1}\n' * 99, mtime=0)[:-9], "is damaged or cut off"),
        ("a.jsonl.xz", lzma.compress(b'{"id": 1}\n' * 99)[:-9], "is damaged or cut off"),
        ("a.csv.gz", b"id,text\n1,x\n", "is damaged or cut off"),
        ("a.arrow", b"ARROW1..", "is damaged or cut off"),
        (
            "a.parquet",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "is a pointer of Git LFS",
        ),
        ("a.xlsx", b"PK", r"lorae reads \.parquet, \.arrow, \.csv, \.tsv, \.json, \.jsonl, .*convert it"),
        ("a.parquet.gz", b"", r"format that is not read.*\.ndjson\) also as \.gz, \.bz2, \.xz"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        read_rows(Files(str(tmp_path)), DataFiles((name,)))
    assert name in str(raised.value)


def test_a_cell_may_be_a_long_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n1," + "x" * 200_000 + "\n")
    assert len(read_rows(Files(str(tmp_path)), csv("a.csv"))[0]["text"]) == 200_000


def test_text_files_of_the_hub_are_read_as_ours_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` would make a number of 007 and a null of NA."""
    written(tmp_path, "a.csv")
    asked: dict[str, Any] = {}

    def snapshot(name: str, **settings: Any) -> str:
        asked.update(settings, name=name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    rows = read_rows(Hub("my/colours", revision="0" * 40), csv("a.csv"))
    assert rows == [as_text(row) for row in ROWS]
    assert (asked["name"], asked["allow_patterns"], asked["repo_type"]) == (
        "my/colours",
        ["a.csv"],
        "dataset",
    )


def test_the_hub_path_reads_the_same_rows_as_the_local_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` reads a hub repository and a folder in hub layout alike, with or without its metadata."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    repository = tmp_path / "ai2_arc"
    write_rows(repository / "ARC-Easy/test-00000-of-00002.parquet", [arc_row(1), arc_row(2)])
    write_rows(repository / "ARC-Easy/test-00001-of-00002.parquet", [arc_row(3)])
    write_rows(repository / "ARC-Challenge/test-00000-of-00001.parquet", [arc_row(4)])
    features = datasets.Features(
        question=datasets.Value("string"),
        subject=datasets.Value("string"),
        choices=datasets.Sequence(datasets.Value("string")),
        answer=datasets.ClassLabel(names=["A", "B", "C", "D"]),
    )
    for part in ("dev", "validation"):
        folder = tmp_path / "mmlu" / "anatomy"
        folder.mkdir(parents=True, exist_ok=True)
        table = datasets.Dataset.from_list([mmlu_row("anatomy", len(part))], features=features)
        table.to_parquet(folder / f"{part}-00000-of-00001.parquet")
    for folder, files in ((repository, ArcEasy.test), (tmp_path / "mmlu", MMLU("anatomy").train)):
        rows = read_rows(Files(str(folder)), files)
        assert _hub_rows(Hub(str(folder), revision="0" * 40), files) == rows
        assert len(rows) == (3 if files is ArcEasy.test else 2)


def test_a_hub_without_the_file_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    with pytest.raises(
        ValueError, match=r"main/test-\*\.parquet of dataset .*no route to host.*hf download allenai/openbook"
    ):
        read_rows(Hub("allenai/openbookqa", revision="0" * 40), OpenBookQA.test)


def test_the_fingerprint_is_the_content_of_every_file_in_any_layout(tmp_path: Path) -> None:
    flat, hub = tmp_path / "flat", tmp_path / "hub"
    for part, rows in (("dev", [mmlu_row("anatomy", 1)]), ("validation", [mmlu_row("anatomy", 2)])):
        write_rows(flat / f"{part}.parquet", rows)
        write_rows(hub / f"anatomy/{part}-00000-of-00001.parquet", rows)
    files = MMLU("anatomy").train
    before = data_fingerprint(Files(str(flat)), files)
    assert before == data_fingerprint(Files(str(hub)), files)
    write_rows(flat / "validation.parquet", [mmlu_row("anatomy", 3)])
    assert before != data_fingerprint(Files(str(flat)), files)


def test_a_folder_of_images_is_a_dataset_and_its_names_are_part_of_it(tmp_path: Path) -> None:
    files = DataFiles(("train/*/*.png", "train/*/*.WAV"))
    for name in ("cat/1.png", "cat/2.png", "dog/3.png", "dog/4.WAV"):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name).write_bytes(name.encode())
    source = Files(str(tmp_path))
    rows = read_rows(source, files)
    assert [row["folder"] for row in rows] == ["cat", "cat", "dog", "dog"]
    assert [row["image"]["bytes"] for row in rows[:3]] == [b"cat/1.png", b"cat/2.png", b"dog/3.png"]
    assert rows[3]["audio"] == {"bytes": b"dog/4.WAV", "path": str(tmp_path / "train/dog/4.WAV")}
    before = data_fingerprint(source, files)
    (tmp_path / "train/cat/2.png").rename(tmp_path / "train/dog/2.png")  # the same bytes in the same order
    assert data_fingerprint(source, files) != before
    (tmp_path / "train/dog/2.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match=r"2\.png is a pointer of Git LFS"):
        read_rows(source, files)


def test_a_wheel_and_a_copy_of_its_file_have_one_fingerprint(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "copy" / "toy.parquet", [arc_row(1)])
    wheel = Wheel("toy", "1.0", "toy/toy.parquet", sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    files = DataFiles(("toy.parquet",))
    assert data_fingerprint(wheel, files) == data_fingerprint(Files(str(path.parent)), files)
