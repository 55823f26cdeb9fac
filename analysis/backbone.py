"""A backbone's weights from its safetensors files, one layer at a time and without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lorae.metrics import left_singular_vectors
from lorae.sources import Files, cache_dir

FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # numpy has no bfloat16: its bits


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies in a safetensors file."""

    path: Path
    start: int  # bytes from the beginning of the file
    dtype: str  # as the file names it
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class BackboneWeights:
    """The linear layers of a backbone by their path, `model.layers.0.self_attn.q_proj`."""

    folder: Path
    tensors: dict[str, Stored]
    left: dict[str, np.ndarray] = field(default_factory=dict)  # layer -> its singular vectors, once needed

    @property
    def d_in(self) -> dict[str, int]:
        """Layer -> width of its input."""
        weights = {name: stored.shape for name, stored in self.tensors.items() if len(stored.shape) == 2}
        return {name.removesuffix(".weight"): shape[1] for name, shape in weights.items()}

    def num_entries(self, targets: Sequence[str]) -> int:
        """Entries of the weights whose names end in one of the targets."""
        ends = tuple(f".{target}.weight" for target in targets)
        return sum(math.prod(stored.shape) for name, stored in self.tensors.items() if name.endswith(ends))

    def read(self, layer: str) -> np.ndarray:
        """The weight W (d_out, d_in) in float32.

        Raises:
            ValueError: the backbone has no such layer, or has it in a quantised form.
        """
        stored = self._stored(layer)
        if stored.dtype not in FLOATS:
            raise ValueError(
                f"{layer} of {self.folder} is stored as {stored.dtype}; allowed are {', '.join(FLOATS)}; "
                "give an unquantised copy"
            )
        size = math.prod(stored.shape)
        values = np.fromfile(stored.path, FLOATS[stored.dtype], size, offset=stored.start)
        if stored.dtype == "BF16":  # the upper half of a float32
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32).reshape(stored.shape)

    def left_singular_vectors(self, layer: str) -> np.ndarray:
        """Those of `read(layer)`; kept, as every member is compared with them (4 d_out^2 bytes or less)."""
        if layer not in self.left:
            self.left[layer] = left_singular_vectors(self.read(layer))
        return self.left[layer]

    def _stored(self, layer: str) -> Stored:
        try:
            return self.tensors[f"{layer}.weight"]
        except KeyError:
            raise ValueError(f"{self.folder} has no weight of {layer}; give the members' backbone") from None


def open_backbone(folder: Path) -> BackboneWeights:
    """The weights of a folder in hub layout; only the headers of its files are read.

    Raises:
        ValueError: it has no safetensors files.
    """
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise ValueError(f"{folder} has no *.safetensors; give the folder of a hub repository's copy")
    return BackboneWeights(folder, {name: stored for path in paths for name, stored in _header(path).items()})


def _header(path: Path) -> dict[str, Stored]:
    """Name -> place of every tensor. The file: 8 bytes of length, so long a JSON header, then the data."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return {
        name: Stored(path, 8 + length + entry["data_offsets"][0], entry["dtype"], tuple(entry["shape"]))
        for name, entry in header.items()
    }


def folder_at_hand(backbone: dict[str, Any], given: Path | None) -> Path:
    """Folder of the backbone that a recipe names, if it is on this machine; nothing is fetched.

    Args:
        backbone: its fingerprint in a recipe.
        given: the folder, where the user names one.
    Raises:
        ValueError: it is not here, or `given` is another one.
    """
    if given:
        if backbone["type"] == "Files" and Files(str(given)).fingerprint() != backbone:
            raise ValueError(f"{given} is not the backbone that the members were trained on: other content")
        return given
    found = None
    if backbone["type"] == "Wheel":
        found = cache_dir() / "backbones" / backbone["sha256"][:16]
    elif backbone["type"] == "Hub":
        found = _cached_snapshot(backbone["id"], backbone["revision"])
    if not found or not found.is_dir():
        name = backbone.get("id", f"from {backbone['type']}")
        raise ValueError(f"the backbone {name} is not in this machine's cache; give its folder by --backbone")
    return found


def _cached_snapshot(repository: str, commit: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=commit, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
