"""E2E with 135M parameters: what LoRA's and VeRA's ensembles write; twin of pipelines/e2e_small.py.

python -m analysis.e2e_small lorae-results
"""

from __future__ import annotations

import functools
import sys

from analysis.generation import MODELS, content
from analysis.script import run

main = functools.partial(run, "e2e_small", content, options=MODELS)

if __name__ == "__main__":
    sys.exit(main())
