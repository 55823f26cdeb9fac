"""GLUE by RoBERTa base and large, VeRA beside LoRA as in arXiv:2310.11454, and ensembles of four.

    lorae sweep pipelines/vera_glue.py --dry-run      # 240 trials, 480 members
    python -m analysis.vera_glue lorae-results

CoLA, SST-2, MRPC, QNLI, RTE and STS-B; five seeds, whose median the paper reports. VeRA has rank 1,024 in
the base and 256 in the large model and a learning rate of its own for the head, LoRA rank 8; texts have 512
and 128 tokens. Epochs and rates of the base model on SST-2, MRPC, CoLA and QNLI are those of public
re-implementations (TonAnh/VeRA-plus, wu12023/LORA); those of RTE and STS-B and of the large model were not
checked against the papers. Test is the hub's validation split, on which papers often choose the best epoch;
here it is the last one. A head is one linear layer; RoBERTa's own classifier has another before it.
"""

from dataclasses import replace

from lorae.methods import Lora, Vera
from lorae.sources import Hub
from lorae.tasks import MRPC, QNLI, RTE, SST2, STSB, CoLA, Head, RottenTomatoes, Task, Value
from lorae.trial import AdamW, Budget, Sweep, Trial
from pipelines._common import MINILM_L6

BASE, LARGE = Hub("FacebookAI/roberta-base"), Hub("FacebookAI/roberta-large")
SST, PAIRS = SST2(scoring=Head()), [t(scoring=Head()) for t in (MRPC, CoLA, QNLI, RTE)]
TASKS: list[Task] = [SST, *PAIRS, STSB(scoring=Value())]
MEMBERS = (1, 4)

# In the order of TASKS: batch size, epochs, learning rate; of VeRA epochs, learning rates of adapter and head
LORA_BASE = [(16, 60, 5e-4), (16, 30, 4e-4), (32, 80, 4e-4), (32, 25, 4e-4), (32, 80, 5e-4), (16, 40, 4e-4)]
LORA_LARGE = [(4, 10, 4e-4), (4, 20, 3e-4), (4, 20, 2e-4), (4, 10, 2e-4), (4, 20, 4e-4), (4, 30, 2e-4)]
VERA_BASE = [
    *((60, 4e-3, 4e-3), (30, 1e-2, 4e-3), (80, 1e-2, 1e-2)),
    *((25, 1e-2, 4e-3), (160, 4e-3, 1e-2), (80, 1e-2, 1e-2)),
]
VERA_LARGE = [
    *((10, 1e-2, 6e-3), (40, 3e-2, 3e-3), (40, 1e-2, 6e-3)),
    *((20, 1e-2, 2e-4), (40, 2e-2, 2e-3), (20, 2e-2, 2e-3)),
]
LORA = Lora(rank=8, alpha=8, targets=("q", "v"))


def lora(backbone: Hub, tokens: int, settings: list[tuple[int, int, float]]) -> list[Trial]:
    """LoRA on every task."""
    return [
        Trial(
            backbone=backbone,
            task=task,
            method=replace(LORA, alpha=8 if backbone == BASE else 16),
            optimizer=AdamW(lr=lr, weight_decay=0.1),
            budget=Budget(batch_size=batch, epochs=epochs, max_tokens=tokens),
        )
        for task, (batch, epochs, lr) in zip(TASKS, settings, strict=True)
    ]


def vera(
    backbone: Hub, tokens: int, rank: int, batch: int, settings: list[tuple[int, float, float]]
) -> list[Trial]:
    """VeRA on every task."""
    return [
        Trial(
            backbone=backbone,
            task=task,
            method=Vera(rank=rank, targets=("q", "v")),
            optimizer=AdamW(lr=lr, head_lr=head_lr),
            budget=Budget(batch_size=batch, epochs=epochs, max_tokens=tokens),
        )
        for task, (epochs, lr, head_lr) in zip(TASKS, settings, strict=True)
    ]


RECIPES = [
    *lora(BASE, 512, LORA_BASE),
    *vera(BASE, 512, 1024, 64, VERA_BASE),
    *lora(LARGE, 128, LORA_LARGE),
    *vera(LARGE, 128, 256, 32, VERA_LARGE),
]
SWEEP = Sweep(
    base=RECIPES[0],
    axes={"members": [*MEMBERS], "seed": [0, 1, 2, 3, 4]},
    rivals=[replace(recipe, members=m) for recipe in RECIPES[1:] for m in MEMBERS],
)

_SMALL = Trial(
    backbone=MINILM_L6,
    task=RottenTomatoes(scoring=Head()).subset(train=64, validation=50, test=100),
    method=LORA,
    optimizer=AdamW(lr=2e-3),
    budget=Budget(batch_size=16, epochs=2, max_tokens=64),
    precision="fp32",
)
_VERA = replace(_SMALL, method=Vera(rank=64, targets=("q", "v")), optimizer=AdamW(lr=2e-2, head_lr=2e-3))
SMOKE = Sweep(
    base=_SMALL,
    axes={"members": [1, 2]},
    rivals=[replace(_VERA, members=m) for m in (1, 2)],
)
