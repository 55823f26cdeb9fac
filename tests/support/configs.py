"""Configs of small random backbones."""

from __future__ import annotations

from typing import Any

from transformers import (
    AutoConfig,
)

from lorae.shapes import with_common_names


def config_of(model_type: str, architecture: str = "", **settings: Any) -> dict[str, Any]:
    """As config.json has it, of the sizes that the architecture has when nothing is said."""
    config = AutoConfig.for_model(model_type, **settings).to_dict()
    return with_common_names(config | {"architectures": [architecture]})
