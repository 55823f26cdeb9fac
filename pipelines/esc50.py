"""LoRA-Ensemble on ESC-50, five folds of sounds, a variant of arXiv:2405.14438, with reviewers' baselines.

    lorae sweep pipelines/esc50.py --dry-run      # 285 trials, 720 members
    python -m analysis.esc50 lorae-results

Audio Spectrogram Transformer, rank 16, 8 members; each fold is the test set once. Rank, initialisation,
layers, Adam's settings, batch size 1, epochs, no warm-up, no clipping and the rate of full fine-tuning are
those of the authors' code (prs-eth/LoRA-Ensemble, be52ff5). It differs in:

- pre-training: AudioSet, on sounds of 1,024 frames; theirs is DeiT-B/384's on ImageNet alone, and 512 frames;
- augmentation: none; theirs masks up to 24 mel bins and 96 frames of training sounds;
- schedule: cosine; theirs multiplies the rate by 0.85 after each epoch from the fifth on;
- decay: none; theirs is 5e-7 in the loss;
- choice: the last step; theirs takes the epoch with the best accuracy on the test folds;
- data: a tenth of the non-test recordings is validation; theirs trains on all of them.
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
    optimizer=AdamW(lr=5e-5, schedule="cosine", warmup_frac=0.0, betas=(0.95, 0.999), max_grad_norm=None),
    budget=Budget(batch_size=1, epochs=25),
    diversity=Diversity(order="shared"),
)
SWEEP = Sweep(
    base=LORA,
    axes={"task": [ESC50(fold=fold) for fold in (1, 2, 3, 4, 5)], "members": [1, 2, 4, 8], "seed": [0, 1, 2]},
    rivals=rivals(LORA, 8, full_lr=1e-5, scales_lr=1e-3, head_lr=1e-3),
    paths=True,
)
SMOKE = encoder_smoke(LORA)
