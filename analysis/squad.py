"""Which score detects wrong short answers? SQuAD with 135M parameters; twin of pipelines/squad.py.

python -m analysis.squad lorae-results
"""

from __future__ import annotations

import functools
import sys

from analysis.generation import MODELS, content
from analysis.script import run

main = functools.partial(run, "squad", content, options=MODELS)

if __name__ == "__main__":
    sys.exit(main())
