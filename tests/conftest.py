"""A tiny random Llama in hub layout and a toy task, so that every path runs on a CPU in seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorae.sources import Files, Hub, Wheel
from lorae.tasks.base import Example, LabelWords, Scoring, Task
from lorae.tasks.data import DataFiles, parquet
from lorae.trial import AdamW, Budget, Trial

WORDS = [f"w{i}" for i in range(40)]
OPTIONS = ("red", "green", "blue")


@dataclass(frozen=True, kw_only=True)
class Colours(Task):
    """Toy task: `{"id": "train-0", "text": "w3 w17 w5", "label": 1}`; the first word decides the colour."""

    scoring: Scoring = LabelWords()
    val_frac: float = 0.25

    name: ClassVar[str] = "colours"
    home: ClassVar[Hub | Wheel] = Hub("toy/colours")
    train: ClassVar[DataFiles | None] = parquet("data/train-*")
    test: ClassVar[DataFiles] = parquet("data/test-*")
    template: ClassVar[str] = "words : {question} colour :"

    def example(self, row: dict[str, Any]) -> Example:
        return Example(row["id"], row["text"], OPTIONS[: row.get("options", 3)], row["label"])


@dataclass(frozen=True, kw_only=True)
class Greys(Colours):
    """The OOD twin of `Colours`: other words, no labels, no training split."""

    name: ClassVar[str] = "greys"
    train: ClassVar[DataFiles | None] = None

    def example(self, row: dict[str, Any]) -> Example:
        return Example(row["id"], row["text"], OPTIONS, None)


def write_split(folder: Path, split: str, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")


def colour_rows(split: str, count: int, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = []
    for n in range(count):
        words = rng.choice(len(WORDS), rng.integers(2, 12))
        text = " ".join(WORDS[w] for w in words)
        rows.append({"id": f"{split}-{n}", "text": text, "label": int(words[0] % 3)})
    return rows


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_split(root / "colours", "train", colour_rows("train", 53, 0))
    write_split(root / "colours", "test", colour_rows("test", 20, 1))
    write_split(root / "greys", "test", colour_rows("grey", 12, 2))
    return root


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A random Llama of 3 layers with grouped key-value heads and a word-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-llama")
    letters = ["A", "B", "C", "D", "E", ")", "Question", "Answer", "Choices", ".", "The", "is"]
    vocabulary = ["[UNK]", "[PAD]", "words", "colour", ":", *OPTIONS, *WORDS, *letters]
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(
        folder
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return Files(str(folder))


@pytest.fixture
def tiny_trial(tiny_llama: Files, data_root: Path) -> Callable[..., Trial]:
    """Factory of trials on the tiny Llama and the toy task; keywords replace fields."""

    def make(**changes: Any) -> Trial:
        settings: dict[str, Any] = {
            "backbone": tiny_llama,
            "task": Colours().located(data_root),
            "optimizer": AdamW(lr=1e-2),
            "budget": Budget(batch_size=4, epochs=3),
            "precision": "fp32",
        }
        return Trial(**(settings | changes))

    return make
