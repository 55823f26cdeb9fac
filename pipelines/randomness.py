"""Initialisation, data order, both or neither: which source of randomness makes members differ?

    lorae sweep pipelines/randomness.py --dry-run
    # 48 trials and the zero-shot row; 248 members, tuning included
    python -m analysis.randomness lorae-results

The 2 x 2 factorial crossed with regularisation; arXiv:2310.00035 finds that under regularisation the data
order dominates. With neither source, all members are identical and trained once: the control.
"""

from lorae.regularizers import KL, DecayB
from lorae.trial import Diversity, Sweep
from pipelines._common import SEVEN_B, TUNE, smoke

KL_TERM, DECAY = KL(beta=0.1), DecayB(strength=100.0)

SWEEP = Sweep(
    base=SEVEN_B,
    axes={
        "diversity": [
            Diversity(),
            Diversity(order="shared"),
            Diversity(init="shared"),
            Diversity(init="shared", order="shared"),
        ],
        "regularizers": [(), (KL_TERM,), (DECAY,), (KL_TERM, DECAY)],
        "members": [5],
        "seed": [0, 1, 2],
    },
    tune=TUNE,
)
SMOKE = smoke(SWEEP, {"members": [2], "regularizers": [(), (DecayB(strength=50.0),)]})
