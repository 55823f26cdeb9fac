"""Do ensembles calibrate a fine-tuned LLM, and which regulariser helps? On a laptop, in minutes.

    lorae sweep pipelines/demo.py          # 9 trials and the zero-shot row; 12 members
    python -m analysis.demo lorae-results

SmolLM2-135M-Instruct on Rotten Tomatoes sentiment, one to four LoRA members, without and with the two
regularisers of arXiv:2310.00035 that change the loss or the step. The OOD set is plot summaries of the same
films' world.
"""

from lorae.methods import Lora
from lorae.regularizers import KL, DecayB
from lorae.tasks import PlotSummaries, RottenTomatoes
from lorae.trial import AdamW, Budget, Sweep, Trial
from pipelines._common import SMOLLM2_135M, smoke

SWEEP = Sweep(
    base=Trial(
        backbone=SMOLLM2_135M,
        task=RottenTomatoes().subset(train=64, validation=100, test=256),
        method=Lora(rank=8, alpha=16),
        optimizer=AdamW(lr=2e-3),
        budget=Budget(batch_size=8, epochs=4, max_tokens=128),
        precision="fp32",  # any CPU has it, and members are exact to rounding
    ),
    axes={
        "regularizers": [(), (KL(beta=0.3),), (DecayB(strength=50.0),)],
        "members": [1, 2, 4],
    },
    ood=[PlotSummaries(num_test=128)],
)
SMOKE = smoke(SWEEP, {"members": [1, 2], "regularizers": [(), (DecayB(strength=50.0),)]})
