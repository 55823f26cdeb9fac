"""Large datasets of images: their bytes are never all in memory, and nothing else about them differs."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from media import Shades, image_rows, png
from stacks import largest_difference
from toys import write_rows, write_split

from lorae.backbone.loading import Backbone, load_backbone
from lorae.cache import cache_dir
from lorae.engine.run import run_stack
from lorae.engine.training import TrainingData, train_stack
from lorae.media import Audio, Image, Part
from lorae.planning.estimate import Devices
from lorae.planning.memory import Texts, stack_memory
from lorae.planning.plan import make_plan
from lorae.results import trials_table
from lorae.sources import Files, backbone_config
from lorae.store.store import Store
from lorae.tasks import media_files
from lorae.tasks.base import Example, media_example
from lorae.tasks.data import DataFiles, read_rows
from lorae.tasks.encoding import encode
from lorae.tasks.scoring import Head
from lorae.trial import Budget, Sweep, Trial

pytestmark = pytest.mark.usefixtures("lorae_cache")

MEGABYTE = 2**20
PROBE = """
import re, sys
from media import Shades
from pathlib import Path
from lorae.tasks import media_files
import pyarrow.parquet  # loaded before memory is measured

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

media_files.HELD_BYTES = int(sys.argv[2])
Shades().located(Path(sys.argv[1]) / "small").splits()
before = peak()
splits = Shades().located(Path(sys.argv[1]) / "large").splits()
images = sum(len(bytes(e.media.data)) for examples in splits.values() for e in examples)
print(peak() - before, images)
"""


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A split of 96 MB in 48 row groups of a Parquet file, and a small one."""
    rng = np.random.default_rng(0)
    file = tmp_path / "large/shades/data/train-00000-of-00001.parquet"
    file.parent.mkdir(parents=True)
    kinds = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({"id": pa.string(), "image": kinds, "label": pa.int64()})
    with pq.ParquetWriter(file, schema) as writer:
        for group in range(48):
            rows = [
                {"id": f"{group}-{n}", "image": {"bytes": rng.bytes(MEGABYTE // 16)}, "label": n % 3}
                for n in range(32)
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema))
    for folder in ("large", "small"):
        write_split(tmp_path / folder / "shades", "test", image_rows("test", 6, 1))
    write_split(tmp_path / "small/shades", "train", image_rows("train", 30, 0))
    return tmp_path


def grown(root: Path, held: int) -> int:
    """Bytes by which the peak of a process grows that reads the large split and every image, one by one."""
    support = Path(__file__).parents[1] / "support"
    path = os.pathsep.join(map(str, (support.parents[1], support)))
    command = [sys.executable, "-c", PROBE, str(root), str(held)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    found, images = map(int, done.stdout.split())
    assert images > 96 * MEGABYTE
    return found


@pytest.mark.process
def test_a_large_split_is_read_in_memory_of_a_few_row_groups_and_a_small_one_is_held(large: Path) -> None:
    assert grown(large, held=MEGABYTE) < 60 * MEGABYTE, "written to the cache"
    assert grown(large, held=MEGABYTE) < 60 * MEGABYTE, "found there"
    assert grown(large, held=200 * MEGABYTE) > 96 * MEGABYTE, "what the bound is against"


@pytest.fixture
def lean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_files, "HELD_BYTES", 0)


def as_arrow(path: Path, rows: list[dict[str, Any]], form: str) -> None:
    table = pa.Table.from_pylist(rows)
    make = pa.ipc.new_file if form == "file" else pa.ipc.new_stream
    with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=50)


@pytest.mark.parametrize("form", ["parquet", "stream", "file"])
def test_rows_are_the_same_but_for_where_their_bytes_are(tmp_path: Path, lean: None, form: str) -> None:
    """More rows than are read at once, null cells, a plain column of bytes, and text."""
    rows = [
        {
            "image": {"bytes": png(np.full((2, 2, 3), n, np.uint8)), "path": f"{n}.png"} if n % 7 else None,
            "raw": bytes([n]) * n,
            "text": f"row {n}",
            "label": n,
        }
        for n in range(100)
    ]
    name = "rows.parquet" if form == "parquet" else "rows.arrow"
    write_rows(tmp_path / name, rows) if form == "parquet" else as_arrow(tmp_path / name, rows, form)
    read = read_rows(Files(str(tmp_path)), DataFiles((name,)))
    for number, (row, found) in enumerate(zip(rows, read, strict=True)):
        assert found.number == number and found["label"] == number and found["text"] == row["text"]
        assert isinstance(found["raw"], Part) and bytes(found["raw"]) == row["raw"]
        if row["image"] is None:
            assert found["image"] is None
        else:
            assert found["image"]["path"] == row["image"]["path"]
            assert bytes(Image.of(found["image"]).data) == row["image"]["bytes"]
            assert Image.of(found["image"]).digest == Image.of(row["image"]).digest
    assert Audio.of(read[1]["raw"]).data == read[1]["raw"]


def test_the_copy_is_made_once_and_a_damaged_one_is_named(media_root: Path, lean: None) -> None:
    task = Shades(val_frac=0.3).located(media_root)
    splits = task.splits()
    copies = [path for path in (cache_dir() / "media").iterdir() if not path.name.startswith(".")]
    assert len(copies) == 2, "of train and of test, no scratch file"
    made = {path: path.stat().st_mtime_ns for path in copies}
    again = replace(task, val_frac=0.31).splits()
    assert {path: path.stat().st_mtime_ns for path in copies} == made
    ids = [{e.id for e in s["train"]} | {e.id for e in s["validation"]} for s in (splits, again)]
    assert ids[0] == ids[1]
    image = splits["train"][0].media
    assert isinstance(image, Image) and isinstance(image.data, Part)
    Path(image.data.file).write_bytes(b"")
    with pytest.raises(ValueError, match="is cut off; it is a copy in the cache: delete it"):
        image.pixels()
    Path(image.data.file).unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        image.pixels()


def test_a_member_is_the_one_whose_images_were_held(encoder_trial, monkeypatch) -> None:
    trial = encoder_trial("vit")
    runs = {}
    for held in (2**30, 0):
        monkeypatch.setattr(media_files, "HELD_BYTES", held)
        other = replace(trial, task=replace(trial.task, val_frac=0.26 + held / 2**40))  # no other test's
        backbone, data = encoded(other)
        assert isinstance(data.train[0].media.data, Part) == (held == 0)
        backbone.tokenizer.cache.clear()
        runs[held] = train_stack(backbone, other, [0], data)[0]
    assert largest_difference(*runs.values()) == 0


def encoded(trial: Trial) -> tuple[Backbone, TrainingData]:
    backbone = load_backbone(trial.backbone, "fp32", "cpu")
    splits = (trial.task.examples("train"), trial.task.examples("validation"))
    return backbone, TrainingData(*(encode(backbone.tokenizer, trial.task, s, 512) for s in splits))


# As many classes as iNaturalist 2017 has

SPECIES = tuple(f"species {n}" for n in range(5089))


@dataclass(frozen=True, kw_only=True)
class Species(Shades):
    """Images of 5,089 classes."""

    def rows(self, split: Any) -> list[dict[str, Any]]:
        return [row | {"label": 211 * n % 5089} for n, row in enumerate(super().rows(split))]

    def example(self, row: dict[str, Any]) -> Example:
        return media_example(Image.of(row["image"]), SPECIES, row["label"])


def test_five_thousand_classes_are_planned_trained_and_scored(encoder_trial, media_root, tmp_path) -> None:
    task = Species(scoring=Head(), val_frac=0.25).located(media_root)
    trial = encoder_trial("vit", task=task, members=2, budget=Budget(batch_size=4, steps=3))
    sweep, store = Sweep(base=trial), Store(str(tmp_path))
    plan = make_plan(sweep, store, Devices("cpu", 1, 1))
    few = make_plan(Sweep(base=encoder_trial("vit", members=2)), store, Devices("cpu", 1, 1))
    heads = 2 * 4 * 4 * 33 * (5089 - 3)  # members, fp32, with gradient and moments; width and bias
    more = plan.estimates[0].memory_bytes - few.estimates[0].memory_bytes
    assert more >= heads
    config = backbone_config(trial.backbone)
    whole, none = (stack_memory(trial, config, 2, 4, Texts(17, 0, 5089, 5089, None, n)) for n in (95_986, 0))
    logits = 2 * 95_986 * 5089 * 4  # of its validation set
    assert whole.total - none.total == pytest.approx(logits, rel=0.05)
    for stack in plan.stacks:
        assert run_stack(stack, str(tmp_path)).failed == {}
    (row,) = trials_table(store, "species", [(trial, [])], {}).to_pylist()
    assert row["status"] == "done" and row["ensemble_nll"] == pytest.approx(np.log(5089), rel=0.2)
