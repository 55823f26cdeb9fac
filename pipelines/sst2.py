"""LoRA-Ensemble on SST-2 with BERT, after the text experiment of arXiv:2405.14438, with reviewers' baselines.

    lorae sweep pipelines/sst2.py --dry-run      # 60 trials, 264 members
    python -m analysis.sst2 lorae-results

BERT-base with a classification head per member; the OOD set is plot summaries of films. The authors' code
(prs-eth/LoRA-Ensemble, be52ff5) has no such experiment: rank, rate, schedule and batch size are those of its
experiments on images, epochs and tokens are ours.
"""

from lorae.methods import Lora, Xavier
from lorae.sources import Hub
from lorae.tasks import SST2, Head, PlotSummaries
from lorae.trial import AdamW, Budget, Diversity, Sweep, Trial
from pipelines._common import ATTENTION, encoder_smoke, rivals

LORA = Trial(
    backbone=Hub("google-bert/bert-base-uncased"),
    task=SST2(scoring=Head()),
    method=Lora(rank=8, alpha=None, targets=ATTENTION, init=Xavier(gain=10)),
    optimizer=AdamW(lr=1e-4, schedule="cosine", warmup_frac=0.06),
    budget=Budget(batch_size=32, epochs=3, max_tokens=128),
    diversity=Diversity(order="shared"),
)
SWEEP = Sweep(
    base=LORA,
    axes={"members": [1, 2, 4, 8, 16], "seed": [0, 1, 2]},
    rivals=rivals(LORA, 16, full_lr=2e-5, scales_lr=1e-3, head_lr=1e-3),
    ood=[PlotSummaries()],
    paths=True,
)
SMOKE = encoder_smoke(LORA)
