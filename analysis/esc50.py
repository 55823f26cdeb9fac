"""The tables and figures of pipelines/esc50.py: LoRA-Ensemble on ESC-50.

python -m analysis.esc50 lorae-results
"""

from __future__ import annotations

import functools
import sys

from analysis.lora_ensemble import content
from analysis.script import run

main = functools.partial(run, "esc50", content)

if __name__ == "__main__":
    sys.exit(main())
