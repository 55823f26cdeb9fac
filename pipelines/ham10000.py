"""LoRA-Ensemble on HAM10000, skin lesions, a variant of arXiv:2405.14438, with its reviewers' baselines.

    lorae sweep pipelines/ham10000.py --dry-run      # 60 trials, 264 members
    python -m analysis.ham10000 lorae-results

ViT-B/32, rank 4, 16 members, effective-number class weights; macro F1 is reported beside accuracy. Rank,
initialisation, layers, augmentation, optimiser, schedule (500 of 16,315 steps of warm-up), batch size,
epochs, class weights and the rate of full fine-tuning are those of the authors' code (prs-eth/LoRA-Ensemble,
be52ff5). It differs in:

- pre-training: ImageNet-21k; theirs is torchvision's on ImageNet-1k, whose files transformers does not read;
- the last-layer ensemble: its images are not augmented, as their features are computed once;
- inputs: normalised by the model's own processor; theirs are divided by 255;
- split: no lesion is in two splits, and a tenth of the non-test lesions is validation; theirs divides images
  at random, 80 to 20, so that other photographs of a test lesion may be in its training set;
- loss: the weighted mean divides by the number of images; theirs by the sum of their weights;
- clipping: each member's own gradient to norm 1; theirs clips the gradient of the mean over all members.
"""

from lorae.methods import Lora, Xavier
from lorae.regularizers import ClassWeights
from lorae.sources import Hub
from lorae.tasks import HAM10000
from lorae.trial import AdamW, Budget, Diversity, Sweep, Trial
from pipelines._common import ATTENTION, FLIP_AND_ROTATE, encoder_smoke, rivals

LORA = Trial(
    backbone=Hub("google/vit-base-patch32-224-in21k"),
    task=HAM10000(augment=FLIP_AND_ROTATE),
    method=Lora(rank=4, alpha=None, targets=ATTENTION, init=Xavier(gain=10)),
    regularizers=(ClassWeights(beta=0.9991),),
    optimizer=AdamW(lr=1e-4, schedule="cosine", warmup_frac=0.03),
    budget=Budget(batch_size=32, epochs=65),
    diversity=Diversity(order="shared"),
)
SWEEP = Sweep(
    base=LORA,
    axes={"members": [1, 2, 4, 8, 16], "seed": [0, 1, 2]},
    rivals=rivals(LORA, 16, full_lr=1e-4, scales_lr=1e-3, head_lr=1e-3),
    paths=True,
)
SMOKE = encoder_smoke(LORA)
