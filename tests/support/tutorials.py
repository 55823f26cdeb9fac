"""The files that a tutorial shows."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"```python\n# (\w+\.py)\n(.*?)```", re.DOTALL)


def blocks(page: str) -> dict[str, str]:
    """Files of a page, by name."""
    return dict(BLOCK.findall((DOCS / page).read_text()))


def with_backbone(code: str, tiny: str) -> str:
    """A page's sweep file, or a notebook's cell, on another backbone."""
    code, replaced = re.subn(r"(?ms)^BACKBONE = (Hub\(.*?\)|Wheel\(.*?^\))$", f"BACKBONE = {tiny}", code)
    assert replaced == 1
    return code
