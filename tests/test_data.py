"""Rows of a dataset: the same from the hub, from a copy of it in any layout, and known by content."""

from __future__ import annotations

import bz2
import hashlib
from pathlib import Path
from typing import Any

import pytest
from toys import write_rows

from lorae.sources import Files, Hub, Wheel
from lorae.tasks import MMLU, ArcEasy, OpenBookQA
from lorae.tasks.data import DataFiles, _hub_rows, data_fingerprint, local_copy, parquet, read_rows

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


def test_a_wheel_and_a_copy_of_its_file_have_one_fingerprint(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "copy" / "toy.parquet", [arc_row(1)])
    wheel = Wheel("toy", "1.0", "toy/toy.parquet", sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    files = DataFiles(("toy.parquet",))
    assert data_fingerprint(wheel, files) == data_fingerprint(Files(str(path.parent)), files)
