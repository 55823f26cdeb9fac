"""Are members less certain on other questions? Near and far OOD sets, every score, one to five members.

    lorae sweep pipelines/ood.py --dry-run
    # 54 trials and a zero-shot row per task; 114 members, tuning included
    python -m analysis.ood lorae-results

For members trained on one task, every other task is out of distribution; all tasks have the same prompt, so
that a detector sees the questions and not the template. `lorae predict lorae-results --task ...` adds a set
later.
"""

from lorae.regularizers import KL, DecayB
from lorae.tasks import MMLU, ArcChallenge, ArcEasy, CommonsenseQA, OpenBookQA, SocialIQA
from lorae.trial import Sweep
from pipelines._common import SEVEN_B, TUNE, smoke

SWEEP = Sweep(
    base=SEVEN_B,
    axes={
        "task": [OpenBookQA(), ArcEasy()],
        "regularizers": [(), (KL(beta=0.1),), (DecayB(strength=100.0),)],
        "members": [1, 3, 5],
        "seed": [0, 1, 2],
    },
    ood=[
        ArcEasy(),
        ArcChallenge(),
        OpenBookQA(),
        CommonsenseQA(),
        SocialIQA(),
        MMLU("college_chemistry"),
        MMLU("college_physics"),
        MMLU("humanities"),
    ],
    tune=TUNE,
)
SMOKE = smoke(SWEEP, {"members": [1, 2], "regularizers": [(), (DecayB(strength=50.0),)]})
