"""Does `lorae size` predict twenty members from five? On a laptop.

    lorae sweep pipelines/extrapolation.py        # 8 trials, 40 members
    python -m analysis.extrapolation lorae-results

The single LoRA of pipelines/encoders.py, with twenty members for each of two seeds and four times as many
test sentences. The law fitted to pools of five members, on one half of the sentences, is compared with
ensembles of ten and twenty of all other members, on the same half and on the other.
"""

from dataclasses import replace

from lorae.tasks import Head, PlotSummaries, RottenTomatoes
from lorae.trial import Sweep
from pipelines.encoders import LORA
from pipelines.encoders import SMOKE as SMALL

SWEEP = Sweep(
    base=replace(
        LORA, task=RottenTomatoes(scoring=Head(pool="mean")).subset(train=112, validation=56, test=960)
    ),
    axes={"members": [1, 5, 10, 20], "seed": [0, 1]},
    ood=[PlotSummaries(num_test=112)],
)
SMOKE = replace(SMALL, axes={"members": [1, 4]}, rivals=(), paths=False)
