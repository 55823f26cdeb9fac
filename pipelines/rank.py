"""Ranks 1 to 64 at equal alpha / rank: does a larger adapter need an ensemble more, or replace it?

lorae sweep pipelines/rank.py --dry-run
# 84 trials and a zero-shot row per task; 266 members, tuning included
python -m analysis.rank lorae-results
"""

from lorae.methods import Lora
from lorae.tasks import ArcChallenge, OpenBookQA
from lorae.trial import Sweep
from pipelines._common import SEVEN_B, TUNE, smoke

SWEEP = Sweep(
    base=SEVEN_B,
    axes={
        "task": [OpenBookQA(), ArcChallenge()],
        "method": [Lora(rank=rank, alpha=4 * rank) for rank in (1, 2, 4, 8, 16, 32, 64)],
        "members": [1, 5],
        "seed": [0, 1, 2],
    },
    tune=TUNE,
)
SMOKE = smoke(SWEEP, {"members": [1, 2], "method": [Lora(rank=rank, alpha=4 * rank) for rank in (1, 4, 16)]})
