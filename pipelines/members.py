"""How many members are worth training? One to twenty, without and with regularisation.

    lorae sweep pipelines/members.py --dry-run
    # 234 trials and a zero-shot row per task; 384 members, tuning included
    python -m analysis.members lorae-results

Published work stops at five members, and one study finds that twenty are no better (arXiv:2402.12264). Twenty
members are trained once; every smaller ensemble is a view of their logits. Each ensemble is compared with the
soup of its members: one model with their mean weights, at one forward pass (arXiv:2203.05482).
"""

from lorae.regularizers import KL, DecayB
from lorae.tasks import ArcChallenge, OpenBookQA
from lorae.trial import Sweep
from pipelines._common import SEVEN_B, TUNE, smoke

SWEEP = Sweep(
    base=SEVEN_B,
    axes={
        "task": [OpenBookQA(), ArcChallenge()],
        "regularizers": [(), (KL(beta=0.1),), (DecayB(strength=100.0),)],
        "combine": ["probs", "weights"],
        "members": [1, 2, 3, 5, 10, 15, 20],
        "seed": [0, 1, 2],
    },
    tune=TUNE,
)
SMOKE = smoke(SWEEP, {"members": [1, 2, 3], "regularizers": [(), (DecayB(strength=50.0),)]})
