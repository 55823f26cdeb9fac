"""A backbone's weights from its safetensors files, one layer at a time and without torch."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lorae.cache import cache_dir
from lorae.files import read_json
from lorae.metrics import left_singular_vectors
from lorae.shapes import CONFIG, VIT_LIKE, has_transposed_weights
from lorae.sources import Files
from lorae.store.storage import Storage
from lorae.untrusted import COPY, MAX_HEADER_BYTES, safetensors_header

FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # numpy has no bfloat16: read its bits
RENAMED = (  # the renamings, in order, by which transformers 5 loads a ViT, DeiT or AST
    ("encoder.layer.", "layers."),
    ("attention.query", "q_proj"),
    ("attention.key", "k_proj"),
    ("attention.value", "v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
)


class LacksLayer(ValueError):
    """A backbone's files have no weight of a layer, or only a quantised one."""


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies in a safetensors file."""

    storage: Storage
    file: str
    start: int  # bytes from the beginning of the file
    dtype: str  # as the file names it
    shape: tuple[int, ...]

    def read(self) -> np.ndarray:
        """The values in float32; reads nothing else of the file.

        Raises:
            LacksLayer: it is quantised.
        """
        path = self.storage.path(self.file)
        if self.dtype not in FLOATS:
            raise LacksLayer(
                f"{path} has a tensor of {self.dtype}; allowed are {', '.join(FLOATS)}; "
                "give an unquantised copy"
            )
        with self.storage.filesystem.open_input_file(path) as stream:
            content = stream.read_at(
                math.prod(self.shape) * np.dtype(FLOATS[self.dtype]).itemsize, self.start
            )
        values = np.frombuffer(content, FLOATS[self.dtype])
        if self.dtype == "BF16":  # the upper half of a float32
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32).reshape(self.shape)


@dataclass(frozen=True, eq=False)
class BackboneWeights:
    """The linear layers of a backbone by their path in the loaded model, `model.layers.0.self_attn.q_proj`.

    A file of the bare encoder lacks the path's first part ("bert", "vit"), which loading adds.

    Args:
        precision: of the loaded model; "bf16" rounds the weights.
        transposed: the files store weights as (d_in, d_out).
    """

    folder: Path
    tensors: dict[str, Stored]
    precision: str = "fp32"
    transposed: bool = False
    left: dict[str, np.ndarray] = field(default_factory=dict)  # layer -> singular vectors, once needed

    @functools.cached_property
    def linears(self) -> dict[str, tuple[int, int]]:
        shapes = linears_in(self.tensors)
        return {name: (d_in, d_out) for name, (d_out, d_in) in shapes.items()} if self.transposed else shapes

    def d_in(self, layer: str) -> int:
        """Width of a layer's input; raises as `read` does."""
        return self._stored(layer).shape[0 if self.transposed else 1]

    def read(self, layer: str) -> np.ndarray:
        """The weight W (d_out, d_in) in float32.

        Raises:
            LacksLayer: the backbone has no such layer, or only a quantised one.
        """
        weight = self.oriented(self._stored(layer).read())
        return weight if self.precision == "fp32" else _rounded_to_bf16(weight)

    def oriented(self, weight: np.ndarray) -> np.ndarray:
        """A stored weight as (d_out, d_in)."""
        return weight.T if self.transposed else weight

    def left_singular_vectors(self, layer: str) -> np.ndarray:
        """Those of `read(layer)`; cached, as every member is compared with them (at most 4 d_out^2 bytes)."""
        if layer not in self.left:
            self.left[layer] = left_singular_vectors(self.read(layer))
        return self.left[layer]

    def _stored(self, layer: str) -> Stored:
        for name in (layer, layer.partition(".")[2]):
            if stored := self.tensors.get(f"{name}.weight"):
                return stored
        raise LacksLayer(f"{self.folder} has no weight of {layer}; give the members' backbone")


def _rounded_to_bf16(values: np.ndarray) -> np.ndarray:
    """Values rounded to the nearest bfloat16, ties to even, in float32."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def open_backbone(folder: Path, precision: str = "fp32") -> BackboneWeights:
    """The weights of a folder in hub layout; only config.json and the headers of its files are read.

    Raises:
        ValueError: it has no safetensors files.
    """
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} has no *.safetensors; give the folder of a hub repository's copy")
    config = {"model_type": None} | read_json(folder / "config.json", CONFIG)
    renamed = config["model_type"] in VIT_LIKE
    tensors = {name: t for file in files for name, t in stored_tensors(Storage(str(folder)), file).items()}
    loaded = {_loaded(name) if renamed else name: tensor for name, tensor in tensors.items()}
    return BackboneWeights(folder, loaded, precision, has_transposed_weights(config))


def _loaded(name: str) -> str:
    """The name of a ViT's tensor in the loaded model; a file may already use that name."""
    for old, new in RENAMED:
        name = name.replace(old, new)
    return name


def linears_in(tensors: dict[str, Stored]) -> dict[str, tuple[int, int]]:
    """Layer -> (d_in, d_out) of every matrix."""
    shapes = {name: stored.shape for name, stored in tensors.items() if len(stored.shape) == 2}
    return {name.removesuffix(".weight"): (d_in, d_out) for name, (d_out, d_in) in shapes.items()}


def stored_tensors(storage: Storage, file: str) -> dict[str, Stored]:
    """Name -> place of every tensor; only the header of the file is read.

    Raises:
        ValueError: it is not a complete safetensors file.
    """
    path = storage.path(file)
    with storage.filesystem.open_input_file(path) as stream:
        length, num_bytes = stream.read(8), stream.size()
        header = safetensors_header(length + stream.read(MAX_HEADER_BYTES), path, COPY)
    header.pop("__metadata__", None)
    data = 8 + int.from_bytes(length, "little")
    for name, entry in header.items():
        if fault := _misplaced(entry, num_bytes - data):
            raise ValueError(f"{path} is damaged or cut off ({name}: {fault}); {COPY}")
    return {
        name: Stored(storage, file, data + e["data_offsets"][0], e["dtype"], tuple(e["shape"]))
        for name, e in header.items()
    }


def _misplaced(entry: dict[str, Any], num_bytes: int) -> str | None:
    """Why a file with `num_bytes` of data cannot hold a tensor, or None."""
    places = entry["data_offsets"]
    if len(places) != 2 or not places[0] <= places[1] <= num_bytes:
        return f"bytes {places} of {num_bytes}"
    if entry["dtype"] in FLOATS:
        size = math.prod(entry["shape"]) * np.dtype(FLOATS[entry["dtype"]]).itemsize
        if size != places[1] - places[0]:
            return f"shape {entry['shape']} of {entry['dtype']} has {size} bytes, not {places[1] - places[0]}"
    return None


def folder_at_hand(backbone: dict[str, Any], given: Path | None) -> Path:
    """Folder of the backbone that a recipe names, if it is on this machine; nothing is fetched.

    Args:
        backbone: its fingerprint in a recipe.
        given: the folder that the user named, if any.
    Raises:
        ValueError: the backbone is not on this machine, or `given` is another one.
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
    elif backbone["type"] == "Files":
        found = _made_here(backbone)
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


def _made_here(backbone: dict[str, Any]) -> Path | None:
    """A backbone of local files that lorae made itself and keeps in its cache, such as the ViT for MNIST."""
    for folder in sorted((cache_dir() / "backbones").glob("*/")):
        same_names = all((folder / name).is_file() for name in backbone["sha256"])
        if same_names and Files(str(folder)).fingerprint() == backbone:
            return folder
    return None
