"""Near and far OOD sets of CIFAR as OpenOOD has them (Zhang et al. 2023, arXiv:2306.09301, v1.5).

Near sets share the kind of image and lack its classes; far sets are of another kind. OpenOOD leaves out
images of Tiny ImageNet that show a class of CIFAR, by lists of its own, and has Places365, too; here every
image of the split counts, and MNIST is a tenth of it, so AUROCs are not its numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from lorae.media import Image
from lorae.sources import Hub
from lorae.tasks.base import Example, Head, Scoring, Task, media_example
from lorae.tasks.data import DataFiles, parquet

Distance = Literal["near", "far"]
_FAR: dict[str, Distance] = {"mnist": "far", "svhn": "far", "textures": "far"}
_TINY: dict[str, Distance] = {"tiny_imagenet": "near"}
# Trained task -> evaluated task -> how far it is
DISTANCES: dict[str, dict[str, Distance]] = {
    "cifar10": {"cifar100": "near", **_TINY, **_FAR},
    "cifar100": {"cifar10": "near", **_TINY, **_FAR},
}


@dataclass(frozen=True, kw_only=True)
class TinyImageNet(Task):
    """Photographs of 64 x 64 pixels in 200 classes of ImageNet: the 10,000 of its validation
    split, without labels.

    Source: zh-plus/tiny-imagenet on the hub; licence not stated.
    Columns: image, label.
    Example: a JPEG file of 64 x 64 pixels
    """

    scoring: Scoring = Head()

    name: ClassVar[str] = "tiny_imagenet"
    modality = "image"
    home: ClassVar[Hub] = Hub("zh-plus/tiny-imagenet")
    train: ClassVar[DataFiles | None] = None
    test: ClassVar[DataFiles] = parquet("data/valid-*", num_rows=10_000)

    def example(self, row: dict[str, Any]) -> Example:
        return _unlabelled(row)


@dataclass(frozen=True, kw_only=True)
class Textures(Task):
    """Describable textures (Cimpoi et al. 2014): 1,880 photographs of the test split, without labels.

    Source: tanganke/dtd on the hub; for research only.
    Columns: image, label.
    Example: a JPEG file of 300 to 640 pixels a side
    """

    scoring: Scoring = Head()

    name: ClassVar[str] = "textures"
    modality = "image"
    home: ClassVar[Hub] = Hub("tanganke/dtd")
    train: ClassVar[DataFiles | None] = None
    test: ClassVar[DataFiles] = parquet("data/test-*", num_rows=1880)

    def example(self, row: dict[str, Any]) -> Example:
        return _unlabelled(row)


def _unlabelled(row: dict[str, Any]) -> Example:
    return media_example(Image.of(row["image"]), ("other", "another"), None)
