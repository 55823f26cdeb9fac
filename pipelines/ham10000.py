"""LoRA-Ensemble on HAM10000, skin lesions (arXiv:2405.14438), with its reviewers' baselines.

    lorae sweep pipelines/ham10000.py --dry-run      # 60 trials, 264 members
    python -m analysis.ham10000 lorae-results

ViT-B/32, rank 4, 16 members, effective-number class weights; macro F1 stands beside accuracy.
"""

from lorae.methods import Lora, Xavier
from lorae.regularizers import ClassWeights
from lorae.sources import Hub
from lorae.tasks import HAM10000
from lorae.trial import AdamW, Budget, Diversity, Sweep, Trial
from pipelines._common import ATTENTION, encoder_smoke, rivals

LORA = Trial(
    backbone=Hub("google/vit-base-patch32-224-in21k"),
    task=HAM10000(),
    method=Lora(rank=4, alpha=None, targets=ATTENTION, init=Xavier(gain=10)),
    regularizers=(ClassWeights(beta=0.9991),),
    optimizer=AdamW(lr=1e-4, schedule="cosine", warmup_frac=0.06),
    budget=Budget(batch_size=32, epochs=30),
    diversity=Diversity(order="shared"),
)
SWEEP = Sweep(
    base=LORA,
    axes={"members": [1, 2, 4, 8, 16], "seed": [0, 1, 2]},
    rivals=rivals(LORA, 16, full_lr=1e-5, scales_lr=1e-3, head_lr=1e-3),
    paths=True,
)
SMOKE = encoder_smoke(LORA)
