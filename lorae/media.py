"""The image or audio clip of one example, decoded on demand.

Content may come from anywhere, so it is decoded with a size limit, and images only in the file formats that
datasets use.
"""

from __future__ import annotations

import functools
import hashlib
import io
import math
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image as Picture

MAX_PIXELS = 2**26  # 192 MiB decoded; the largest camera photographs
MAX_SAMPLES = 2**26  # 256 MiB decoded; 25 minutes at 44.1 kHz
SAMPLING_RATES = range(1_000, 192_001)  # of a file's header; the resampling filter is 20 times as long
IMAGE_FORMATS = ("PNG", "JPEG")
ORIENTATION = 0x0112  # EXIF tag
_GREY_OR_COLOUR = {"1", "L", "LA", "P", "PA", "RGB", "RGBA"}


@dataclass(frozen=True)
class Part:
    """Bytes `start` to `start + length` of a file, which are read when they are needed."""

    file: str
    start: int
    length: int

    def __bytes__(self) -> bytes:
        """The bytes.

        Raises:
            ValueError: the file is gone or cut off.
        """
        try:
            with open(self.file, "rb") as stream:
                stream.seek(self.start)
                data = stream.read(self.length)
        except OSError as error:
            raise ValueError(f"{self.file} cannot be read ({error.strerror}); {_AGAIN}") from error
        if len(data) < self.length:
            raise ValueError(f"{self.file} is cut off; {_AGAIN}")
        return data


_AGAIN = "it is a copy in the cache: delete it and repeat the command"


@dataclass(frozen=True)
class Image:
    """One image.

    Args:
        data: a PNG or JPEG file, or where it is, or the pixels of a raw image, row by row.
        shape: (H, W) or (H, W, 3) of a raw uint8 image, see `Image.raw`; None = `data` is a file.
    """

    data: bytes | Part = field(repr=False)
    shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        shape = self.shape
        if shape is not None and (len(shape) not in (2, 3) or shape[2:] not in ((), (3,)) or 0 in shape):
            raise ValueError(f"an image of shape {shape}; must be (H, W) or (H, W, 3)")

    @classmethod
    def raw(cls, pixels: np.ndarray) -> Self:
        """An image from a uint8 array, (H, W) grey or (H, W, 3) RGB."""
        if pixels.dtype.name != "uint8":
            raise ValueError(f"an image of {pixels.dtype}; must be uint8, 0 to 255")
        return cls(pixels.tobytes(), pixels.shape)

    @classmethod
    def of(cls, cell: Any) -> Self:
        """An image from a cell of a dataset's image column, {bytes, path}."""
        return cls(_cell_bytes(cell, "image"))

    @functools.cached_property
    def digest(self) -> str:
        """64 hex digits that identify the content: images with equal digests are the same file or pixels."""
        return _digest(bytes(self.data), *(self.shape or ()))

    def pixels(self) -> np.ndarray:
        """The image as uint8 RGB, (H, W, 3).

        Grey and palette images become RGB, the camera's rotation (EXIF) is undone, and a fully opaque alpha
        channel is dropped.

        Raises:
            ValueError: not an intact PNG or JPEG, other channels (CMYK, 16 bits, transparent), or too large.
        """
        import numpy as np

        if self.shape is None:
            return np.array(_rgb(_decoded(bytes(self.data))))
        pixels = np.frombuffer(bytes(self.data), np.uint8).reshape(self.shape)
        return pixels.copy() if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)


def _decoded(data: bytes) -> Picture:
    from PIL import Image as Pillow

    try:
        with Pillow.open(io.BytesIO(data), formats=IMAGE_FORMATS) as opened:
            if math.prod(opened.size) > MAX_PIXELS:
                raise _Refused(f"{opened.width} x {opened.height} pixels; at most {MAX_PIXELS:,} are decoded")
            opened.load()
            return _upright(opened)
    except _Refused:
        raise
    except Exception as error:  # Pillow raises ten types for damaged files, even SyntaxError and struct.error
        reason = "" if isinstance(error, Pillow.UnidentifiedImageError) else f" ({error})"
        raise ValueError(
            f"the image ({len(data):,} bytes) is no intact {' or '.join(IMAGE_FORMATS)}{reason}"
        ) from error


class _Refused(ValueError):
    """An intact image is not read; says why."""


def _upright(image: Picture) -> Picture:
    """The image turned upright by its EXIF orientation. (Pillow's `exif_transpose` also rewrites all other
    tags, which fails if one of them is malformed.)"""
    from PIL.Image import Transpose

    turned: dict[Any, Transpose] = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception as error:
        raise _Refused(f"the image's EXIF cannot be read ({error}); {_SAVE_UPRIGHT}") from error
    if not isinstance(orientation, Real):
        raise _Refused(f"the image's EXIF orientation is {orientation!r}, not 1 to 8; {_SAVE_UPRIGHT}")
    return image.transpose(turned[orientation]) if orientation in turned else image.copy()


_SAVE_UPRIGHT = "which side is up is not known; turn it and save it without EXIF"


def _rgb(image: Picture) -> Picture:
    if image.mode not in _GREY_OR_COLOUR:
        raise ValueError(
            f"the image has {len(image.getbands())} channels ({image.mode}); must be 8-bit grey, palette or "
            "RGB; convert it to RGB"
        )
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] != 255:
        raise ValueError(
            f"the image has transparent pixels ({image.mode}), whose colour is undefined; draw it over a "
            "background and save it as RGB"
        )
    return image.convert("RGB")


@dataclass(frozen=True)
class Audio:
    """One audio clip.

    Args:
        data: a WAV, FLAC or OGG file, or where it is, or the samples of raw audio, see `Audio.raw`.
        raw_rate: samples per second of raw audio; None = `data` is a file.
        resample: allow conversion to another sampling rate; otherwise asking for one is an error.
    """

    data: bytes | Part = field(repr=False)
    raw_rate: int | None = None
    resample: bool = False

    @classmethod
    def raw(cls, samples: np.ndarray, sampling_rate: int) -> Self:
        """Audio from an array (n,) of floats in [-1, 1]."""
        if samples.ndim != 1 or samples.dtype.kind != "f":
            raise ValueError(
                f"audio of shape {samples.shape} and {samples.dtype}; must be (n,) of floats in [-1, 1]"
            )
        return cls(samples.astype("<f4").tobytes(), sampling_rate)

    @classmethod
    def of(cls, cell: Any, resample: bool = False) -> Self:
        """Audio from a cell of a dataset's audio column, {bytes, path}."""
        return cls(_cell_bytes(cell, "audio"), resample=resample)

    @functools.cached_property
    def digest(self) -> str:
        """64 hex digits that identify the content."""
        return _digest(bytes(self.data), *((self.raw_rate,) if self.raw_rate else ()))

    def waveform(self, sampling_rate: int) -> np.ndarray:
        """Mono samples (n,) in [-1, 1], float32, at this sampling rate (per second); channels are averaged.

        Raises:
            ValueError: not an intact audio file, no samples, too many samples, or another sampling rate
                without `resample`.
        """
        import numpy as np

        samples, rate = self._samples()
        if not len(samples) or not np.isfinite(samples).all():
            raise ValueError(
                f"the audio has {'samples that are no numbers' if len(samples) else 'no samples'}"
            )
        if rate != sampling_rate:
            if not self.resample:
                raise ValueError(
                    f"the audio has {rate} samples per second, the backbone takes {sampling_rate}; resample "
                    "the files, or let the task do it: Audio(..., resample=True)"
                )
            samples = _resampled(samples, rate, sampling_rate)
        return np.clip(samples, -1, 1).astype(np.float32)

    def _samples(self) -> tuple[np.ndarray, int]:
        """Samples (n,), mono, and their rate."""
        import numpy as np

        data = bytes(self.data)
        if self.raw_rate is not None:
            return np.frombuffer(data, "<f4"), self.raw_rate
        import soundfile

        end = 8 + int.from_bytes(data[4:8], "little")  # of a RIFF file; libsndfile would read a cut one
        if data[:4] == b"RIFF" and len(data) < end < 2**32:  # a stream's header says 2**32 - 1
            raise ValueError(f"the audio is cut off: {len(data):,} of {end:,} bytes")
        try:
            with soundfile.SoundFile(io.BytesIO(data)) as stream:
                if stream.frames * stream.channels > MAX_SAMPLES:
                    raise ValueError(
                        f"the audio has {stream.frames:,} samples of {stream.channels} channels; at most "
                        f"{MAX_SAMPLES:,} are decoded"
                    )
                samples = stream.read(dtype="float32", always_2d=True)  # (n, channels)
                return samples.mean(axis=1), stream.samplerate
        except soundfile.LibsndfileError as error:
            raise ValueError(
                f"the audio ({len(data):,} bytes) is no intact WAV, FLAC or OGG ({error.error_string})"
            ) from error


def _resampled(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    from scipy.signal import resample_poly

    if rate not in SAMPLING_RATES or len(samples) * wanted > MAX_SAMPLES * rate:
        raise ValueError(
            f"{len(samples):,} samples at {rate} per second cannot be resampled to {wanted}; must be at "
            f"{SAMPLING_RATES.start:,} to {SAMPLING_RATES[-1]:,} per second and become at most "
            f"{MAX_SAMPLES:,} samples"
        )
    common = math.gcd(rate, wanted)
    return resample_poly(samples, wanted // common, rate // common)


def _cell_bytes(cell: Any, column: str) -> bytes | Part:
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, (bytes, Part)):
        raise ValueError(
            f"the {column} column has no bytes; must be {{bytes, path}} as the hub's parquet files hold it"
        )
    return data


def _digest(data: bytes, *raw: int) -> str:
    return hashlib.sha256(b"".join(b"%d " % n for n in raw) + b"\0" + data).hexdigest()
