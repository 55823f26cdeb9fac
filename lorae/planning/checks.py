"""Recipes that cannot work, found from a backbone's config and a task's examples before training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorae.shapes import alike_tokens, kind_of, linear_shapes, most_tokens
from lorae.tasks.base import Task
from lorae.tasks.scoring import scorings_for
from lorae.trial import Trial


def check_recipe(trial: Trial, ood: Sequence[Task], config: dict[str, Any]) -> None:
    """Refuse a recipe that cannot be trained on its backbone and task.

    Args:
        ood: tasks that its members also predict.
        config: the backbone's config.json.
    Raises:
        ValueError: the backbone cannot read the task's examples or does not fit its scoring, targets or rank
            do not fit, the backbone is too large for `Full`, examples lack common answers for `LastLayer`,
            there are more cycles than steps, the masks do not exist, or there are more demonstrations than
            examples.
    """
    _check_backbone(trial, config)
    try:
        linears = linear_shapes(config)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"config.json of {trial.backbone.label} does not say what its layers are ({error!r}); copy the "
            "checkpoint's own"
        ) from error
    layers = trial.method.adapted_layers(linears, trial.backbone.label)
    trial.optimizer.snapshot_steps(trial.budget.num_steps(len(trial.task.examples("train"))))
    trial.method.check_backbone(trial, ood, config)
    if trial.method.regime == "alone":
        layers = linears
    head = trial.task.scoring.trains_head or trial.method.regime == "features"
    widths = {d_in for d_in, _ in layers.values()} | ({config["hidden_size"]} if head else set())
    for regularizer in trial.regularizers:
        regularizer.check_widths(widths)


def _check_backbone(trial: Trial, config: dict[str, Any]) -> None:
    task, kind, name = trial.task, kind_of(config), trial.backbone.label
    what = "causal LM" if kind == "causal" else f"{kind} encoder"
    if task.modality != ("text" if kind == "causal" else kind):
        raise ValueError(
            f"{name} is a {what}, {task.name} has {task.modality} examples; take a backbone for "
            f"{task.modality}, or another task"
        )
    if kind not in task.scoring.backbones:
        raise ValueError(
            f"{task.name} is scored by {task.scoring}, {name} is a {what}; write scoring={scorings_for(kind)}"
        )
    if kind == "text" and config.get("is_decoder"):
        raise ValueError(
            f"{name} has is_decoder=true: its first token, which Head('cls') reads, does not see the rest of "
            "a text; take an encoder"
        )
    if kind == "image" and (channels := config.get("num_channels", 3)) != 3:
        raise ValueError(
            f"{name} reads images of {channels} channels, examples have 3 (RGB); take another backbone"
        )
    longest = most_tokens(config)
    if longest and trial.budget.max_tokens > longest:
        why = f"{name} reads at most {longest}"
        if longest == alike_tokens(config):
            why = (
                f"beyond {longest} tokens, {name} rescales its rotary frequencies by the longest text of a "
                "batch, so that members would depend on each other"
            )
        raise ValueError(f"max_tokens={trial.budget.max_tokens}: {why}; write Budget(max_tokens={longest})")
