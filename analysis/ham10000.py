"""The tables and figures of pipelines/ham10000.py: LoRA-Ensemble on HAM10000.

python -m analysis.ham10000 lorae-results
"""

from __future__ import annotations

import functools
import sys

from analysis.lora_ensemble import content
from analysis.script import run

main = functools.partial(run, "ham10000", content)

if __name__ == "__main__":
    sys.exit(main())
