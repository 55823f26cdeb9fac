"""Where does an ensemble saturate? One to twenty members of a sentence encoder, five seeds, two tasks.

    lorae sweep pipelines/study_members.py --dry-run
    # 50 trials; 208 members, tuning included
    python -m analysis.study lorae-results

The single LoRA of pipelines/study_encoders.py, whose members are shared.
"""

from dataclasses import replace

from lorae.trial import Sweep
from pipelines.study_encoders import LORA, PLOTS, TASKS, TUNE
from pipelines.study_encoders import SMOKE as SMALL

SWEEP = Sweep(
    base=LORA,
    axes={"task": TASKS, "members": [1, 2, 5, 10, 20], "seed": [0, 1, 2, 3, 4]},
    ood=[PLOTS],
    tune=TUNE,
)
SMOKE = replace(SMALL, axes={"members": [1, 4]}, rivals=(), paths=False)
