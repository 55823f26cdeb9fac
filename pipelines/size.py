"""Does `lorae size` foresee twenty members from five? On a laptop, in minutes.

    lorae sweep pipelines/size.py        # 8 trials, 40 members
    python -m analysis.size lorae-results

The single LoRA of pipelines/encoders.py, twenty members of two seeds, and four times its test sentences. The law
is fitted to pools of five of the members, on half of the test sentences, and compared with what all the others
give at ten and at twenty.
"""

from dataclasses import replace

from lorae.tasks import Head, PlotSummaries, RottenTomatoes
from lorae.trial import Sweep
from pipelines.encoders import LORA

SWEEP = Sweep(
    base=replace(
        LORA, task=RottenTomatoes(scoring=Head(pool="mean")).subset(train=112, validation=56, test=960)
    ),
    axes={"members": [1, 5, 10, 20], "seed": [0, 1]},
    ood=[PlotSummaries(num_test=112)],
)
