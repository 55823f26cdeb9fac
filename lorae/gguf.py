"""GGUF weights to a folder in hub layout, so that every later load takes under a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def convert(gguf: Path, folder: Path) -> None:
    """Write config.json, fp32 safetensors and tokenizer of a GGUF file to `folder`.

    The weights keep the values they have after dequantisation: a Q4 file has passed through 4 bits.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    quantised = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, trust_remote_code=False
    )
    config: Any = quantised.config
    del config.quantization_config  # else save_pretrained refuses: the tensors are plain floats by now
    plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(quantised.state_dict())
    plain.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    tokenizer.save_pretrained(folder)
