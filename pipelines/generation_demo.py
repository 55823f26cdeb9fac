"""Short answers from a paragraph, by an ensemble of a small model: on a laptop, in minutes, without a network
once the model and the questions are in the cache.

    lorae sweep pipelines/generation_demo.py      # 3 trials and the zero-shot row; 3 members
    python -m analysis.generation_demo lorae-results

SmolLM2-135M-Instruct on Disfl-QA, questions as people speak them: three members, alone and together, without
tuning, two samples of each. A model of this size answers few questions exactly; the demo shows how answers
and their uncertainty are stored and compared, not how good a large model would be.
"""

from lorae.methods import Lora
from lorae.tasks import DisflQA, Generate
from lorae.trial import AdamW, Budget, Sweep, Trial
from pipelines._common import SMOLLM2_135M, text_smoke

SWEEP = Sweep(
    base=Trial(
        backbone=SMOLLM2_135M,
        task=DisflQA(scoring=Generate(max_new_tokens=24, samples=2)).subset(
            train=160, validation=24, test=96
        ),
        method=Lora(rank=8, alpha=16),
        optimizer=AdamW(lr=2e-3),
        budget=Budget(batch_size=8, epochs=1, max_tokens=320),
        precision="fp32",  # any CPU has it
    ),
    axes={"members": [1, 3], "combine": ["probs", "weights"]},
)
SMOKE = text_smoke(SWEEP, {"members": [1, 2]})
