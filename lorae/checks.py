"""Recipes that cannot work, found from a backbone's config and a task's examples before training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorae import seeds
from lorae.memory import full_member_bytes
from lorae.methods import Full, InContext, LastLayer, adapted_layers
from lorae.regularizers import Masksembles
from lorae.shapes import alike_tokens, kind_of, linear_shapes, most_tokens
from lorae.tasks.base import Head, OptionLikelihood, Split, Task
from lorae.trial import Trial

# Weights, gradients and two moments of the members that a stack fine-tunes in full, where a device's memory
# is not known; a single member that needs more is refused everywhere.
MAX_FULL_BYTES = 16 * 2**30


def check_recipe(trial: Trial, ood: Sequence[Task], config: dict[str, Any]) -> None:
    """Refuse a recipe that cannot be trained on its backbone and task.

    Args:
        ood: tasks that its members also predict.
        config: the backbone's config.json.
    Raises:
        ValueError: a backbone that does not read the task's examples or fit its scoring, targets or a rank
            that do not fit, a backbone too large for `Full`, examples without common answers for `LastLayer`,
            more cycles than steps, masks that do not exist, more demonstrations than there are examples.
    """
    _check_backbone(trial, config)
    try:
        linears = linear_shapes(config)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"config.json of {trial.backbone.label} does not say what its layers are ({error!r}); copy the "
            "checkpoint's own"
        ) from error
    layers = adapted_layers(trial.method, linears, trial.backbone.label)
    trial.optimizer.snapshot_steps(trial.budget.num_steps(len(trial.task.examples("train"))))
    if isinstance(trial.method, Full):
        _check_full(trial, config)
        layers = linears
    if isinstance(trial.method, LastLayer) and not isinstance(trial.task.scoring, Head):
        _check_answers(trial, ood)
    if isinstance(trial.method, InContext):
        _check_shots(trial.method, trial, config)
    if masks := trial.regularizer(Masksembles):
        head = isinstance(trial.task.scoring, Head) or isinstance(trial.method, LastLayer)
        widths = {d_in for d_in, _ in layers.values()} | ({config["hidden_size"]} if head else set())
        for width in widths:
            masks.generate(width, seeds.stream("masks", width))


def _check_backbone(trial: Trial, config: dict[str, Any]) -> None:
    task, kind, name = trial.task, kind_of(config), trial.backbone.label
    what = "causal LM" if kind == "causal" else f"{kind} encoder"
    if task.modality != ("text" if kind == "causal" else kind):
        raise ValueError(
            f"{name} is a {what}, {task.name} has {task.modality} examples; take a backbone for "
            f"{task.modality}, or another task"
        )
    if (kind != "causal") != isinstance(task.scoring, Head):
        fit = "Letters(), LabelWords() or OptionLikelihood()" if kind == "causal" else "Head()"
        raise ValueError(f"{task.name} is scored by {task.scoring}, {name} is a {what}; write scoring={fit}")
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


def _check_shots(method: InContext, trial: Trial, config: dict[str, Any]) -> None:
    num_train, longest = len(trial.task.examples("train")), most_tokens(config)
    if method.shots > num_train:
        raise ValueError(
            f"shots={method.shots}: {trial.task.name} has {num_train} training examples; write "
            f"InContext(shots={num_train}) or fewer"
        )
    most, parts = trial.budget.max_tokens, method.shots + 1
    if longest and parts * most > longest:
        raise ValueError(
            f"shots={method.shots} with max_tokens={most}: a prompt of {parts} such parts has {parts * most} "
            f"tokens, {trial.backbone.label} reads at most {longest}; write "
            f"Budget(max_tokens={longest // parts}), or fewer shots"
        )


def _check_full(trial: Trial, config: dict[str, Any]) -> None:
    needed = full_member_bytes(config)
    if needed > MAX_FULL_BYTES:
        raise ValueError(
            f"Full() of {trial.backbone.label} needs {needed / 2**30:.1f} GiB for each member's weights, "
            f"gradients and moments, at most {MAX_FULL_BYTES / 2**30:.0f} GiB are allowed; write Lora(), or "
            "take a smaller backbone"
        )


def _check_answers(trial: Trial, ood: Sequence[Task]) -> None:
    task = trial.task
    if isinstance(task.scoring, OptionLikelihood):
        raise ValueError(
            f"LastLayer() with {task.scoring}: the options of {task.name} are texts, not classes of one "
            "head; score by Letters() or LabelWords()"
        )
    splits: list[tuple[Task, Split]] = [(task, "train"), (task, "validation"), (task, "test")]
    splits.extend((t, "test") for t in ood)
    first = None
    for where, split in splits:
        for example in where.examples(split):
            answers = where.prompt(example).answers
            first = first or (answers, example.id)
            if answers != first[0]:
                raise ValueError(
                    f"LastLayer() on {task.name}: {example.id} of {where.name} has the answers {answers}, "
                    f"{first[1]} has {first[0]}; one head has the same classes for all examples, so take a "
                    "task whose examples share them, or write Lora()"
                )
