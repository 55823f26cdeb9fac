"""Random changes of training images: which change an example gets at a step depends only on its member's data
order, the step and the example, so that a resumed training, or a member of another stack, sees the same."""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass, field

import numpy as np

from lorae import seeds
from lorae.media import Image

FLIPS = {"horizontal": 1, "vertical": 0}  # name -> axis of the pixels (H, W, 3)
ASPECT = 4 / 3  # a crop's aspect ratio is at most so far from the image's, as in torchvision


@dataclass(frozen=True)
class Augment:
    """Changes a training image at random: crop, then flips, then rotation, before the backbone's own
    processor gives it its size.

    `Augment(("horizontal", "vertical"), degrees=(0, 180))` is what LoRA-Ensemble's authors use on images
    (prs-eth/LoRA-Ensemble, be52ff5, `data_augmentation.py`).

    Args:
        flips: directions in which half of the images are mirrored, each drawn on its own.
        degrees: range of the angle of a counter-clockwise rotation about the centre, drawn uniformly; corners
            become black, and no pixel is interpolated. None = no rotation.
        crop: smallest share of the image's area, in (0, 1], that a crop leaves. Area and logarithm of the
            aspect ratio, 3/4 to 4/3 of the image's own, are drawn uniformly, and then the place
            (Szegedy et al. 2015, arXiv:1409.4842). None = no crop.
    """

    flips: tuple[str, ...] = ("horizontal",)
    degrees: tuple[float, float] | None = None
    crop: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.flips, tuple) or len({*self.flips} & {*FLIPS}) < len(self.flips):
            raise ValueError(
                f"flips={self.flips!r}: must be a tuple of {' and '.join(FLIPS)}, each once; write "
                '("horizontal",)'
            )
        if self.degrees is not None and not _is_range(self.degrees):
            raise ValueError(
                f"degrees={self.degrees!r}: must be a range of angles in [-360, 360]; write degrees=(-15, 15)"
            )
        if self.crop is not None and not 0 < self.crop <= 1:
            raise ValueError(f"crop={self.crop}: must be in (0, 1]; write crop=0.5 to keep half of the area")
        if not self.flips and self.degrees is None and self.crop is None:
            raise ValueError("Augment(flips=()) changes no image; write augment=None")

    @property
    def label(self) -> str:
        """Name in tables: "flip-hv+rotate-0:180+crop-0.5"."""
        parts = [f"flip-{''.join(name[0] for name in self.flips)}"] if self.flips else []
        if self.degrees is not None:
            parts.append("rotate-{:g}:{:g}".format(*self.degrees))
        return "+".join(parts + ([f"crop-{self.crop:g}"] if self.crop is not None else []))

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A changed copy of uint8 pixels (H, W, 3); every image takes equally many numbers from `rng`."""
        area, aspect, top, left, angle, *flipped = rng.random(5 + len(FLIPS))
        if self.crop is not None:
            pixels = _cropped(pixels, self.crop + area * (1 - self.crop), 2 * aspect - 1, top, left)
        for name, drawn in zip(FLIPS, flipped):
            if name in self.flips and drawn < 0.5:
                pixels = np.flip(pixels, FLIPS[name])
        if self.degrees is not None:
            low, high = self.degrees
            pixels = _rotated(pixels, low + angle * (high - low))
        return np.ascontiguousarray(pixels)


@dataclass(frozen=True)
class Augmented:
    """An image as one member sees it at one step.

    Args:
        key: random stream of the change.
    """

    original: Image
    augment: Augment = field(repr=False)
    key: seeds.Key

    @functools.cached_property
    def digest(self) -> str:
        """64 hex digits that identify the content."""
        words = (self.original.digest, self.augment, *self.key)
        return hashlib.sha256("\0".join(map(str, words)).encode()).hexdigest()

    def pixels(self) -> np.ndarray:
        """The changed image as uint8 RGB, (H, W, 3)."""
        return self.augment(self.original.pixels(), seeds.stream(*self.key))


def _is_range(degrees: object) -> bool:
    if not isinstance(degrees, tuple) or len(degrees) != 2:
        return False
    return all(isinstance(d, (int, float)) and abs(d) <= 360 for d in degrees) and degrees[0] <= degrees[1]


def _cropped(pixels: np.ndarray, area: float, aspect: float, top: float, left: float) -> np.ndarray:
    """A part with this share of the area.

    Args:
        aspect: -1 to 1, logarithm of the part's aspect ratio over the image's, to the base `ASPECT`.
        top, left: place among all that are possible, 0 to 1.
    """
    size = np.array(pixels.shape[:2])
    stretch = ASPECT ** (aspect / 2)
    part = np.clip(np.rint(size * math.sqrt(area) * (1 / stretch, stretch)), 1, size).astype(int)
    y, x = ((size - part + 1) * (top, left)).astype(int)
    return pixels[y : y + part[0], x : x + part[1]]


def _rotated(pixels: np.ndarray, degrees: float) -> np.ndarray:
    from PIL import Image as Pillow

    return np.asarray(Pillow.fromarray(pixels).rotate(degrees))
