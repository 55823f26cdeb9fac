"""LoRA-Ensemble on CIFAR-100, a variant of arXiv:2405.14438, with its reviewers' baselines.

    lorae sweep pipelines/cifar100.py --dry-run      # 150 trials, 624 members
    python -m analysis.cifar100 lorae-results

ViT-B/32 and, beside it, DeiT-B/16; rank 8, 16 members that share each batch; OOD sets SVHN and CIFAR-10.
Rank, initialisation, layers, augmentation, optimiser, schedule, batch size, epochs and the rate of full
fine-tuning are those of the authors' code for ViT-B/32 (prs-eth/LoRA-Ensemble, be52ff5). It differs in:

- pre-training: ImageNet-21k; theirs is torchvision's on ImageNet-1k, whose files transformers does not read;
- the last-layer ensemble: its images are not augmented, as their features are computed once;
- inputs: normalised by the model's own processor; theirs are divided by 255;
- clipping: each member's own gradient to norm 1; theirs clips the gradient of the mean over all members;
- data: a tenth of the training images is validation; theirs trains on all of them.
"""

from lorae.methods import Lora, Xavier
from lorae.sources import Hub
from lorae.tasks import CIFAR10, CIFAR100, SVHN
from lorae.trial import AdamW, Budget, Diversity, Sweep, Trial
from pipelines._common import ATTENTION, FLIP_AND_ROTATE, encoder_smoke, rivals

VIT, DEIT = Hub("google/vit-base-patch32-224-in21k"), Hub("facebook/deit-base-patch16-224")
LORA = Trial(
    backbone=VIT,
    task=CIFAR100(augment=FLIP_AND_ROTATE),
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
        "backbone": [VIT, DEIT],
        "seed": [0, 1, 2],
    },
    rivals=rivals(LORA, 16, full_lr=1e-4, scales_lr=1e-3, head_lr=1e-3),
    ood=[SVHN(), CIFAR10()],
    paths=True,
)
SMOKE = encoder_smoke(LORA)
