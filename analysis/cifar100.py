"""The tables and figures of pipelines/cifar100.py: LoRA-Ensemble on CIFAR-100.

python -m analysis.cifar100 lorae-results
"""

from __future__ import annotations

import functools
import sys

from analysis.lora_ensemble import content
from analysis.script import run

main = functools.partial(run, "cifar100", content)

if __name__ == "__main__":
    sys.exit(main())
