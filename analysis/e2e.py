"""LoRA and VeRA on E2E: what their ensembles write, next to the published models; twin of pipelines/e2e.py.

python -m analysis.e2e lorae-results
"""

from __future__ import annotations

import functools
import sys

from analysis.generation import MODELS, content
from analysis.script import run

main = functools.partial(run, "e2e", content, options=MODELS)

if __name__ == "__main__":
    sys.exit(main())
