"""How sensitive is each regulariser to its strength, for one adapter and for five?

lorae sweep pipelines/strength.py --dry-run
# 96 trials and the zero-shot row; 304 members, tuning included
python -m analysis.strength lorae-results
"""

from lorae.regularizers import KL, AdapterDropout, DecayB, EarlyStopping
from lorae.trial import Sweep
from pipelines._common import SEVEN_B, TUNE, smoke

SWEEP = Sweep(
    base=SEVEN_B,
    axes={
        "regularizers": [
            (),
            *((KL(beta=beta),) for beta in (0.01, 0.03, 0.1, 0.3, 1.0)),
            *((DecayB(strength=strength),) for strength in (1.0, 10.0, 100.0, 1000.0)),
            *((EarlyStopping(patience=patience, every=50),) for patience in (1, 2, 4)),
            *((AdapterDropout(p=p),) for p in (0.1, 0.2, 0.4)),
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
        "regularizers": [
            (),
            *((KL(beta=beta),) for beta in (0.1, 1.0)),
            *((DecayB(strength=strength),) for strength in (10.0, 50.0, 200.0)),
        ],
    },
)
