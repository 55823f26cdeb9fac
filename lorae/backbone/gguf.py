"""Convert GGUF weights to a folder in hub layout, so that every later load takes under a second.

The header is first read with bounds: the package `gguf` creates an object for every element that a header
claims to have, which takes minutes if the header lies.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # type of a value -> bytes
STRING, ARRAY = 8, 9
VERSIONS = 2, 3
MAX_ELEMENTS = 2**21  # in all lists: a vocabulary of 256,000 has some 1,300,000
MAX_TENSORS, MAX_SETTINGS, MAX_DIMENSIONS = 2**16, 2**12, 4
MAX_STRING_BYTES = 2**20  # a chat template has a few thousand


def convert(gguf: Path, folder: Path) -> None:
    """Write config.json, fp32 safetensors and tokenizer of a GGUF file to `folder`.

    The weights are the dequantised values: those of a Q4 file have passed through 4 bits.

    Raises:
        ValueError: the file is damaged or cut off.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    check_header(gguf)
    logging.disable_progress_bar()
    quantised = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, trust_remote_code=False
    )
    config: Any = quantised.config
    del config.quantization_config  # or save_pretrained refuses; the tensors are plain floats now
    plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(quantised.state_dict())
    plain.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    tokenizer.save_pretrained(folder)


def check_header(path: Path) -> None:
    """Refuse a GGUF file whose header claims more than the file holds, or more than any model has.

    Raises:
        ValueError: names the file, and says what is wrong.
    """
    with path.open("rb") as stream:
        try:
            _Header(stream, path.stat().st_size).check()
        except (ValueError, struct.error) as error:
            raise ValueError(
                f"{path} is no GGUF file that can be read: {error}; copy the file again"
            ) from error


class _Header:
    def __init__(self, stream: BinaryIO, num_bytes: int) -> None:
        self.stream, self.num_bytes, self.num_elements = stream, num_bytes, 0

    def check(self) -> None:
        if self.stream.read(4) != b"GGUF":
            raise ValueError("it does not begin as one")
        version, num_tensors, num_settings = self.read("<I"), self.read("<Q"), self.read("<Q")
        if version not in VERSIONS or num_tensors > MAX_TENSORS or num_settings > MAX_SETTINGS:
            raise ValueError(f"version {version}, {num_tensors} tensors, {num_settings} settings")
        alignment = 32
        for _ in range(num_settings):
            name, kind = self.string(), self.read("<I")
            if name == b"general.alignment" and kind == 4:
                alignment = self.read("<I")
            else:
                self.skip(kind)
        ends = [self.tensor() for _ in range(num_tensors)]
        if alignment < 1 or alignment > 2**16:
            raise ValueError(f"tensors aligned to {alignment} bytes")
        begin = math.ceil(self.stream.tell() / alignment) * alignment
        if begin + max(ends, default=0) > self.num_bytes:
            raise ValueError(f"its tensors end at byte {begin + max(ends)}, the file at {self.num_bytes}")

    def read(self, form: str) -> Any:
        return struct.unpack(form, self.stream.read(struct.calcsize(form)))[0]

    def string(self) -> bytes:
        size = self.read("<Q")
        if size > MAX_STRING_BYTES:
            raise ValueError(f"a text of {size} bytes")
        return self.stream.read(size)

    def skip(self, kind: int) -> None:
        """Skip a value."""
        if kind == ARRAY:
            self.skip_list()
        elif kind == STRING:
            self.string()
        elif kind in SIZES:
            self.seek(SIZES[kind])
        else:
            raise ValueError(f"a setting of type {kind}")

    def skip_list(self) -> None:
        kind, size = self.read("<I"), self.read("<Q")
        self.num_elements += size
        if self.num_elements > MAX_ELEMENTS:
            raise ValueError(f"lists of {self.num_elements} elements, at most {MAX_ELEMENTS} are read")
        if kind == STRING:
            for _ in range(size):
                self.seek(self.read("<Q"))
        elif kind in SIZES:
            self.seek(size * SIZES[kind])
        else:
            raise ValueError(f"a list of type {kind}")

    def seek(self, num_bytes: int) -> None:
        if self.stream.tell() + num_bytes > self.num_bytes:
            raise ValueError("its header is cut off")
        self.stream.seek(num_bytes, 1)

    def tensor(self) -> int:
        """Where a tensor ends, from the beginning of the data."""
        from gguf import GGML_QUANT_SIZES

        self.string()
        num_dimensions = self.read("<I")
        if num_dimensions > MAX_DIMENSIONS:
            raise ValueError(f"a tensor of {num_dimensions} dimensions")
        shape, kind, begin = (
            [self.read("<Q") for _ in range(num_dimensions)],
            self.read("<I"),
            self.read("<Q"),
        )
        known = {int(one): size for one, size in GGML_QUANT_SIZES.items()}
        if kind not in known:
            raise ValueError(f"a tensor of type {kind}")
        block, block_bytes = known[kind]
        return begin + math.prod(shape) // block * block_bytes
