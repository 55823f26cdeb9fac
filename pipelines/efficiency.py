"""Is an ensemble better than one adapter of the same cost? LoRA and VeRA at matched budgets.

    lorae sweep pipelines/efficiency.py --dry-run
    # 120 trials and the zero-shot row; 324 members, tuning included
    python -m analysis.efficiency lorae-results

Each ensemble is compared with a single adapter with as many parameters (rank M * r), one trained M times as
long, M samples of one member (TFB, arXiv:2412.05723), and its own temperature-scaled member. All are tuned
over the same learning rates; VeRA needs larger ones, longer training smaller ones.
"""

from lorae.methods import Lora, Vera
from lorae.regularizers import DecayB
from lorae.trial import Sweep
from pipelines._common import SEVEN_B, smoke

SWEEP = Sweep(
    base=SEVEN_B,
    axes={
        "method": [Lora(rank=8, alpha=32), Vera(rank=256)],
        "regularizers": [(), (DecayB(strength=100.0),)],
        "members": [1, 2, 5, 10],
        "seed": [0, 1, 2],
    },
    companions=True,
    tune={"optimizer.lr": (5e-5, 1.5e-4, 5e-4, 1.5e-3)},
)
SMOKE = smoke(SWEEP, {"members": [1, 2], "regularizers": [()]}, tune={"optimizer.lr": (2e-3, 6e-3)})
