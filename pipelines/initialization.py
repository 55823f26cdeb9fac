"""Where a member's diversity begins: distributions of A and their spread, and a non-zero B.

    lorae sweep pipelines/initialization.py --dry-run
    # 54 trials and the zero-shot row; 171 members, tuning included
    python -m analysis.initialization lorae-results

LoRA-Ensemble (arXiv:2405.14438) finds large gains best for images; the question is open for language models.
"""

from lorae.methods import Gaussian, Kaiming, Lora, Orthogonal, Xavier
from lorae.trial import Sweep
from pipelines._common import SEVEN_B, TUNE, smoke

DISTRIBUTIONS = [
    Kaiming(),
    Gaussian(std=0.02),
    Gaussian(std=0.5),
    Xavier(gain=1.0),
    Xavier(gain=10.0),
    Xavier(gain=30.0),
    Orthogonal(),
]

SWEEP = Sweep(
    base=SEVEN_B,
    axes={
        "method": [
            *(Lora(rank=8, alpha=32, init=init) for init in DISTRIBUTIONS),
            *(Lora(rank=8, alpha=32, b_std=std) for std in (0.001, 0.01)),
        ],
        "members": [1, 5],
        "seed": [0, 1, 2],
    },
    tune=TUNE,
)
SMOKE = smoke(
    SWEEP,
    {
        "members": [1, 2],
        "method": [Lora(init=Kaiming()), Lora(init=Xavier(gain=10.0)), Lora(b_std=0.01)],
    },
)
