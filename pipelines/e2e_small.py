"""E2E with a model of 135M parameters: does an ensemble of adapters write better than one, and at what size?

    lorae sweep pipelines/e2e_small.py --data-root DIR
    # 15 trials and the zero-shot row; 24 members
    python -m analysis.e2e_small lorae-results

SmolLM2-135M-Instruct is trained on 1,000 pairs and tested on all 630 meanings of the test set with all their
references. LoRA and VeRA, single and four together, and the soup of LoRA's four; three seeds. Nothing is
tuned: the learning rates are those at which single members of another seed did best on validation.
"""

from dataclasses import replace

from lorae.methods import Lora, Vera
from lorae.tasks import E2E, Generate
from lorae.trial import AdamW, Budget, Sweep, Trial
from pipelines._common import SMOLLM2_135M, text_smoke

LORA = Trial(
    backbone=SMOLLM2_135M,
    task=E2E(scoring=Generate(max_new_tokens=96)).subset(train=1000, validation=64),
    method=Lora(rank=8, alpha=16),
    optimizer=AdamW(lr=1e-3),
    budget=Budget(batch_size=8, epochs=1, max_tokens=256),
)
VERA = replace(LORA, method=Vera(rank=256), optimizer=AdamW(lr=1e-2))
SWEEP = Sweep(
    base=LORA,
    axes={"members": [1, 4], "seed": [0, 1, 2]},
    rivals=[
        replace(LORA, members=4, combine="weights"),
        replace(VERA, members=1),
        replace(VERA, members=4),
    ],
)
SMOKE = text_smoke(SWEEP, {"members": [1, 2], "seed": [0]})
