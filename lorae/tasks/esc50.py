"""ESC-50: which environmental sound is this?"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

from lorae.media import Audio
from lorae.sources import Hub
from lorae.tasks.base import Example, Head, Scoring, Task
from lorae.tasks.data import parquet, shared_rows

# fmt: off
CLASSES = (
    "dog", "rooster", "pig", "cow", "frog", "cat", "hen", "insects", "sheep", "crow", "rain", "sea_waves",
    "crackling_fire", "crickets", "chirping_birds", "water_drops", "wind", "pouring_water", "toilet_flush",
    "thunderstorm", "crying_baby", "sneezing", "clapping", "breathing", "coughing", "footsteps", "laughing",
    "brushing_teeth", "snoring", "drinking_sipping", "door_wood_knock", "mouse_click", "keyboard_typing",
    "door_wood_creaks", "can_opening", "washing_machine", "vacuum_cleaner", "clock_alarm", "clock_tick",
    "glass_breaking", "helicopter", "chainsaw", "siren", "car_horn", "engine", "train", "church_bells",
    "airplane", "fireworks", "hand_saw",
)
# fmt: on


@dataclass(frozen=True)
class ESC50(Task):
    """2,000 recordings of five seconds in 50 classes (Piczak 2015), in five folds of 400.

    The published protocol: one fold is test, the others train, and results are means over the five folds. All
    clips of a recording are in one fold; validation is also carved from train by whole recordings. The files
    have 44,100 samples per second and are resampled to the backbone's rate. They are held in memory (0.9 GB).

    Source: ashraq/esc50 on the hub (CC BY-NC 3.0).
    Columns: filename, fold (1 to 5), target (0 to 49), category, esc10, src_file, take, audio.
    Example: 1-100032-A-0.wav | 1 | 0 | dog | true | 100032 | A | a WAV file

    Args:
        fold: the test fold, 1 to 5.
    """

    fold: int = field(metadata={"identity": False})  # part of the task's name
    _: KW_ONLY
    scoring: Scoring = Head()

    modality = "audio"
    home = Hub("ashraq/esc50")
    train = parquet("data/train-*")
    test = train

    def __post_init__(self) -> None:
        if self.fold not in range(1, 6):
            raise ValueError(f"fold={self.fold}: must be 1 to 5; write ESC50(1)")
        super().__post_init__()

    @property
    def name(self) -> str:
        return f"esc50/fold{self.fold}"

    def rows(self, split: Literal["train", "test"]) -> list[dict[str, Any]]:
        assert self.source is not None, "call located() first"
        clips = shared_rows(self.source, self.test)
        return [clip for clip in clips if (clip["fold"] == self.fold) == (split == "test")]

    def example(self, row: dict[str, Any]) -> Example:
        label = row["target"]
        if CLASSES[label] != row["category"]:
            raise ValueError(f"target {label} is {CLASSES[label]!r}, but the category is {row['category']!r}")
        audio = Audio.of(row["audio"], resample=True)
        return Example(row["filename"], "", CLASSES, label, group=str(row["src_file"]), media=audio)
