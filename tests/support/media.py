"""Toy tasks of images and sounds, random encoders that read them, and trials on these."""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import pytest
import soundfile
from encoders import MORE, SIZES, write_tokenizer
from toys import Colours, write_split

from lorae.media import Audio, Image
from lorae.methods import Lora, Xavier
from lorae.sources import Files, Hub, Wheel
from lorae.tasks.base import Example, Head, Scoring, Task
from lorae.tasks.data import DataFiles, parquet
from lorae.trial import AdamW, Budget, Trial

AST = "audio-spectrogram-transformer"
SHADES = ("dark", "grey", "light")


@dataclass(frozen=True, kw_only=True)
class Shades(Task):
    """Toy task: how light is the image?"""

    scoring: Scoring = Head()
    val_frac: float = 0.25

    name: ClassVar[str] = "shades"
    home: ClassVar[Hub | Wheel] = Hub("toy/shades")
    train: ClassVar[DataFiles | None] = parquet("data/train-*")
    test: ClassVar[DataFiles] = parquet("data/test-*")
    modality = "image"

    def example(self, row: dict[str, Any]) -> Example:
        return Example(row["id"], "", SHADES, row["label"], media=Image.of(row["image"]))


@dataclass(frozen=True, kw_only=True)
class Stripes(Shades):
    """OOD images, of two other classes."""

    name: ClassVar[str] = "stripes"
    train: ClassVar[DataFiles | None] = None

    def example(self, row: dict[str, Any]) -> Example:
        return replace(super().example(row), options=("across", "down"), label=row["label"] % 2)


@dataclass(frozen=True, kw_only=True)
class Tones(Task):
    """Toy task: how high is the tone?"""

    scoring: Scoring = Head()
    val_frac: float = 0.25

    name: ClassVar[str] = "tones"
    home: ClassVar[Hub | Wheel] = Hub("toy/tones")
    train: ClassVar[DataFiles | None] = parquet("data/train-*")
    test: ClassVar[DataFiles] = parquet("data/test-*")
    modality = "audio"

    def example(self, row: dict[str, Any]) -> Example:
        return Example(row["id"], "", ("low", "middle", "high"), row["label"], media=Audio.of(row["audio"]))


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def image_rows(split: str, count: int, seed: int) -> list[dict[str, Any]]:
    rng, rows = np.random.default_rng(seed), []
    for n in range(count):
        noise = rng.normal(0, 40, (rng.integers(12, 30), rng.integers(12, 30), 3))
        pixels = (noise + (60, 128, 196)[n % 3]).clip(0, 255).astype(np.uint8)
        rows.append({"id": f"{split}-{n}", "image": {"bytes": png(pixels), "path": None}, "label": n % 3})
    return rows


def wav(samples: np.ndarray, rate: int = 16000) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format="WAV")
    return stream.getvalue()


def audio_rows(split: str, count: int, seed: int) -> list[dict[str, Any]]:
    rng, rows = np.random.default_rng(seed), []
    for n in range(count):
        time = np.arange(rng.integers(4000, 8000)) / 16000
        samples = 0.3 * np.sin(2 * math.pi * (200, 800, 3200)[n % 3] * time) + rng.normal(0, 0.02, len(time))
        rows.append({"id": f"{split}-{n}", "audio": {"bytes": wav(samples), "path": None}, "label": n % 3})
    return rows


@pytest.fixture(scope="session")
def media_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    write_split(folder / "shades", "train", image_rows("train", 30, 0))
    write_split(folder / "shades", "test", image_rows("test", 12, 1))
    write_split(folder / "stripes", "test", image_rows("ood", 7, 2))
    write_split(folder / "tones", "train", audio_rows("train", 24, 0))
    write_split(folder / "tones", "test", audio_rows("test", 6, 1))
    return folder


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    """A random encoder of each architecture, as its class for classification saves it."""
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForAudioClassification,
        AutoModelForImageClassification,
        AutoModelForSequenceClassification,
    )

    found = {}
    for model, more in MORE.items():
        folder = tmp_path_factory.mktemp(model)
        config = AutoConfig.for_model(model, **SIZES | more, num_labels=3, architectures=[""])
        if model in ("vit", "deit"):
            auto: Any = AutoModelForImageClassification
            size = {"height": 16, "width": 16}
            processor = {"image_processor_type": "ViTImageProcessor", "size": size, "do_normalize": True}
        elif model == AST:
            auto = AutoModelForAudioClassification
            processor = {
                "feature_extractor_type": "ASTFeatureExtractor", "max_length": 36, "num_mel_bins": 16
            }  # fmt: skip
        else:
            auto, processor = AutoModelForSequenceClassification, None
            write_tokenizer(folder)
        if processor:
            (folder / "preprocessor_config.json").write_text(json.dumps(processor))
        torch.manual_seed(0)
        auto.from_config(config).save_pretrained(folder)
        found[model] = Files(str(folder))
    return found


@pytest.fixture
def encoder_trial(backbones, media_root, data_root):
    """Factory of trials on an architecture and the toy task of its modality; keywords replace fields."""

    def make(model: str, **changes: Any) -> Trial:
        task: Task = {"vit": Shades, "deit": Shades, AST: Tones}.get(model, Colours)()
        task = replace(task, scoring=Head()).located(data_root if isinstance(task, Colours) else media_root)
        settings: dict[str, Any] = {
            "backbone": backbones[model],
            "task": task,
            "method": Lora(rank=4, alpha=4, targets=("q", "k", "v", "o"), init=Xavier(2)),
            "optimizer": AdamW(lr=1e-2),
            "budget": Budget(batch_size=4, steps=6),
            "precision": "fp32",
        }
        return Trial(**(settings | changes))

    return make
