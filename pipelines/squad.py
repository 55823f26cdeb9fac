"""Which score, from which source of variation, detects wrong short answers? SQuAD with 135M parameters.

    lorae sweep pipelines/squad.py --data-root DIR
    # 12 trials and the zero-shot row; 24 members
    python -m analysis.squad lorae-results

With 384 training examples, SmolLM2-135M-Instruct answers more than a third of the questions exactly: enough
answers are right, and enough are wrong, to judge scores. Members alone, five samples of each, and four
members together; without a regulariser and with decay on B; three seeds.
"""

from lorae.methods import Lora
from lorae.regularizers import DecayB
from lorae.tasks import Generate, SQuAD
from lorae.trial import AdamW, Budget, Sweep, Trial
from pipelines._common import SMOLLM2_135M, text_smoke

SWEEP = Sweep(
    base=Trial(
        backbone=SMOLLM2_135M,
        task=SQuAD(scoring=Generate(max_new_tokens=48, samples=5, lockstep=("mean", "logits"))).subset(
            train=384, validation=96, test=384
        ),
        method=Lora(rank=8, alpha=16),
        optimizer=AdamW(lr=1e-3),
        budget=Budget(batch_size=8, epochs=1, max_tokens=384),
    ),
    axes={
        "regularizers": [(), (DecayB(strength=50.0),)],
        "members": [1, 4],
        "seed": [0, 1, 2],
    },
)
SMOKE = text_smoke(SWEEP, {"members": [1, 2], "seed": [0]})
