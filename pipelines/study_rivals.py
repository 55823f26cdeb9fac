"""Rivals at the cost of an ensemble of four, and which of its two sources of randomness matters.

    lorae sweep pipelines/study_rivals.py --dry-run
    # 54 trials and the zero-shot row; 102 members, tuning included
    python -m analysis.study lorae-results

On the film reviews of pipelines/study.py, whose plain members are shared: four members against four samples
or passes of one (TFB, MC dropout, BLoB; Laplace), their soup, one adapter of four times the rank, one trained
four times as long, and VeRA; and ensembles whose members share their data order or their initialisation. All
are tuned over three learning rates around their own.
"""

from dataclasses import replace

from lorae.draws import TFB, Laplace, MCDropout, Posterior
from lorae.methods import Blob, Lora, Vera
from lorae.regularizers import AdapterDropout
from lorae.trial import Diversity, Sweep, Trial
from lorae.trial.tuning import Times
from pipelines._common import smoke
from pipelines.study import LORA, PLOTS


def at_equal_cost(lora: Trial, members: int) -> list[Trial]:
    """Single models with the forward passes, parameters or training of an ensemble; and ensembles of VeRA.

    Models that are trained only for this have two members per seed, for a better estimate of the variance of
    trainings.
    """
    assert isinstance(lora.method, Lora)
    wide, longer = lora.method.times(members), lora.budget.times(members)
    blob = replace(lora, method=Blob(**vars(lora.method), std_root=0.2, gamma=1000.0, kl_lr=0.002))
    vera = replace(lora, method=Vera(rank=256), optimizer=replace(lora.optimizer, lr=1e-2))
    return [
        replace(lora, draws=TFB(members)),
        replace(lora, draws=Laplace()),
        replace(lora, regularizers=(AdapterDropout(0.1),), draws=MCDropout(members)),
        replace(lora, members=members, combine="weights"),
        *(replace(lora, method=wide, members=m) for m in (1, 2)),
        *(replace(lora, budget=longer, members=m) for m in (1, 2)),
        *(replace(blob, members=m) for m in (1, 2)),
        replace(blob, draws=Posterior(members)),
        *(replace(vera, members=m) for m in (1, members)),
    ]


def sharing(lora: Trial, members: int) -> list[Trial]:
    """Ensembles whose members share their data order, or their initialisation."""
    return [
        replace(lora, members=members, diversity=diversity)
        for diversity in (Diversity(order="shared"), Diversity(init="shared"))
    ]


SWEEP = Sweep(
    base=LORA,
    axes={"members": [1, 2, 4], "seed": [0, 1, 2]},
    rivals=[*at_equal_cost(LORA, 4), *sharing(LORA, 4)],
    ood=[PLOTS],
    tune={"optimizer.lr": Times(0.3, 1, 3)},
)
SMOKE = smoke(SWEEP, {"members": [1, 2]})
SMOKE = replace(SMOKE, rivals=[*at_equal_cost(SMOKE.base, 2), *sharing(SMOKE.base, 2)])
