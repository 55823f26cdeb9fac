"""Do ensembles calibrate a fine-tuned LLM, and does regularising? On a laptop, in minutes.

    lorae sweep pipelines/demo.py          # 8 trials and the zero-shot row; at most 20 members
    python -m analysis.demo lorae-results

SmolLM2-135M-Instruct on Rotten Tomatoes sentiment: single LoRA members and ensembles of three, without a
regulariser and with decay on B (arXiv:2310.00035), two pools of three members each. The learning rate of both
recipes is tuned first, over three values by two single members each. The OOD set is plot summaries from the
same world of films.
"""

from lorae.methods import Lora
from lorae.regularizers import DecayB
from lorae.tasks import PlotSummaries, RottenTomatoes
from lorae.trial import AdamW, Budget, Sweep, Trial
from pipelines._common import SMOLLM2_135M, smoke

SWEEP = Sweep(
    base=Trial(
        backbone=SMOLLM2_135M,
        task=RottenTomatoes().subset(train=40, validation=40, test=192),
        method=Lora(rank=8, alpha=16),
        optimizer=AdamW(lr=3e-3),
        budget=Budget(batch_size=8, epochs=3, max_tokens=128),
        precision="fp32",  # any CPU has it, and members are exact to rounding
    ),
    axes={
        "regularizers": [(), (DecayB(strength=50.0),)],
        "members": [1, 3],
        "seed": [0, 1],
    },
    tune={"optimizer.lr": (1e-3, 3e-3, 1e-2)},
    tune_members=2,
    ood=[PlotSummaries(num_test=48)],
)
SMOKE = smoke(SWEEP, {"members": [1, 2], "seed": [0]})
