"""The study on a sentence encoder, where trainings are cheap: five members beside every rival, five seeds.

    lorae sweep pipelines/study_encoders.py --dry-run
    # 180 trials, 450 members, tuning included
    python -m analysis.study lorae-results

The recipe and the rivals of pipelines/encoders.py, at five forward passes per prediction, each tuned over
three learning rates around its own, on film reviews and on kinds of questions.
"""

from dataclasses import replace

from lorae.methods import Blob, Rank1BNN
from lorae.tasks import TREC, Head, PlotSummaries, RottenTomatoes
from lorae.trial import Sweep
from lorae.trial.tuning import Times
from pipelines._common import encoder_smoke, rivals
from pipelines.encoders import LORA as ENCODER

SCORING = Head(pool="mean")
TASKS = [
    RottenTomatoes(scoring=SCORING).subset(train=256, validation=128, test=512),
    TREC(scoring=SCORING).subset(train=256, validation=128, test=500),
]
LORA = replace(ENCODER, task=TASKS[0])
PLOTS = PlotSummaries(num_test=256)
TUNE = {"optimizer.lr": Times(0.3, 1, 3)}

SWEEP = Sweep(
    base=LORA,
    axes={"task": TASKS, "members": [1, 2, 5], "seed": [0, 1, 2, 3, 4]},
    rivals=rivals(
        LORA,
        5,
        full_lr=5e-5,
        scales_lr=5e-3,
        head_lr=1e-2,
        wide_lr=7e-4,
        long_lr=3.5e-4,
        blob=Blob(std_root=0.2, gamma=1000.0, kl_lr=0.002),
        rank1=Rank1BNN(prior_std=1.0, annealed_frac=1.0),
    ),
    ood=[PLOTS],
    tune=TUNE,
)
SMOKE = encoder_smoke(LORA)
