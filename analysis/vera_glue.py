"""The tables and figures of pipelines/vera_glue.py: GLUE by LoRA, VeRA and their ensembles.

python -m analysis.vera_glue lorae-results
"""

from __future__ import annotations

import functools
import sys

from analysis.glue import content
from analysis.script import run

main = functools.partial(run, "vera_glue", content)

if __name__ == "__main__":
    sys.exit(main())
