"""The tables and figures of pipelines/encoders.py: the sentence encoder's ensembles and their rivals.

python -m analysis.encoders lorae-results
"""

from __future__ import annotations

import functools
import sys

from analysis.lora_ensemble import content
from analysis.script import run

main = functools.partial(run, "encoders", content)

if __name__ == "__main__":
    sys.exit(main())
