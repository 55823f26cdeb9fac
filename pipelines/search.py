"""Tune before comparing: learning rate and strength of the decay on B, by validation NLL, for one seed.

    lorae sweep pipelines/search.py --dry-run      # the first of 16 points for each of two regularisers:
    python -m analysis.search lorae-results        # 4 trials and the zero-shot row; 10 members

Each regulariser has its own study, so none is compared at the learning rate that suits another. The whole
search trains at most 160 members for 64 rows; use what it finds in a sweep over seeds.
"""

from lorae.regularizers import DecayB
from lorae.search import LogUniform, Optuna
from lorae.trial import Sweep
from pipelines._common import SEVEN_B, smoke

SWEEP = Sweep(
    base=SEVEN_B,
    axes={
        "regularizers": [(), (DecayB(strength=100.0),)],
        "members": [1, 5],
        "optimizer.lr": LogUniform(1e-5, 5e-4),
        "regularizers.DecayB.strength": LogUniform(1.0, 1000.0),
    },
    search=Optuna(num_samples=16),
)
SMOKE = smoke(
    SWEEP,
    {
        "members": [1, 2],
        "optimizer.lr": LogUniform(2e-4, 5e-3),
        "regularizers.DecayB.strength": LogUniform(1.0, 150.0),
    },
    Optuna(num_samples=4),
)
