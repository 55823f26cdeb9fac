"""The regularisers of arXiv:2310.00035 and every combination of them, alone and ensembled, on six tasks.

    lorae sweep pipelines/regularization.py --dry-run
    # 288 trials and a zero-shot row per task; 912 members, tuning included
    python -m analysis.regularization lorae-results

Each recipe has its own learning rate, chosen on validation, so that no regulariser gains from a rate that is
too large for the others. There are three seeds, and an interval for each difference.
"""

from lorae.regularizers import KL, DecayB, EarlyStopping
from lorae.tasks import MMLU, ArcChallenge, ArcEasy, CommonsenseQA, OpenBookQA
from lorae.trial import Sweep
from pipelines._common import THIRTEEN_B, TUNE, smoke

KL_TERM, DECAY, EARLY = KL(beta=0.1), DecayB(strength=100.0), EarlyStopping(patience=2)

SWEEP = Sweep(
    base=THIRTEEN_B,
    axes={
        "task": [
            CommonsenseQA(),
            OpenBookQA(),
            MMLU("social_science"),
            MMLU("stem"),
            ArcEasy(),
            ArcChallenge(),
        ],
        "regularizers": [
            (),
            (KL_TERM,),
            (DECAY,),
            (EARLY,),
            (KL_TERM, DECAY),
            (KL_TERM, EARLY),
            (DECAY, EARLY),
            (KL_TERM, DECAY, EARLY),
        ],
        "members": [1, 5],
        "seed": [0, 1, 2],
    },
    tune=TUNE,
)
SMOKE = smoke(SWEEP, {"members": [1, 2]})
