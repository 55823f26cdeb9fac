"""Flowers102: which flower is it?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lorae.media import Image
from lorae.sources import Hub
from lorae.tasks.base import Example, Head, Scoring, Task, media_example
from lorae.tasks.data import parquet

# fmt: off
CLASSES = (
    "pink primrose", "hard-leaved pocket orchid", "canterbury bells", "sweet pea", "english marigold",
    "tiger lily", "moon orchid", "bird of paradise", "monkshood", "globe thistle", "snapdragon",
    "colt's foot", "king protea", "spear thistle", "yellow iris", "globe-flower", "purple coneflower",
    "peruvian lily", "balloon flower", "giant white arum lily", "fire lily", "pincushion flower",
    "fritillary", "red ginger", "grape hyacinth", "corn poppy", "prince of wales feathers",
    "stemless gentian", "artichoke", "sweet william", "carnation", "garden phlox", "love in the mist",
    "mexican aster", "alpine sea holly", "ruby-lipped cattleya", "cape flower", "great masterwort",
    "siam tulip", "lenten rose", "barbeton daisy", "daffodil", "sword lily", "poinsettia",
    "bolero deep blue", "wallflower", "marigold", "buttercup", "oxeye daisy", "common dandelion",
    "petunia", "wild pansy", "primula", "sunflower", "pelargonium", "bishop of llandaff", "gaura",
    "geranium", "orange dahlia", "pink-yellow dahlia?", "cautleya spicata", "japanese anemone",
    "black-eyed susan", "silverbush", "californian poppy", "osteospermum", "spring crocus", "bearded iris",
    "windflower", "tree poppy", "gazania", "azalea", "water lily", "rose", "thorn apple", "morning glory",
    "passion flower", "lotus", "toad lily", "anthurium", "frangipani", "clematis", "hibiscus", "columbine",
    "desert-rose", "tree mallow", "magnolia", "cyclamen", "watercress", "canna lily", "hippeastrum",
    "bee balm", "ball moss", "foxglove", "bougainvillea", "camellia", "mallow", "mexican petunia",
    "bromelia", "blanket flower", "trumpet creeper", "blackberry lily",
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Flowers102(Task):
    """Photographs of 102 kinds of flowers (Nilsback and Zisserman 2008): 2,040 train, 6,149 test.

    Test are the published test images; train are the published training and validation images, 20 of each
    flower, from which validation is carved. They are read from the cache (train 0.8 GB, test
    2.5 GB).

    Source: dpdl-benchmark/oxford_flowers102 on the hub; licence not stated.
    Columns: image, label (0 to 101).
    Example: a file of 667 x 500 pixels | 72 (water lily)
    """

    scoring: Scoring = Head()

    name = "flowers102"
    modality = "image"
    home = Hub("dpdl-benchmark/oxford_flowers102")
    train = parquet("data/train-*", "data/validation-*", num_rows=2040)
    test = parquet("data/test-*", num_rows=6149)

    def example(self, row: dict[str, Any]) -> Example:
        return media_example(Image.of(row["image"]), CLASSES, row["label"])
