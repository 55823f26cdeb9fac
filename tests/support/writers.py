"""A toy task whose answer is a text, and a tiny Llama whose tokenizer has an end token."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from toys import WORDS, write_split

from lorae.sources import Files, Hub
from lorae.tasks.base import Example, Generate, Scoring, Task, text_example
from lorae.tasks.data import DataFiles, parquet
from lorae.trial import AdamW, Budget, Trial

END = "."


@dataclass(frozen=True, kw_only=True)
class Echo(Task):
    """Toy task: write the first words of the question in reverse; `{"id", "text", "answers"}`."""

    scoring: Scoring = Generate(max_new_tokens=6)
    val_frac: float = 0.25

    name: ClassVar[str] = "echo"
    home: ClassVar[Hub] = Hub("toy/echo")
    train: ClassVar[DataFiles | None] = parquet("data/train-*")
    test: ClassVar[DataFiles] = parquet("data/test-*")
    template: ClassVar[str] = "words : {question} colour :"

    def example(self, row: dict[str, Any]) -> Example:
        return text_example(row["text"], row["answers"], row["id"])


@dataclass(frozen=True, kw_only=True)
class FarEcho(Echo):
    """Its OOD twin, without a training split."""

    name: ClassVar[str] = "far_echo"
    train: ClassVar[DataFiles | None] = None


def echo_rows(split: str, count: int, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = []
    for n in range(count):
        words = [WORDS[w] for w in rng.choice(12, rng.integers(2, 9), replace=False)]
        answer = words[: int(rng.integers(1, 5))][::-1]
        texts = [" ".join(answer), *([words[-1]] if n % 3 == 0 else [])]
        rows.append({"id": f"{split}-{n}", "text": " ".join(words), "answers": texts})
    return rows


def echo_trial(backbone: Files, root: Path) -> Callable[..., Trial]:
    """Factory of trials on the toy task; keywords replace fields."""
    writer, task = with_end_token(backbone, root / "llama"), Echo().located(write_echo(root / "data"))

    def make(**changes: Any) -> Trial:
        settings: dict[str, Any] = {
            "backbone": writer,
            "task": task,
            "optimizer": AdamW(lr=1e-2),
            "budget": Budget(batch_size=4, epochs=2, max_tokens=64),
            "precision": "fp32",
        }
        return Trial(**(settings | changes))

    return make


def write_echo(root: Path) -> Path:
    """A data root with both tasks."""
    write_split(root / "echo", "train", echo_rows("train", 45, 3))
    write_split(root / "echo", "test", echo_rows("test", 14, 4))
    write_split(root / "far_echo", "test", echo_rows("far", 6, 5))
    return root


def with_end_token(backbone: Files, folder: Path) -> Files:
    """The backbone's copy whose tokenizer ends texts with END."""
    shutil.copytree(backbone.path, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": END}))
    return Files(str(folder))
