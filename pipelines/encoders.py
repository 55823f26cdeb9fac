"""Does LoRA-Ensemble hold for a sentence encoder? Against its reviewers' rivals, on a laptop, in minutes.

    lorae sweep pipelines/encoders.py        # 18 trials, 28 members
    python -m analysis.encoders lorae-results

MiniLM-L6 on Rotten Tomatoes sentiment with a classification head per member, by the recipe of
arXiv:2405.14438: Xavier-uniform A, no alpha / r, cosine with warm-up. Its gain (of 1 and 3) with its learning
rate (nine settings), and the rates of full fine-tuning (five), BatchEnsemble, last layers, the wider adapter
(four each) and the longer training (three) were chosen by the lowest NLL on 400 validation sentences, mean of
two members trained on 128. The Gaussians of BLoB (eight settings at LoRA's rate) and the rank-1 BNN (nine)
were chosen likewise, for two members together. The OOD set is plot summaries from the same world of films.
"""

from lorae.methods import Blob, Lora, Rank1BNN, Xavier
from lorae.tasks import Head, PlotSummaries, RottenTomatoes
from lorae.trial import AdamW, Budget, Sweep, Trial
from pipelines._common import ATTENTION, MINILM_L6, encoder_smoke, rivals

LORA = Trial(
    backbone=MINILM_L6,
    task=RottenTomatoes(scoring=Head(pool="mean")).subset(train=112, validation=56, test=240),
    method=Lora(rank=8, alpha=None, targets=ATTENTION, init=Xavier(gain=1)),
    optimizer=AdamW(lr=1.4e-3, schedule="cosine"),
    budget=Budget(batch_size=8, epochs=4, max_tokens=64),
    precision="fp32",
)
SWEEP = Sweep(
    base=LORA,
    axes={"members": [1, 2, 4]},
    rivals=rivals(
        LORA,
        4,
        full_lr=5e-5,
        scales_lr=5e-3,
        head_lr=1e-2,
        wide_lr=7e-4,
        long_lr=3.5e-4,
        blob=Blob(std_root=0.2, gamma=1000.0, kl_lr=0.002),
        rank1=Rank1BNN(prior_std=1.0, annealed_frac=1.0),
    ),
    ood=[PlotSummaries(num_test=112)],
    paths=True,
)
SMOKE = encoder_smoke(LORA)
