"""LoRA-Ensemble on images that anyone can fetch: a ViT trained on MNIST, adapted to other digits.

    lorae sweep pipelines/digits.py      # 99 trials, 264 members
    python -m analysis.digits lorae-results

A small ViT, pre-trained on MNIST on first use, is adapted to scikit-learn's digits. The OOD set is patches of
photographs. The axes are the gain of A's initialisation and the rank, as in figures of arXiv:2405.14438.
"""

from lorae.methods import Lora, Xavier
from lorae.sources import MnistVit
from lorae.tasks import Digits, LfwPatches
from lorae.trial import AdamW, Budget, Sweep, Trial
from pipelines._common import ATTENTION, encoder_smoke, rivals

LORA = Trial(
    backbone=MnistVit(),
    task=Digits().subset(train=200, validation=100),
    method=Lora(rank=8, alpha=None, targets=ATTENTION, init=Xavier(gain=10)),
    optimizer=AdamW(lr=1e-3, schedule="cosine"),
    budget=Budget(batch_size=16, epochs=10),
    precision="fp32",
)
SWEEP = Sweep(
    base=LORA,
    axes={
        "method.init": [Xavier(gain=1), Xavier(gain=10), Xavier(gain=30)],
        "method.rank": [2, 8],
        "members": [1, 4, 8],
        "seed": [0, 1, 2],
    },
    rivals=rivals(LORA, 8, full_lr=1e-4, scales_lr=1e-2, head_lr=1e-2),
    ood=[LfwPatches()],
    paths=True,
)
SMOKE = encoder_smoke(LORA)
