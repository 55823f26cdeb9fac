"""Images and audio: content is decoded as datasets' users do it, tasks of them are split without leaks."""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageOps
from toys import Colours, write_rows

from lorae import media
from lorae.backbone import mnist_vit
from lorae.media import Audio, Image
from lorae.sources import Files, Hub, MnistVit, resolve
from lorae.tasks import (
    CIFAR10,
    CIFAR100,
    ESC50,
    HAM10000,
    RESISC45,
    SST2,
    SVHN,
    Digits,
    Flowers102,
    Food101,
    Head,
    LabelWords,
    Letters,
    LfwPatches,
    Mnist,
    OpenBookQA,
    PlotSummaries,
    RottenTomatoes,
    Task,
    Textures,
    TinyImageNet,
    cifar,
    esc50,
    food101,
    ham10000,
    resisc45,
)
from lorae.tasks.base import Example, media_example
from lorae.tasks.data import _hub_rows, parquet, read_rows
from lorae.tasks.openood import DISTANCES
from lorae.trial import Budget, Sweep, Trial

pytestmark = pytest.mark.usefixtures("lorae_cache")


def picture(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(image: Pillow.Image, form: str = "PNG", **settings: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **settings)
    return stream.getvalue()


def png(seed: int = 0, size: int = 8) -> bytes:
    return encoded(Pillow.fromarray(picture(seed, size, size, 3)))


def tone(rate: int, seconds: float = 0.5, hertz: float = 440) -> np.ndarray:
    return (0.8 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype("f4")


def sound(samples: np.ndarray, rate: int, form: str = "WAV", **settings: Any) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=form, **settings)
    return stream.getvalue()


# Images


def test_a_png_is_its_pixels() -> None:
    pixels = picture(0, 5, 7, 3)
    decoded = Image(encoded(Pillow.fromarray(pixels))).pixels()
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, pixels)


def test_grey_palette_and_opaque_images_become_rgb() -> None:
    grey = picture(0, 4, 6)
    rgb = np.stack([grey] * 3, axis=2)
    opaque = np.dstack([rgb, np.full_like(grey, 255)])
    colours = picture(1, 4, 6, 3) // 255 * 255  # eight colours, which a palette holds exactly
    for image, expected in [
        (Pillow.fromarray(grey), rgb),
        (Pillow.fromarray(opaque), rgb),
        (Pillow.fromarray(colours).quantize(8), colours),
        (Pillow.fromarray(grey > 127), np.where(rgb > 127, 255, 0)),
    ]:
        np.testing.assert_array_equal(Image(encoded(image)).pixels(), expected)
    np.testing.assert_array_equal(Image.raw(grey).pixels(), rgb)
    np.testing.assert_array_equal(Image.raw(rgb).pixels(), rgb)


def test_the_rotation_of_a_camera_is_undone() -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6  # the top of the scene is at the right
    pixels = picture(0, 4, 6, 3)
    rotated = Image(encoded(Pillow.fromarray(pixels), exif=exif)).pixels()
    np.testing.assert_array_equal(rotated, np.rot90(pixels, -1))


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """An EXIF block of entries (tag, type, count, four bytes)."""
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4)


TURNED, SHORT, ASCII, RATIONAL = (0x0112, 3, 1, b"\6\0\0\0"), 3, 2, 5


@pytest.mark.parametrize(
    "odd",
    [
        (0x011A, ASCII, 2, b"x\0\0\0"),  # a string for the resolution
        (0x011A, RATIONAL, 1, struct.pack("<I", 9999)),  # a number beyond the block
        (0x0213, ASCII, 4, b"one\0"),
        (0x8769, SHORT, 1, b"\7\0\0\0"),  # a second block that is none
        (0x9286, 99, 1, bytes(4)),  # a type that does not exist
    ],
)
def test_an_odd_tag_does_not_hide_the_orientation(odd: tuple[int, int, int, bytes]) -> None:
    pixels = picture(0, 4, 6, 3)
    for form in ("PNG", "JPEG"):
        plain = encoded(Pillow.fromarray(pixels), form)
        upright = Image(encoded(Pillow.fromarray(pixels), form, exif=exif(TURNED, odd))).pixels()
        np.testing.assert_array_equal(upright, np.rot90(Image(plain).pixels(), -1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_orientation_is_undone_as_pillow_does(orientation: int) -> None:
    block = {"exif": exif((0x0112, SHORT, 1, struct.pack("<I", orientation)))}
    image = Pillow.fromarray(picture(0, 4, 6, 3))
    ours = Image(encoded(image, **block)).pixels()
    theirs = ImageOps.exif_transpose(Pillow.open(io.BytesIO(encoded(image, **block))))
    np.testing.assert_array_equal(ours, np.array(theirs))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (exif((0x0112, ASCII, 4, b"top\0")), "EXIF orientation is 'top', not 1 to 8; .*save it without EXIF"),
        (exif((0x0112, 7, 4, b"\6\0\0\0")), r"EXIF orientation is b'\\x06"),
        (b"Exif\0\0nothing of the kind", "EXIF cannot be read .*which side is up is not known"),
    ],
)
def test_an_image_that_does_not_say_which_side_is_up_is_refused(block: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Image(encoded(Pillow.fromarray(picture(0, 4, 6, 3)), exif=block)).pixels()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"the image \(0 bytes\) is no intact PNG or JPEG"),
        (b"GIF89a" + bytes(40), "is no intact PNG or JPEG"),
        (png()[:90], "is no intact PNG or JPEG .*truncated"),
        (encoded(Pillow.new("CMYK", (4, 4)), "JPEG"), r"has 4 channels \(CMYK\); must be 8-bit grey, pal"),
        (encoded(Pillow.fromarray(picture(0, 4, 4).astype("u2"))), r"1 channels \(I;16\); must be 8-bit"),
        (encoded(Pillow.new("RGBA", (4, 4), (9, 9, 9, 254))), r"has transparent pixels \(RGBA\)"),
        (encoded(Pillow.new("RGB", (4, 4)), "TIFF"), "is no intact PNG or JPEG"),
    ],
    ids=["empty", "gif", "truncated", "cmyk", "16 bits", "transparent", "tiff"],
)
def test_what_is_no_picture_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Image(data).pixels()


def test_a_decompression_bomb_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "MAX_PIXELS", 63)
    with pytest.raises(ValueError, match="8 x 8 pixels; at most 63 are decoded"):
        Image(png(size=8)).pixels()
    bomb = bytearray(png(size=8))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2  # width and height; the checksum is not looked at before
    with pytest.raises(ValueError, match=r"is no intact PNG|at most 63 are decoded"):
        Image(bytes(bomb)).pixels()


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (picture(0, 4, 4, 5), r"shape \(4, 4, 5\); must be \(H, W\) or \(H, W, 3\)"),
        (picture(0, 4), r"shape \(4,\); must be"),
        (picture(0, 0, 4), r"shape \(0, 4\); must be"),
        (np.zeros((4, 4)), "an image of float64; must be uint8"),
    ],
)
def test_raw_images_of_another_form_are_refused(pixels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Image.raw(pixels)


GOOD = (png(), encoded(Pillow.fromarray(picture(0, 8, 8, 3)), "JPEG"), sound(tone(8000, 0.01), 8000, "FLAC"))


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(GOOD), st.binary(max_size=8), st.integers(0, 400))
def test_damaged_files_raise_value_errors_only(good: bytes, noise: bytes, place: int) -> None:
    damaged = good[:place] + noise + good[place + len(noise) :]
    content = Audio(damaged, resample=True) if good is GOOD[2] else Image(damaged)
    try:
        decoded = content.waveform(16_000) if isinstance(content, Audio) else content.pixels()
    except ValueError:
        return
    assert decoded.size > 0


def test_equal_content_has_equal_digests() -> None:
    images = [Image(png(0)), Image(png(1)), Image.raw(picture(0, 2, 8)), Image.raw(picture(0, 4, 4))]
    assert images[2].data == images[3].data
    assert len({i.digest for i in images}) == 4
    assert Image(png(0)) == images[0] and Image(png(0)).digest == images[0].digest
    samples = tone(8000)
    assert Audio.raw(samples, 8000).digest != Audio.raw(samples, 16000).digest


# Audio


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG"])
def test_audio_is_mono_floats(form: str) -> None:
    left, right = tone(16000), tone(16000, hertz=880)
    samples = Audio(sound(np.stack([left, right], axis=1), 16000, form)).waveform(16000)
    assert samples.dtype == np.float32 and samples.shape == (8000,)
    tolerance = 0.05 if form == "OGG" else 1e-4
    np.testing.assert_allclose(samples, (left + right) / 2, atol=tolerance)


@pytest.mark.parametrize(("rate", "wanted"), [(44_100, 16_000), (8_000, 16_000)])
def test_resampling_keeps_the_tone(rate: int, wanted: int) -> None:
    samples = Audio(sound(tone(rate), rate), resample=True).waveform(wanted)
    assert samples.shape == (wanted // 2,)
    inner = slice(wanted // 50, -wanted // 50)  # the filter has no past at the ends
    np.testing.assert_allclose(samples[inner], tone(wanted)[inner], atol=5e-3)


def test_resampling_down_removes_what_the_rate_cannot_hold() -> None:
    samples = Audio(sound(tone(44_100, hertz=12_000), 44_100), resample=True).waveform(16_000)
    assert np.abs(samples[800:-800]).max() < 0.01, "it would be heard as 4,000 Hz"


def test_another_rate_is_refused_unless_resampling_is_asked_for() -> None:
    with pytest.raises(ValueError, match="has 44100 samples per second, the backbone takes 16000; resample"):
        Audio(sound(tone(44_100), 44_100)).waveform(16_000)


def test_loud_samples_are_clipped() -> None:
    loud = Audio.raw(np.array([0.5, 2.0, -3.0]), 16_000).waveform(16_000)
    np.testing.assert_array_equal(loud, np.array([0.5, 1, -1], np.float32))


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (Audio(b""), r"the audio \(0 bytes\) is no intact WAV, FLAC or OGG"),
        (Audio(png()), "is no intact WAV, FLAC or OGG"),
        (Audio(sound(tone(8000), 8000)[:-9]), "is cut off: 8,035 of 8,044 bytes"),
        (Audio(sound(tone(8000), 8000, "FLAC")[:-100]), "is no intact WAV"),
        (Audio(sound(np.zeros(0), 8000)), "has no samples"),
        (Audio(sound(np.array([0, np.nan]), 8000, subtype="FLOAT")), "samples that are no numbers"),
    ],
    ids=["empty", "png", "wav cut off", "flac cut off", "no samples", "nan"],
)
def test_what_is_no_audio_is_refused(audio: Audio, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        audio.waveform(8000)


def test_a_long_or_strangely_fast_recording_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    strange = bytearray(sound(tone(8000), 8000))
    strange[24:28] = (1).to_bytes(4, "little")  # one sample per second: upsampled it would fill the memory
    with pytest.raises(ValueError, match="4,000 samples at 1 per second cannot be resampled to 16000"):
        Audio(bytes(strange), resample=True).waveform(16_000)
    monkeypatch.setattr(media, "MAX_SAMPLES", 3_999)
    with pytest.raises(ValueError, match="4,000 samples of 1 channels; at most 3,999 are decoded"):
        Audio(sound(tone(8000), 8000)).waveform(8000)


@pytest.mark.parametrize("samples", [np.zeros((3, 2)), np.zeros(3, np.int16)])
def test_raw_audio_of_another_form_is_refused(samples: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"must be \(n,\) of floats in \[-1, 1\]"):
        Audio.raw(samples, 8000)


@pytest.mark.parametrize("cell", [None, {"bytes": None, "path": "a.png"}, {"path": "a.png"}, "a.png"])
def test_a_cell_without_bytes_is_refused(cell: Any) -> None:
    with pytest.raises(ValueError, match="the image column has no bytes"):
        Image.of(cell)


# The tasks, on copies in the layout of the hub


def cell(data: bytes) -> dict[str, Any]:
    return {"bytes": data, "path": None}


def image_rows(column: str, label: str, count: int, seed: int = 0, classes: int = 10) -> list[dict[str, Any]]:
    return [{column: cell(png(seed + n)), label: n % classes} for n in range(count)]


@pytest.mark.parametrize(
    ("task", "folder", "column", "label", "name"),
    [
        (CIFAR10(), "uoft-cs/cifar10/plain_text", "img", "label", "airplane automobile bird"),
        (CIFAR100(), "uoft-cs/cifar100/cifar100", "img", "fine_label", "apple aquarium_fish baby"),
        (SVHN(), "ufldl-stanford/svhn/cropped_digits", "image", "label", "0 1 2"),
        (Flowers102(), "dpdl-benchmark/oxford_flowers102/data", "image", "label", "pink primrose"),
        (Food101(), "ethz/food101/data", "image", "label", "apple_pie baby_back_ribs"),
        (RESISC45(), "timm/resisc45/data", "image", "label", "airplane airport"),
    ],
    ids=lambda v: getattr(v, "name", ""),
)
def test_rows_of_image_datasets(
    tmp_path: Path, task: Task, folder: str, column: str, label: str, name: str
) -> None:
    food = task.name == "food101"  # its test set is the hub's validation split
    for seed, split in ((0, "train"), (100, "validation" if food else "test"), (200, "validation")):
        if food and seed == 200:
            continue
        rows = image_rows(column, label, 30, seed)
        write_rows(tmp_path / folder / f"{split}-00000-of-00001.parquet", rows)
    splits = task.located(tmp_path).splits()
    count = 60 if task.name in ("flowers102", "resisc45") else 30
    assert len(splits["train"]) + len(splits["validation"]) == count
    first = splits["test"][0]
    assert isinstance(first.media, Image)
    np.testing.assert_array_equal(first.media.pixels(), picture(100, 8, 8, 3))
    assert [e.label for e in splits["test"]] == [n % 10 for n in range(30)]
    assert " ".join(first.options).startswith(name)
    assert first.question == "" and first.id.startswith("sha-")
    assert task.scoring == Head() and task.modality == "image" and task.prompt_template() == ""


@pytest.mark.parametrize(
    ("names", "count"), [(cifar.CIFAR100_CLASSES, 100), (food101.CLASSES, 101), (resisc45.CLASSES, 45)]
)
def test_classes_are_as_many_as_published_in_alphabetical_order(names: tuple[str, ...], count: int) -> None:
    letters = ["".join(filter(str.isalpha, name)) for name in names]
    assert len(names) == count == len(set(names)) and letters == sorted(letters)


@pytest.mark.parametrize(
    ("task", "folder"),
    [(TinyImageNet(), "zh-plus/tiny-imagenet/data/valid"), (Textures(), "tanganke/dtd/data/test")],
    ids=lambda v: getattr(v, "name", ""),
)
def test_rows_of_ood_sets_of_cifar(tmp_path: Path, task: Task, folder: str) -> None:
    write_rows(tmp_path / f"{folder}-00000-of-00001.parquet", image_rows("image", "label", 30, 100))
    examples = task.located(tmp_path).examples("test")
    assert isinstance(examples[0].media, Image) and len(examples) == 30
    np.testing.assert_array_equal(examples[0].media.pixels(), picture(100, 8, 8, 3))
    assert {e.label for e in examples} == {None}
    assert {of[task.name] for of in DISTANCES.values()} == {"near" if "imagenet" in task.name else "far"}


def test_an_image_that_is_in_train_and_test_stays_in_test_only(tmp_path: Path) -> None:
    write_rows(tmp_path / "cifar10/train.parquet", image_rows("img", "label", 40))
    write_rows(tmp_path / "cifar10/test.parquet", image_rows("img", "label", 20, seed=30))
    splits = CIFAR10().located(tmp_path).splits()
    assert len(splits["test"]) == 20
    assert len(splits["train"]) + len(splits["validation"]) == 30
    assert not {e.id for e in splits["train"]} & {e.id for e in splits["test"]}


@pytest.fixture
def lesions(tmp_path: Path) -> Path:
    """A data root with 200 images of 100 lesions; a third of the images are in two of the hub's splits."""
    rows = [
        {
            "image": cell(png(n)),
            "image_id": f"ISIC_{n}",
            "lesion_id": f"HAM_{n // 2}",
            "dx": ham10000.CLASSES[n // 2 % 7],
        }
        for n in range(200)
    ]
    for split, part in {"train": rows[:150], "validation": rows[100:], "test": rows[::4]}.items():
        write_rows(tmp_path / f"root/ham10000/{split}.parquet", part)
    return tmp_path / "root"


def test_no_lesion_is_in_two_splits_of_ham10000(lesions: Path) -> None:
    splits = HAM10000().located(lesions).splits()
    groups = [{e.group for e in examples} for examples in splits.values()]
    assert sum(len(examples) for examples in splits.values()) == 200
    assert sum(map(len, groups)) == len(set.union(*groups)) == 100
    assert 8 <= len(groups[2]) <= 35
    example = splits["test"][0]
    number = int(example.id.removeprefix("ISIC_"))
    assert example.options[example.label or 0] == ham10000.CLASSES[number // 2 % 7]
    assert isinstance(example.media, Image) and example.media.data == png(number)


def test_an_unknown_diagnosis_is_named(tmp_path: Path) -> None:
    row = {"image": cell(png()), "image_id": "i", "lesion_id": "HAM_0", "dx": "mel"}
    for split in ("train", "validation", "test"):
        write_rows(tmp_path / f"ham10000/{split}.parquet", [row])
    with pytest.raises(ValueError, match=r"ham10000 \w+ row 0 cannot be read .*dx 'mel' is none of actinic"):
        HAM10000().located(tmp_path).splits()


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """A data root with 100 clips of 50 recordings in five folds, two clips of each class."""
    rows = []
    for n in range(100):
        source, target = n // 2, n // 2
        rows.append(
            {
                "filename": f"{source % 5 + 1}-{source}-{'AB'[n % 2]}-{target}.wav",
                "fold": source % 5 + 1,
                "target": target,
                "category": esc50.CLASSES[target],
                "src_file": source,
                "audio": cell(sound(tone(44_100, 0.02, 100 + n), 44_100)),
            }
        )
    write_rows(tmp_path / "root/esc50/train.parquet", rows)
    return tmp_path / "root"


def test_the_folds_of_esc50_are_disjoint_and_complete(recordings: Path) -> None:
    tested = []
    for fold in range(1, 6):
        splits = ESC50(fold, val_frac=0.3).located(recordings).splits()
        assert {e.id[0] for e in splits["test"]} == {str(fold)}
        assert sum(len(examples) for examples in splits.values()) == 100
        groups = [{e.group for e in examples} for examples in splits.values()]
        assert sum(map(len, groups)) == len(set.union(*groups)) == 50, "a recording is in one split"
        tested += [e.id for e in splits["test"]]
    assert len(tested) == len(set(tested)) == 100


def test_an_esc50_clip_is_resampled_and_has_its_class(recordings: Path) -> None:
    task = ESC50(3).located(recordings)
    clip = task.examples("test")[0]
    assert (clip.id, clip.label, clip.options[2]) == ("3-2-A-2.wav", 2, "pig")
    assert isinstance(clip.media, Audio) and clip.media.waveform(16_000).shape == (320,)
    names = {fold: ESC50(fold).located(recordings).eval_set("test") for fold in (1, 2)}
    assert names[1] != names[2] and names[1].startswith("esc50-fold1__test__")
    with pytest.raises(ValueError, match=r"fold=6: must be 1 to 5; write ESC50\(1\)"):
        ESC50(6)


def test_a_target_that_is_not_the_category_is_refused(recordings: Path) -> None:
    table = pq.read_table(recordings / "esc50/train.parquet").to_pylist()
    write_rows(recordings / "esc50/train.parquet", [table[0] | {"category": "rooster"}])
    with pytest.raises(ValueError, match="target 0 is 'dog', but the category is 'rooster'"):
        ESC50(1).located(recordings).examples("test")


def test_sst2_is_read_by_heads_and_language_models(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        rows = [{"idx": n, "sentence": f"{split} {n} . ", "label": n % 2} for n in range(40)]
        write_rows(tmp_path / f"stanfordnlp/sst2/data/{split}-00000-of-00001.parquet", rows)
    task = SST2().located(tmp_path)
    example = task.examples("test")[1]
    assert (example.question, example.options[example.label or 0]) == ("validation 1 .", "positive")
    assert task.prompt(example).text == "Movie review: validation 1 .\nSentiment:"
    head = replace(task, scoring=Head(pool="mean"))
    prompt = head.prompt(example)
    assert (prompt.text, prompt.answers) == ("validation 1 .", ("negative", "positive"))
    assert head.eval_set("test") != replace(head, scoring=Head()).eval_set("test") != task.eval_set("test")


# Columns of images are read as they are, not decoded


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_the_hubs_media_columns_keep_their_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    import datasets

    data = b"no file of any format"
    column = datasets.Image() if kind == "image" else datasets.Audio()
    schema = datasets.Features({kind: column, "label": datasets.Value("int64")}).arrow_schema
    folder = tmp_path / "copy"
    folder.mkdir()
    table = pa.Table.from_pylist([{kind: cell(data), "label": 1}], schema)  # declared as in hub datasets
    pq.write_table(table, folder / "test-00000-of-00001.parquet")
    files = parquet("test-*")
    load = functools.partial(datasets.load_dataset, cache_dir=str(tmp_path / "hf"))
    monkeypatch.setattr(datasets, "load_dataset", load)
    (from_hub,) = _hub_rows(Hub(str(folder), revision="0" * 40), files)
    (from_copy,) = read_rows(Files(str(folder)), files)
    assert from_hub == from_copy == {kind: cell(data), "label": 1}


# Heads


@dataclass(frozen=True, kw_only=True)
class Pictures(Task):
    """Images of as many classes as asked for."""

    classes: int = 100
    scoring: Any = Head()

    name = "pictures"
    modality = "image"
    home = Hub("toy/pictures")
    train = parquet("data/train-*")
    test = parquet("data/test-*")

    def rows(self, split: Any) -> list[dict[str, Any]]:
        return [{"image": picture(n + 1000 * (split == "test"), 2, 2, 3), "label": n} for n in range(120)]

    def example(self, row: dict[str, Any]) -> Example:
        classes = tuple(f"class {c}" for c in range(self.classes))
        return media_example(Image.raw(row["image"]), classes, row["label"] % self.classes)


def test_a_head_may_have_many_thousand_classes() -> None:
    source = Files("/nowhere")
    assert len(Pictures(source=source).splits()["test"][0].options) == 100
    assert Pictures(source=source, classes=30_000).examples("test")[-1].label == 119
    with pytest.raises(ValueError, match="30001 options; must be 2 to 30000"):
        Pictures(source=source, classes=30_001).examples("test")


@pytest.mark.parametrize("scoring", [Letters(), LabelWords()])
def test_media_are_scored_by_a_head_only(scoring: Any) -> None:
    with pytest.raises(ValueError, match=r"pictures has image examples, .* write scoring=Head\(\)"):
        Pictures(scoring=scoring)
    with pytest.raises(ValueError, match="option_seed=1: the classes of a head have one order"):
        Pictures(option_seed=1)
    with pytest.raises(ValueError, match=r"pool='max': must be \"cls\" or \"mean\""):
        Head("max")  # type: ignore[arg-type]
    assert (Head().label, Head("mean").label) == ("head", "head-mean")


def test_media_must_be_what_the_task_says() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Sounds(Pictures):
        modality = "audio"

    with pytest.raises(ValueError, match="its media is Image, the task's modality 'audio'"):
        Sounds(source=Files("/nowhere")).examples("test")


def test_the_examples_of_a_head_have_the_same_classes(tmp_path: Path) -> None:
    rows = [
        {"id": f"q{n}", "question_stem": f"{n}?", "choices": {"text": [f"{n}a", "b"], "label": ["A", "B"]}}
        for n in range(3)
    ]
    write_rows(tmp_path / "openbookqa/test.parquet", [row | {"answerKey": "A"} for row in rows])
    task = OpenBookQA().located(tmp_path)
    assert len(task.examples("test")) == 3
    with pytest.raises(ValueError, match=r"row 1 \(q1\): its 2 classes \('1a', 'b'\) .*the same classes"):
        replace(task, scoring=Head()).examples("test")


def test_ood_tasks_have_the_modality_of_the_trained_task() -> None:
    budget = Budget(batch_size=4, epochs=1)
    base = Trial(backbone=Files("/nowhere"), task=Colours(scoring=Head()), budget=budget)
    with pytest.raises(ValueError, match="OOD task pictures has image examples, colours has text"):
        Sweep(base=base, axes={}, ood=(Pictures(),)).eval_tasks(base)
    (ood,) = Sweep(base=base, axes={}, ood=(PlotSummaries(),)).eval_tasks(base)
    assert ood.scoring == Head(), "without a template any text will do"


# The digits


@pytest.fixture
def digits(tmp_path: Path) -> Callable[[], Mnist]:
    """A local copy of MNIST's file with 60 digits: a bright square, at a place of its own for each digit."""
    rng = np.random.default_rng(0)
    table = np.zeros((60, 785), np.int64)
    for n, row in enumerate(table):
        image = rng.integers(0, 50, (28, 28))
        image[2 * (n % 10) : 2 * (n % 10) + 8, 4:12] = 255
        row[:-1], row[-1] = image.ravel(), n % 10
    (tmp_path / "mnist").mkdir()
    np.savetxt(tmp_path / "mnist/mnist_5k.csv.gz", table, fmt="%d", delimiter=",")
    return lambda: Mnist(val_frac=0.3).located(tmp_path)


def test_digits_are_grey_images_in_disjoint_splits(digits: Callable[[], Mnist], tmp_path: Path) -> None:
    splits = digits().splits()
    ids = [{e.id for e in examples} for examples in splits.values()]
    assert sum(map(len, ids)) == len(set.union(*ids)) == 60
    example = splits["test"][0]
    assert isinstance(example.media, Image) and example.media.pixels()[2 * (example.label or 0), 4, 0] == 255
    broken = tmp_path / "mnist/mnist_5k.csv.gz"
    broken.write_bytes(broken.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"mnist_5k.csv.gz is damaged or cut off"):
        digits().examples("test") and Mnist(val_frac=0.2).located(tmp_path).examples("test")


def test_the_vit_is_made_once_and_is_its_content(
    digits: Callable[[], Mnist], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mnist_vit, "Mnist", digits)
    monkeypatch.setattr(mnist_vit, "EPOCHS", 1)
    monkeypatch.setattr(mnist_vit, "BATCH", 8)
    resolve.cache_clear()
    made = resolve(MnistVit())
    assert isinstance(made, Files) and made.label.startswith("mnist-vit")
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} == {
        p.name for p in Path(made.path).iterdir()
    }
    assert MnistVit().fingerprint() == made.fingerprint()
    weights = (Path(made.path) / "model.safetensors").read_bytes()
    mnist_vit.pretrain(tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == weights, "the recipe is deterministic"
    monkeypatch.setattr(mnist_vit, "pretrain", None)
    resolve.cache_clear()
    assert resolve(MnistVit()) == made, "it is not made again"
    resolve.cache_clear()


def test_the_real_digits_have_the_counts_of_the_docstrings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the user's own cache
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "15")
    try:
        found = [t.located().splits() for t in (Mnist(), Digits(), LfwPatches())]
    except ValueError as error:
        pytest.skip(str(error))
    assert [{s: len(e) for s, e in splits.items()} for splits in found] == [
        {"train": 3621, "validation": 401, "test": 978},
        {"train": 1125, "validation": 124, "test": 548},
        {"train": 0, "validation": 0, "test": 200},
    ]
    zero = next(e for split in ("train", "validation", "test") for e in found[1][split] if e.label == 0)
    assert isinstance(zero.media, Image)
    pixels = zero.media.pixels()
    assert pixels.shape == (8, 8, 3)
    assert pixels[2:6, 3:5].mean() < 60 < pixels[1:7].mean(), "a zero is empty inside"
    assert {e.label for e in found[2]["test"]} == {None}


def test_reviews_are_read_without_template_by_a_head() -> None:
    row = {"category": "fresh", "text": "Fine.", "movie_name": "film"}
    for task in (RottenTomatoes(scoring=Head()), PlotSummaries(scoring=Head())):
        assert task.prompt_template() == ""
        assert task.prompt(RottenTomatoes().example(row)).text == "Fine."
