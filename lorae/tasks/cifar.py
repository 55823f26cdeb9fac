"""CIFAR-10 and CIFAR-100: what is in a small photograph?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lorae.media import Image
from lorae.sources import Hub
from lorae.tasks.base import Example, Head, Scoring, Task, media_example
from lorae.tasks.data import parquet

# fmt: off
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)
CIFAR100_CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl",
    "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair",
    "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin",
    "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp",
    "lawn_mower", "leopard", "lion", "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain",
    "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck",
    "pine_tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road",
    "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider",
    "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger",
    "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman",
    "worm",
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class CIFAR10(Task):
    """Photographs of 32 x 32 pixels in ten classes (Krizhevsky 2009): 50,000 train, 10,000 test.

    Source: uoft-cs/cifar10 on the hub; licence not stated.
    Columns: img, label (0 to 9).
    Example: a PNG file of 32 x 32 pixels | 6 (frog)
    """

    scoring: Scoring = Head()

    name = "cifar10"
    modality = "image"
    home = Hub("uoft-cs/cifar10")
    train = parquet("plain_text/train-*", num_rows=50_000)
    test = parquet("plain_text/test-*", num_rows=10_000)

    def example(self, row: dict[str, Any]) -> Example:
        return media_example(Image.of(row["img"]), CIFAR10_CLASSES, row["label"])


@dataclass(frozen=True, kw_only=True)
class CIFAR100(Task):
    """Photographs of 32 x 32 pixels in 100 classes (Krizhevsky 2009): 50,000 train, 10,000 test.

    Source: uoft-cs/cifar100 on the hub; licence not stated.
    Columns: img, fine_label (0 to 99, in alphabetical order), coarse_label.
    Example: a PNG file of 32 x 32 pixels | 19 (cattle) | 11
    """

    scoring: Scoring = Head()

    name = "cifar100"
    modality = "image"
    home = Hub("uoft-cs/cifar100")
    train = parquet("cifar100/train-*", num_rows=50_000)
    test = parquet("cifar100/test-*", num_rows=10_000)

    def example(self, row: dict[str, Any]) -> Example:
        return media_example(Image.of(row["img"]), CIFAR100_CLASSES, row["fine_label"])
