"""LoRA-Ensemble on CIFAR-100 (table 1 and the OOD tables of arXiv:2405.14438), with its reviewers' baselines.

    lorae sweep pipelines/cifar100.py --dry-run      # 75 trials, 312 members
    python -m analysis.cifar100 lorae-results

ViT-B/32, rank 8, 16 members that share each batch; OOD sets SVHN and CIFAR-10.
"""

from lorae.methods import Lora, Xavier
from lorae.sources import Hub
from lorae.tasks import CIFAR10, CIFAR100, SVHN
from lorae.trial import AdamW, Budget, Diversity, Sweep, Trial
from pipelines._common import ATTENTION, encoder_smoke, rivals

LORA = Trial(
    backbone=Hub("google/vit-base-patch32-224-in21k"),
    task=CIFAR100(),
    method=Lora(rank=8, alpha=None, targets=ATTENTION, init=Xavier(gain=10)),
    optimizer=AdamW(lr=1e-4, schedule="cosine", warmup_frac=0.02),
    budget=Budget(batch_size=32, epochs=16),
    diversity=Diversity(order="shared"),
)
SWEEP = Sweep(
    base=LORA,
    axes={
        "members": [1, 2, 4, 8, 16],
        "diversity": [Diversity(order="shared"), Diversity()],
        "seed": [0, 1, 2],
    },
    rivals=rivals(LORA, 16, full_lr=1e-5, scales_lr=1e-3, head_lr=1e-3),
    ood=[SVHN(), CIFAR10()],
    paths=True,
)
SMOKE = encoder_smoke(LORA)
