"""The tables and figures of pipelines/digits.py: ensembles of a ViT on digits.

python -m analysis.digits lorae-results
"""

from __future__ import annotations

import functools
import sys

from analysis.lora_ensemble import content
from analysis.script import run

main = functools.partial(run, "digits", content)

if __name__ == "__main__":
    sys.exit(main())
