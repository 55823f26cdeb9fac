"""Patches of photographs: an OOD set for models of digits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lorae.media import Image
from lorae.sources import Wheel
from lorae.tasks.base import Example, Head, Scoring, Task, media_example
from lorae.tasks.data import DataFiles, read_array


@dataclass(frozen=True, kw_only=True)
class LfwPatches(Task):
    """200 grey patches of photographs, 25 x 25 pixels: 100 faces of Labeled Faces in the Wild, 100 without.

    There are no labels, as no patch is a digit, and there is no train split.

    Source: the wheel scikit-image 0.26.0 (BSD), `skimage.data.lfw_subset`.
    Example: an array (25, 25) of floats in [0, 1], the first a face.
    """

    scoring: Scoring = Head()

    name = "lfw_patches"
    modality = "image"
    home = Wheel(
        "scikit-image",
        "0.26.0",
        "skimage/data/lfw_subset.npy",
        sha256="9560ec2f5edfac01973f63a8a99d00053fecd11e21877e18038fbe500f8e872c",
    )
    train = None
    test = DataFiles(("lfw_subset.npy",))

    def rows(self, split: Literal["train", "test"]) -> list[dict[str, Any]]:
        assert self.source is not None, "call located() first"
        return [{"patch": p} for p in read_array(self.source, self.test)] if split == "test" else []

    def example(self, row: dict[str, Any]) -> Example:
        patch = (row["patch"] * 255).round().astype("uint8")
        return media_example(Image.raw(patch), ("no face", "face"), None)
