"""The tables and figures of pipelines/sst2.py: LoRA-Ensemble on SST-2.

python -m analysis.sst2 lorae-results
"""

from __future__ import annotations

import functools
import sys

from analysis.lora_ensemble import content
from analysis.script import run

main = functools.partial(run, "sst2", content)

if __name__ == "__main__":
    sys.exit(main())
