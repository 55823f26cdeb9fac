"""SVHN: which digit of a house number is this?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lorae.media import Image
from lorae.sources import Hub
from lorae.tasks.base import Example, Head, Scoring, Task, media_example
from lorae.tasks.data import parquet
from lorae.tasks.mnist import DIGITS


@dataclass(frozen=True, kw_only=True)
class SVHN(Task):
    """Digits of house numbers, cropped to 32 x 32 pixels (Netzer et al. 2011): 73,257 train, 26,032 test.

    The usual OOD set for models trained on CIFAR; it can also be trained on.

    Source: ufldl-stanford/svhn on the hub, cropped_digits without its `extra` rows; for non-commercial use.
    Columns: image, label (0 to 9).
    Example: a PNG file of 32 x 32 pixels | 1
    """

    scoring: Scoring = Head()

    name = "svhn"
    modality = "image"
    home = Hub("ufldl-stanford/svhn")
    train = parquet("cropped_digits/train-*", num_rows=73_257)
    test = parquet("cropped_digits/test-*", num_rows=26_032)

    def example(self, row: dict[str, Any]) -> Example:
        return media_example(Image.of(row["image"]), DIGITS, row["label"])
