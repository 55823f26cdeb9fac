"""How many parameters does an adapter need? LoRA, VeRA, and VeRA with matrices of each layer's own, by rank.

    lorae sweep pipelines/vera_parameters.py --dry-run      # 70 trials, 140 members
    python -m analysis.vera_parameters lorae-results

RTE by RoBERTa-large, after figures 3 and 4, table 6 and the appendix on similar weights of arXiv:2310.11454;
ranks, recipes and task were not checked against the paper's files. Recipes are those of `vera_glue`. Each
rank is tuned over the learning rate, and the heads' rate stays.
"""

from dataclasses import replace

from lorae.methods import Lora, Vera
from lorae.trial import AdamW, Sweep, Trial
from pipelines import vera_glue
from pipelines._common import TUNE
from pipelines.vera_glue import LARGE, LORA_LARGE, RTE, VERA_LARGE, Head, lora, vera

LORA_RANKS, VERA_RANKS, UNIQUE_RANKS = (1, 2, 4, 8, 16, 32), (1, 4, 16, 64, 256, 1024), (16, 256)
_LORA, _VERA = (
    next(trial for trial in trials if trial.task == RTE(scoring=Head()))
    for trials in (lora(LARGE, 128, LORA_LARGE), vera(LARGE, 128, 256, 32, VERA_LARGE))
)


def ranks(
    of_lora: Trial, of_vera: Trial, loras: tuple[int, ...], veras: tuple[int, ...], unique: tuple[int, ...]
) -> list[Trial]:
    """Both recipes at each rank, alpha equal to the rank."""
    targets = of_lora.method.targets
    methods = [Vera(rank=rank, targets=targets) for rank in veras]
    methods += [Vera(rank=rank, targets=targets, projection="per_layer") for rank in unique]
    return [
        *(replace(of_lora, method=Lora(rank=rank, alpha=rank, targets=targets)) for rank in loras),
        *(replace(of_vera, method=method) for method in methods),
    ]


_TRIALS = ranks(_LORA, _VERA, LORA_RANKS, VERA_RANKS, UNIQUE_RANKS)
SWEEP = Sweep(base=_TRIALS[0], axes={"seed": [0, 1, 2, 3, 4]}, rivals=_TRIALS[1:], tune=TUNE)

_SMALL = vera_glue.SMOKE.base
_SMALL_VERA = replace(_SMALL, optimizer=AdamW(lr=2e-2, head_lr=2e-3))
_SMALL_TRIALS = ranks(_SMALL, _SMALL_VERA, (1, 4), (4, 64), (4, 64))
SMOKE = Sweep(base=_SMALL_TRIALS[0], axes={"seed": [0]}, rivals=_SMALL_TRIALS[1:])
