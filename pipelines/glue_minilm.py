"""GLUE on a laptop: LoRA, VeRA, full fine-tuning and a head alone, single and as ensembles of four.

    lorae sweep pipelines/glue_minilm.py --data-root DIR     # 96 trials; 256 members, tuning included
    python -m analysis.glue_minilm lorae-results

MiniLM-L6 on CoLA, RTE, MRPC and STS-B, whose files are read from nyu-mll/glue under DIR, or from the hub:
512 training pairs of at most 64 tokens, three epochs, three seeds. VeRA has rank 256 on LoRA's layers, whose
rank is 8. Learning rates are tuned for each method on each task; heads have 2e-3 beside an adapter.
STS-B's members predict a mean and a variance.
"""

from dataclasses import replace

from lorae.methods import Full, LastLayer, Lora, Vera
from lorae.tasks import MRPC, RTE, STSB, CoLA, Head, Task, Value
from lorae.trial import AdamW, Budget, Sweep, Trial
from pipelines._common import MINILM_L6, TUNE

HEAD = Head(pool="mean")
SIZE = {"train": 512, "validation": 200}
TASKS: list[Task] = [
    CoLA(scoring=HEAD).subset(**SIZE, test=500),
    RTE(scoring=HEAD).subset(**SIZE, test=277),
    MRPC(scoring=HEAD).subset(**SIZE, test=408),
    STSB(scoring=Value(pool="mean", variance=True)).subset(**SIZE, test=500),
]
LORA = Trial(
    backbone=MINILM_L6,
    task=TASKS[0],
    method=Lora(rank=8, alpha=16, targets=("q", "v")),
    optimizer=AdamW(lr=2e-3, head_lr=2e-3),
    budget=Budget(batch_size=16, epochs=3, max_tokens=64),
    precision="fp32",
)
OTHERS = [
    replace(LORA, method=Vera(rank=256, targets=("q", "v")), optimizer=AdamW(lr=2e-2, head_lr=2e-3)),
    replace(LORA, method=Full(), optimizer=AdamW(lr=1e-4, head_lr=2e-3)),
    replace(LORA, method=LastLayer(), optimizer=AdamW(lr=1e-2)),
]


def sweep(tasks: list[Task], members: int, seeds: list[int], tune: bool) -> Sweep:
    """All methods, single and as ensembles, on some tasks."""
    base = replace(LORA, task=tasks[0])
    return Sweep(
        base=base,
        axes={"task": tasks, "members": [1, members], "seed": seeds},
        rivals=[replace(other, members=m) for other in OTHERS for m in (1, members)],
        tune=TUNE if tune else {},
    )


SWEEP = sweep(TASKS, members=4, seeds=[0, 1, 2], tune=True)
SMOKE = sweep([t.subset(train=48, validation=24, test=60) for t in (TASKS[0], TASKS[3])], 2, [0], tune=False)
