"""How much of an ensemble's gain does one member keep that learns from it? On a laptop, in minutes.

    lorae sweep pipelines/distill.py         # 15 trials, 29 members, tuning included
    python -m analysis.distill lorae-results

MiniLM-L6 on Rotten Tomatoes sentiment by the recipe of pipelines/encoders.py, three seeds. Four LoRA members,
and single members of the same recipe whose loss adds the divergence from the mean of these four on the
training sentences, with half (beta 1) and nine tenths (beta 9) of the weight; beside them a member that
learns from one other, which shows what soft targets do without an ensemble. Learning rates are tuned for
each, first for the teachers. The OOD set is plot summaries from the same world of films.
"""

from dataclasses import replace

from lorae.regularizers import Distill
from lorae.tasks import Head, PlotSummaries, RottenTomatoes
from lorae.trial import Sweep, Trial
from lorae.trial.tuning import Times
from pipelines._common import encoder_smoke
from pipelines.encoders import LORA as ENCODER

LORA = replace(
    ENCODER, task=RottenTomatoes(scoring=Head(pool="mean")).subset(train=112, validation=96, test=600)
)


def taught(lora: Trial, members: int) -> list[Trial]:
    """The ensemble of the recipe, and what learns from it."""
    students = [Distill(members), Distill(members, beta=9.0), Distill(1)]
    return [replace(lora, members=members), *(replace(lora, regularizers=(one,)) for one in students)]


SWEEP = Sweep(
    base=LORA,
    axes={"seed": [0, 1, 2]},
    rivals=taught(LORA, 4),
    ood=[PlotSummaries(num_test=150)],
    tune={"optimizer.lr": Times(0.3, 1, 3)},
    tune_members=1,
)
SMALL = encoder_smoke(LORA)
SMOKE = replace(SMALL, axes={}, rivals=taught(SMALL.base, 2), paths=False)
