"""Are ensembles of LoRA better than Bayesian LoRA? At equal forward passes, on the tasks of its papers.

    lorae sweep pipelines/bayesian.py --dry-run
    # 270 trials and a zero-shot row per task; 732 members, tuning included
    python -m analysis.bayesian lorae-results

Published tables compare ten samples of one member with an ensemble of three, whose members have all seen the
same batches. Here an ensemble of ten is compared with ten samples, by the recipe of BLoB's authors
(arXiv:2406.11675); every row has temperature-scaled metrics, and ensembles are regularised too.
"""

from dataclasses import replace

from lorae.draws import TFB, Laplace, MCDropout, Posterior
from lorae.methods import Blob, InContext, Lora
from lorae.regularizers import AdapterDropout, DecayB
from lorae.tasks import ArcChallenge, ArcEasy, BoolQ, OpenBookQA, WinoGrande
from lorae.trial import AdamW, Budget, Sweep, Trial
from pipelines._common import SEVEN_B, TUNE, smoke


def bayesian_rivals(lora: Trial, samples: int) -> list[Trial]:
    """One member sampled `samples` times from every kind of posterior (from Laplace, whose samples cost
    nothing, a hundred times); the ensemble's soup; and as many prompts with demonstrations in place of
    members."""
    blob = replace(lora, method=Blob(**vars(lora.method)))
    return [
        replace(lora, optimizer=replace(lora.optimizer, weight_decay=1e-5)),  # "MAP"
        replace(lora, regularizers=(AdapterDropout(0.1),), draws=MCDropout(samples)),
        replace(lora, draws=TFB(samples)),
        replace(lora, draws=Laplace()),
        blob,
        replace(blob, draws=Posterior(samples)),
        replace(blob, draws=TFB(samples)),
        replace(lora, members=samples, combine="weights"),
        replace(lora, method=InContext(shots=4), members=samples),
    ]


LORA = replace(
    SEVEN_B,
    method=Lora(rank=8, alpha=16),
    optimizer=AdamW(lr=1e-4),
    budget=Budget(batch_size=4, steps=5000, max_tokens=300),
)
SWEEP = Sweep(
    base=LORA,
    axes={
        "task": [
            WinoGrande("s"),
            ArcChallenge(),
            ArcEasy(),
            WinoGrande("m"),
            OpenBookQA(),
            BoolQ(),
        ],
        "regularizers": [(), (DecayB(strength=100.0),)],
        "members": [1, 3, 10],
        "seed": [0, 1, 2],
    },
    rivals=bayesian_rivals(LORA, 10),
    tune=TUNE,
)
SMOKE = smoke(SWEEP, {"members": [1, 2], "regularizers": [(), (DecayB(strength=50.0),)]})
SMOKE = replace(SMOKE, rivals=bayesian_rivals(SMOKE.base, 2))
