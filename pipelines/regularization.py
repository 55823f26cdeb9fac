"""Each regulariser and every combination of them, alone and ensembled, on six tasks (arXiv:2310.00035).

    lorae sweep pipelines/regularization.py --dry-run
    # 288 trials and a zero-shot row per task; 720 members
    python -m analysis.regularization lorae-results

The paper's comparison with what its tables leave out: three seeds, every combination, and the intervals of
each difference.
"""

from lorae.regularizers import KL, DecayB, EarlyStopping
from lorae.tasks import MMLU, ArcChallenge, ArcEasy, CommonsenseQA, OpenBookQA
from lorae.trial import Sweep
from pipelines._common import WANG, smoke

KL_TERM, DECAY, EARLY = KL(beta=0.1), DecayB(strength=100.0), EarlyStopping(patience=2)

SWEEP = Sweep(
    base=WANG,
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
)
SMOKE = smoke(SWEEP, {"members": [1, 2]})
