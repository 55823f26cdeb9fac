"""The tables and figures of pipelines/glue_minilm.py: GLUE by LoRA, VeRA and their ensembles.

python -m analysis.glue_minilm lorae-results
"""

from __future__ import annotations

import functools
import sys

from analysis.glue import content
from analysis.script import run

main = functools.partial(run, "glue_minilm", content)

if __name__ == "__main__":
    sys.exit(main())
