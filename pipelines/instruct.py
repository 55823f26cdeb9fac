"""Instructions: members and ensembles trained on Alpaca-cleaned answer MT-Bench's prompts.

    lorae sweep pipelines/instruct.py --dry-run
    # 12 trials and the zero-shot row; 32 members, tuning included
    python -m analysis.instruct lorae-results

MT-Bench is the OOD set. Its answers are stored like all others and can be written in the judges' JSON Lines;
no judge is included. VeRA's authors trained on the same data (arXiv:2310.11454, section 4.3).
"""

from dataclasses import replace

from lorae.methods import Lora, Vera
from lorae.tasks import Alpaca, Generate, MTBench
from lorae.trial import AdamW, Budget, Sweep
from pipelines._common import SEVEN_B, TUNE, text_smoke

WRITING = Generate(max_new_tokens=320, lockstep=("mean",))
LORA = replace(
    SEVEN_B,
    task=Alpaca(scoring=WRITING).subset(train=10_000, validation=500, test=500),
    method=Lora(rank=8, alpha=16),
    optimizer=AdamW(lr=2e-4),
    budget=Budget(batch_size=16, epochs=1, max_tokens=1024),
)
VERA = replace(LORA, method=Vera(rank=1024), optimizer=AdamW(lr=1e-2))
SWEEP = Sweep(
    base=LORA,
    axes={"members": [1, 4], "seed": [0, 1, 2]},
    rivals=[replace(VERA, members=1), replace(VERA, members=4)],
    ood=[MTBench(scoring=WRITING)],
    tune=TUNE,
)
SMOKE = text_smoke(SWEEP, {"members": [1, 2]})
