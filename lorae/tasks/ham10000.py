"""HAM10000: what kind of skin lesion does a dermatoscope show?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lorae.media import Image
from lorae.sources import Hub
from lorae.tasks.base import Example, Head, Scoring, Task, hash_frac
from lorae.tasks.data import parquet, shared_rows

CLASSES = (
    "actinic_keratoses",
    "basal_cell_carcinoma",
    "benign_keratosis-like_lesions",
    "dermatofibroma",
    "melanoma",
    "melanocytic_Nevi",
    "vascular_lesions",
)


@dataclass(frozen=True, kw_only=True)
class HAM10000(Task):
    """10,015 photographs of 7,470 pigmented skin lesions in seven classes (Tschandl et al. 2018).

    Most are melanocytic nevi. The hub's splits repeat images and share lesions, so they are merged, with each
    image once, and split anew: about 20 % of the lesions are test and 10 % of the others validation, so that
    no lesion is in two splits.

    Source: marmal88/skin_cancer on the hub; the images are CC BY-NC 4.0.
    Columns: image, image_id, lesion_id, dx (the class), dx_type, age, sex, localization.
    Example: a file of 600 x 450 pixels | ISIC_0024329 | HAM_0002954 | actinic_keratoses
    """

    scoring: Scoring = Head()

    name = "ham10000"
    modality = "image"
    home = Hub("marmal88/skin_cancer")
    train = parquet("data/train-*", "data/validation-*", "data/test-*")
    test = train

    def rows(self, split: Literal["train", "test"]) -> list[dict[str, Any]]:
        assert self.source is not None, "call located() first"
        images = {row["image_id"]: row for row in shared_rows(self.source, self.test)}
        return [
            r for r in images.values() if (hash_frac("lesion", r["lesion_id"]) < 0.2) == (split == "test")
        ]

    def example(self, row: dict[str, Any]) -> Example:
        if row["dx"] not in CLASSES:
            raise ValueError(f"dx {row['dx']!r} is none of {', '.join(CLASSES)}")
        label, lesion = CLASSES.index(row["dx"]), row["lesion_id"]
        return Example(row["image_id"], "", CLASSES, label, group=lesion, media=Image.of(row["image"]))
