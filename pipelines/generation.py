"""Do ensembles write better answers, and do they know when they are wrong? GSM8K and TriviaQA.

    lorae sweep pipelines/generation.py --dry-run
    # 48 trials and a zero-shot row per task; 152 members, tuning included
    python -m analysis.generation lorae-results

Every member writes a greedy answer and five samples, and the members of an ensemble write together, by their
mean probability and by their mean logits; every member scores every text. So the table has each uncertainty
score from one member, from samples of one member, and from five members, and shows what the members add
(arXiv:2603.24967 reports nothing, for members that may not have been diverse).
"""

from dataclasses import replace

from lorae.regularizers import KL, DecayB
from lorae.tasks import GSM8K, Generate, TriviaQA
from lorae.trial import Budget, Sweep
from pipelines._common import SEVEN_B, TUNE, text_smoke

WRITING = Generate(samples=5, lockstep=("mean", "logits"))
STEPS = GSM8K(scoring=replace(WRITING, max_new_tokens=400))
FACTS = TriviaQA(scoring=replace(WRITING, max_new_tokens=48)).subset(train=7500, validation=750, test=2000)

SWEEP = Sweep(
    base=replace(SEVEN_B, task=STEPS, budget=Budget(batch_size=16, epochs=2, max_tokens=768)),
    axes={
        "task": [STEPS, FACTS],
        "regularizers": [(), (KL(beta=0.1),), (DecayB(strength=100.0),), (KL(0.1), DecayB(100.0))],
        "members": [1, 5],
        "seed": [0, 1, 2],
    },
    tune=TUNE,
)
SMOKE = text_smoke(SWEEP, {"members": [1, 2], "regularizers": [(), (KL(0.1),), (DecayB(50.0),)]})
