"""What are LoRA ensembles of a language model worth? Members, regularisers and their sum, on film reviews.

    lorae sweep pipelines/study.py --dry-run
    # 72 trials and the zero-shot row; 264 members, tuning included
    python -m analysis.study lorae-results

The study's main sweep; docs/study.md says what all sweeps must answer and by which rule. SmolLM2-135M on 256
sentences: each recipe is tuned over the learning rate and its own strength, then has three pools of eight
members. `study_trec` and `study_science` ask the same of other tasks; `study_rivals` compares four members
with models of equal cost; `study_members` and `study_encoders` are on a sentence encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lorae.methods import Lora
from lorae.regularizers import KL, AdapterDropout, DecayB, EarlyStopping, Regularizer
from lorae.tasks import PlotSummaries, RottenTomatoes, Task
from lorae.trial import AdamW, Budget, Sweep, Trial
from pipelines._common import SMOLLM2_135M, smoke

KL_TERM, DECAY = KL(beta=1.0), DecayB(strength=50.0)
MAIN: list[tuple[Regularizer, ...]] = [(), (KL_TERM,), (DECAY,)]
OTHERS: list[tuple[Regularizer, ...]] = [
    (KL_TERM, DECAY),
    (EarlyStopping(patience=1, every=24),),
    (AdapterDropout(0.1),),
]
STRENGTHS = {"regularizers.KL.beta": (0.1, 1.0), "regularizers.DecayB.strength": (10.0, 50.0)}

LORA = Trial(
    backbone=SMOLLM2_135M,
    task=RottenTomatoes().subset(train=256, validation=128, test=512),
    method=Lora(rank=8, alpha=16),
    optimizer=AdamW(lr=1e-3),
    budget=Budget(batch_size=8, epochs=3, max_tokens=128),
    precision="bf16",  # three to four times as fast as fp32 where the CPU has it
)
PLOTS = PlotSummaries(num_test=256)


def regularized(
    tasks: Sequence[Task],
    ood: Sequence[Task],
    regularizers: Sequence[tuple[Regularizer, ...]],
    members: Sequence[int],
    learning_rates: tuple[float, ...],
) -> Sweep:
    """Each recipe alone and in ensembles on tasks that share a prompt: three pools, all of them tuned.

    Args:
        learning_rates: grid over which every recipe is tuned, with each of its strengths.
    """
    return Sweep(
        base=replace(LORA, task=tasks[0]),
        axes={"task": [*tasks], "regularizers": [*regularizers], "members": [*members], "seed": [0, 1, 2]},
        ood=[*ood],
        tune={"optimizer.lr": learning_rates, **STRENGTHS},
        uneven_tuning=True,  # a recipe with a strength has more points than one without
    )


RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
SWEEP = regularized([LORA.task], [PLOTS], [*MAIN, *OTHERS], [1, 2, 4, 8], RATES)
SMOKE = smoke(SWEEP, {"members": [1, 2], "regularizers": MAIN})
