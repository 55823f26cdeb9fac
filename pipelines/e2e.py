"""E2E with GPT-2 medium and large, as in LoRA (arXiv:2106.09685) and VeRA (arXiv:2310.11454), and ensembles.

    lorae sweep pipelines/e2e.py --dry-run
    # 24 trials and a zero-shot row per backbone; 48 members
    python -m analysis.e2e lorae-results

The recipes are theirs: LoRA of rank 4 on queries, keys and values (one layer of GPT-2; the papers adapt
queries and values), VeRA of rank 1,024, batches of 8, five epochs, weight decay 0.01. The papers decode with
a beam of ten, but here answers are greedy: BLEU, NIST, METEOR, ROUGE-L and CIDEr differ from theirs in that.
"""

from dataclasses import replace

from lorae.methods import Lora, Vera
from lorae.sources import Hub
from lorae.tasks import E2E, Generate
from lorae.trial import AdamW, Budget, Sweep, Trial
from pipelines._common import text_smoke

MEDIUM, LARGE = Hub("openai-community/gpt2-medium"), Hub("openai-community/gpt2-large")
LORA = Trial(
    backbone=MEDIUM,
    task=E2E(scoring=Generate(max_new_tokens=96, lockstep=("mean", "logits"))),
    method=Lora(rank=4, alpha=32, targets=("c_attn",)),
    optimizer=AdamW(lr=2e-4, weight_decay=0.01, warmup_frac=0.02),
    budget=Budget(batch_size=8, epochs=5, max_tokens=512),
)
# The learning rate of the paper's table of GPT-2 on E2E
VERA = replace(
    LORA,
    method=Vera(rank=1024, targets=("c_attn",)),
    optimizer=AdamW(lr=1e-1, weight_decay=0.01, warmup_frac=0.02),
)
GRID = {"members": [1, 4], "seed": [0, 1, 2]}
SWEEP = Sweep(
    base=LORA,
    axes={"backbone": [MEDIUM, LARGE], **GRID},
    rivals=[replace(VERA, members=1), replace(VERA, members=4)],
)
SMOKE = text_smoke(SWEEP, {"members": [1, 2]})
