"""Texts that small members write on the embedded task; twin of pipelines/generation_demo.py.

python -m analysis.generation_demo lorae-results
"""

from __future__ import annotations

import functools
import sys

from analysis.generation import MODELS, content
from analysis.script import run

main = functools.partial(run, "generation_demo", content, options=MODELS)

if __name__ == "__main__":
    sys.exit(main())
