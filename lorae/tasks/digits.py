"""Digits: scikit-learn's small handwritten digits, from the package index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lorae.media import Image
from lorae.sources import Wheel
from lorae.tasks.base import Example, Head, Scoring, Task, media_example
from lorae.tasks.data import DataFiles
from lorae.tasks.mnist import DIGITS, digit_rows


@dataclass(frozen=True, kw_only=True)
class Digits(Task):
    """1,797 grey images of digits, 8 x 8 pixels (Alpaydin and Kaynak 1998): the test part of UCI's set.

    About 30 % of the images are our test split, chosen by a hash of the row number. The writers are not
    known, so a writer may be in two splits. The values 0 to 16 become 0 to 255; the backbone's image
    processor enlarges the images.

    Source: the wheel scikit-learn 1.9.1 (BSD), `sklearn.datasets.load_digits`; all platforms have that file.
    Columns: 64 pixels, 0 (paper) to 16 (ink), and the digit.
    Example: 0, 0, 5, 13, 9, 1, 0, 0, ..., 0, 0, 6, 13, 10, 0, 0, 0 | 0
    """

    scoring: Scoring = Head()

    name = "digits"
    modality = "image"
    home = Wheel(
        "scikit-learn",
        "1.9.1",
        "sklearn/datasets/data/digits.csv.gz",
        sha256="09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
    )
    train = DataFiles(("digits.csv.gz",))
    test = DataFiles(("digits.csv.gz",))

    def rows(self, split: Literal["train", "test"]) -> list[dict[str, Any]]:
        return digit_rows(self, split, test_frac=0.3)

    def example(self, row: dict[str, Any]) -> Example:
        pixels = (row["pixels"] * (255 / 16)).round().astype("uint8").reshape(8, 8)
        return media_example(Image.raw(pixels), DIGITS, row["digit"])
