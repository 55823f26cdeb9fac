"""LoRA-Ensemble on ESC-50, sounds in five folds (arXiv:2405.14438), with its reviewers' baselines.

    lorae sweep pipelines/esc50.py --dry-run      # 285 trials, 720 members
    python -m analysis.esc50 lorae-results

Audio Spectrogram Transformer, rank 16, 8 members; each fold is the test set once.
"""

from lorae.methods import Lora, Xavier
from lorae.sources import Hub
from lorae.tasks import ESC50
from lorae.trial import AdamW, Budget, Diversity, Sweep, Trial
from pipelines._common import ATTENTION, encoder_smoke, rivals

LORA = Trial(
    backbone=Hub("MIT/ast-finetuned-audioset-10-10-0.4593"),
    task=ESC50(fold=1),
    method=Lora(rank=16, alpha=None, targets=ATTENTION, init=Xavier(gain=10)),
    optimizer=AdamW(lr=5e-5, schedule="cosine", warmup_frac=0.06),
    budget=Budget(batch_size=16, epochs=20),
    diversity=Diversity(order="shared"),
)
SWEEP = Sweep(
    base=LORA,
    axes={"task": [ESC50(fold=fold) for fold in (1, 2, 3, 4, 5)], "members": [1, 2, 4, 8], "seed": [0, 1, 2]},
    rivals=rivals(LORA, 8, full_lr=1e-5, scales_lr=1e-3, head_lr=1e-3),
    paths=True,
)
SMOKE = encoder_smoke(LORA)
