"""RESISC45: what does a satellite see?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lorae.media import Image
from lorae.sources import Hub
from lorae.tasks.base import Example, Head, Scoring, Task, media_example
from lorae.tasks.data import parquet

# fmt: off
CLASSES = (
    "airplane", "airport", "baseball_diamond", "basketball_court", "beach", "bridge", "chaparral", "church",
    "circular_farmland", "cloud", "commercial_area", "dense_residential", "desert", "forest", "freeway",
    "golf_course", "ground_track_field", "harbor", "industrial_area", "intersection", "island", "lake",
    "meadow", "medium_residential", "mobile_home_park", "mountain", "overpass", "palace", "parking_lot",
    "railway", "railway_station", "rectangular_farmland", "river", "roundabout", "runway", "sea_ice", "ship",
    "snowberg", "sparse_residential", "stadium", "storage_tank", "tennis_court", "terrace",
    "thermal_power_station", "wetland",
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class RESISC45(Task):
    """Aerial photographs of 45 kinds of places (Cheng et al. 2017, arXiv:1703.00121): 25,200 train, 6,300
    test.

    The published data have no splits. Train are the hub's training and validation images, from which our
    validation is carved.

    Source: timm/resisc45 on the hub; licence unknown.
    Columns: image, label (0 to 44), image_id.
    Example: a file of 256 x 256 pixels | 44 (wetland)
    """

    scoring: Scoring = Head()

    name = "resisc45"
    modality = "image"
    home = Hub("timm/resisc45")
    train = parquet("data/train-*", "data/validation-*", num_rows=25_200)
    test = parquet("data/test-*", num_rows=6300)

    def example(self, row: dict[str, Any]) -> Example:
        return media_example(Image.of(row["image"]), CLASSES, row["label"])
