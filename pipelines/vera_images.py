"""Images by ViT base and large with ten training images of each class: VeRA beside LoRA, heads alone and full
fine-tuning, as in arXiv:2310.11454, and ensembles of four.

    lorae sweep pipelines/vera_images.py --dry-run      # 320 trials, 768 members
    python -m analysis.vera_images lorae-results

CIFAR-100, Food-101, Flowers-102 and RESISC45; five seeds. The published accuracies beside them are those of
the paper's review discussion. ViTs are pre-trained on ImageNet-21k; ranks are 256 for VeRA and 8 for LoRA, on
queries and values. Batch size, epochs and learning rates were not checked against the paper's files: each
recipe is tuned over its learning rate, by 1,000 validation images, and all train for as long.
"""

from dataclasses import replace

from lorae.methods import Full, LastLayer, Lora, Vera
from lorae.sources import Hub
from lorae.tasks import CIFAR100, RESISC45, Flowers102, Food101
from lorae.trial import AdamW, Budget, Sweep, Trial
from pipelines._common import TUNE, encoder_smoke

BASE, LARGE = Hub("google/vit-base-patch16-224-in21k"), Hub("google/vit-large-patch16-224-in21k")
TASKS = [
    task.subset(train_per_class=10, validation=size)
    for task, size in ((CIFAR100(), 1000), (Food101(), 1000), (Flowers102(), None), (RESISC45(), 1000))
]
MEMBERS = (1, 4)
TARGETS = ("q", "v")

LORA = Trial(
    backbone=BASE,
    task=TASKS[0],
    method=Lora(rank=8, alpha=8, targets=TARGETS),
    optimizer=AdamW(lr=4e-3, head_lr=4e-3),
    budget=Budget(batch_size=64, epochs=10),
)
VERA = replace(LORA, method=Vera(rank=256, targets=TARGETS), optimizer=AdamW(lr=4e-2, head_lr=4e-3))
HEADS = replace(LORA, method=LastLayer(), optimizer=AdamW(lr=4e-3))
FULL = replace(LORA, method=Full(), optimizer=AdamW(lr=4e-5, head_lr=4e-3))
SWEEP = Sweep(
    base=LORA,
    axes={
        "backbone": [BASE, LARGE],
        "task": TASKS,
        "members": [*MEMBERS],
        "seed": [0, 1, 2, 3, 4],
    },
    rivals=[replace(recipe, members=m) for recipe in (VERA, HEADS, FULL) for m in MEMBERS],
    tune=TUNE,
)

_SMALL = encoder_smoke(LORA).base
_SMALL = replace(_SMALL, task=_SMALL.task.subset(train_per_class=5, validation=50, test=100))
SMOKE = Sweep(
    base=_SMALL,
    axes={"members": [1, 2]},
    rivals=[
        replace(_SMALL, method=recipe.method, optimizer=recipe.optimizer, members=m)
        for recipe in (replace(VERA, method=Vera(rank=32, targets=TARGETS)), HEADS, FULL)
        for m in (1, 2)
    ],
)
