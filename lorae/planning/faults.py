"""Faults of a sweep, found without the weights of its backbones: data, labels, templates, tokens and the fit
of each recipe to its backbone. A dry run refuses the first fault, `lorae check` lists all.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lorae.backbone.checks import inspect_backbone
from lorae.methods import Method
from lorae.planning.checks import check_recipe
from lorae.shapes import kind_of
from lorae.sources import Hub, Source, backbone_config, backbone_folder, resolve, unreachable
from lorae.tasks.base import Example, Split, Task
from lorae.tasks.splits import label_faults, row_faults
from lorae.trial import Sweep, Trial

TOLD = 3  # reported examples of a split that cannot be encoded: mostly all fail for one reason
SAMPLED = 8  # first examples, and longest examples, to encode
OPTION_SETS = 64  # distinct option sets to encode
MEDIA_CHUNK = 64  # images or audio clips decoded at once

Evaluated = tuple[Trial, tuple[Task, ...]]  # a trial with its OOD tasks


def sweep_faults(sweep: Sweep, data_root: Path | None) -> list[str]:
    """All faults of a sweep, whose sources need not be resolved yet. Checks that depend on something faulty
    are skipped."""
    trials = sweep.trials()
    trained = dict.fromkeys(trial.task for trial in trials)
    faults = []
    for source in dict.fromkeys(t.backbone for t in trials):
        faults += backbone_faults(source, dict.fromkeys(t.method for t in trials if t.backbone == source))
    for task in dict.fromkeys([*trained, *sweep.ood]):
        faults += data_faults(task, data_root, trained=task in trained)
    if not faults:
        located = sweep.located(data_root)
        evaluated: list[Evaluated] = []
        for trial in located.trials():
            with _noting(faults):
                ood = tuple(located.eval_tasks(trial))
                evaluated.append((trial, ood))
                check_recipe(trial, ood, backbone_config(trial.backbone))
        faults = faults or input_faults(evaluated)
    return list(dict.fromkeys(faults))


@contextlib.contextmanager
def _noting(faults: list[str]) -> Iterator[None]:
    """Add the errors that the block raises to the faults."""
    try:
        yield
    except (ValueError, OSError) as error:
        faults.append(str(error))


def backbone_faults(source: Source, methods: Iterable[Method]) -> list[str]:
    """Faults of a backbone that these methods adapt."""
    faults: list[str] = []
    with _noting(faults):
        faults += inspect_backbone(resolve(source), tuple(methods)).faults
    return faults


def data_faults(task: Task, data_root: Path | None, *, trained: bool) -> list[str]:
    """Faults of a task's files and rows, each with its file and row.

    Args:
        trained: the task is trained on, so it needs labels; otherwise only its test split is read, as an OOD
            set.
    """
    faults: list[str] = []
    with _noting(faults):
        task = task.located(data_root)
        if trained:
            task.fingerprint()
    if faults:
        return faults
    for split in ("test", "train") if trained else ("test",):
        with _noting(faults):
            faults += row_faults(task, split)
    with _noting(faults):
        faults += label_faults(task) if trained else []
        if not faults and trained:
            task.splits()
        elif not faults:
            task.examples("test")
    return faults


# Tokens, images and audio
# ----------------------------------------------------------------------------------------------------------


def input_faults(trials: Sequence[Evaluated], seconds: float = float("inf")) -> list[str]:
    """Why backbones cannot read the examples of trials and their OOD tasks: a sample of texts is encoded, and
    as many images and audio clips are decoded as time allows.

    Args:
        seconds: time limit for decoding.
    """
    distinct = {_inputs_of(trial, ood): (trial, ood) for trial, ood in trials}
    faults, deadline = [], time.monotonic() + seconds
    for trial, ood in distinct.values():
        with _noting(faults):
            _read_inputs(trial, ood, deadline, faults)
    return list(dict.fromkeys(faults))


def _inputs_of(trial: Trial, ood: tuple[Task, ...]) -> Any:
    """What the encoding of a trial's examples depends on."""
    prompted = None if trial.method.trains else (trial.method, trial.seed)
    return trial.backbone, trial.task, ood, trial.budget.max_tokens, prompted


def _read_inputs(trial: Trial, ood: Sequence[Task], deadline: float, faults: list[str]) -> None:
    from lorae.engine.in_context import draw_context
    from lorae.tasks.encoding import head_classes

    tokenizer, classes = read_tokenizer(trial.backbone), head_classes(trial.task)
    splits: list[tuple[Task, Split]] = [(trial.task, split) for split in ("train", "validation", "test")]
    for task, split in [*splits, *((t, "test") for t in ood)]:
        examples = task.examples(split)
        if task.modality == "text":
            sample = _sample(examples)
            faults += _equal_prompts(task, sample)
            faults += _wrong_ids(trial.backbone, task, examples, sample)
            faults += _not_encoded(tokenizer, task, sample, trial.budget.max_tokens, classes)
            continue
        for start in range(0, len(examples), MEDIA_CHUNK):
            chunk = examples[start : start + MEDIA_CHUNK]
            faults += _not_encoded(tokenizer, task, chunk, trial.budget.max_tokens, classes)
            if time.monotonic() > deadline:
                return
    if trial.members and not trial.method.trains:
        draw_context(tokenizer, trial, 0)


@functools.lru_cache(maxsize=4)
def read_tokenizer(source: Source) -> Any:
    """Tokenizer of a causal LM, or the `Inputs` of an encoder, without the weights.

    Raises:
        ValueError: there is no tokenizer or processor.
    """
    from lorae.backbone import tokens
    from lorae.backbone.encoders import read_inputs

    folder, config = _folder_without_weights(source), backbone_config(source)
    return tokens.read_tokenizer(folder) if kind_of(config) == "causal" else read_inputs(folder, config)


def _folder_without_weights(source: Source) -> Path:
    if not isinstance(source, Hub):
        return backbone_folder(source)
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(source.id, revision=source.revision, allow_patterns=patterns))
    except Exception as error:
        raise ValueError(unreachable(source, "model", error)) from error


def _sample(examples: Sequence[Example]) -> list[Example]:
    """The examples with the longest options and the longest questions, the first examples, and one example
    for each of some option sets."""
    by_answer = sorted(examples, key=lambda e: -max((len(o.encode()) for o in e.options), default=0))
    by_question = sorted(examples, key=lambda e: -len(e.question))
    by_options = {e.options: e for e in examples[: 100 * OPTION_SETS]}
    longest = [*by_answer[:SAMPLED], *by_question[:SAMPLED]]
    return list(dict.fromkeys([*longest, *examples[:SAMPLED], *[*by_options.values()][:OPTION_SETS]]))


def _wrong_ids(
    source: Source, task: Task, examples: Sequence[Example], sample: Sequence[Example]
) -> list[str]:
    """Why the tokenizer's ids for a task's texts differ from its file's, or are not embedded by the model."""
    from lorae.backbone.tokens import check_embedded, check_ids

    tokenizer, folder, faults = read_tokenizer(source), _folder_without_weights(source), []
    tokenizer = getattr(tokenizer, "processor", tokenizer)  # of an encoder
    with _noting(faults):
        check_ids(tokenizer, folder, [task.prompt(e).text for e in sample])
    with _noting(faults):
        texts = (text for e in examples for p in [task.prompt(e)] for text in (p.text, *p.answers))
        check_embedded(tokenizer, backbone_config(source)["vocab_size"], folder, texts)
    return faults


def _equal_prompts(task: Task, examples: Sequence[Example]) -> list[str]:
    prompts = {(p.text, p.answers): e for e in examples for p in [task.prompt(e)]}
    if len(prompts) > 1 or len({e.question for e in examples}) < 2:
        return []
    one, other = examples[0], next(e for e in examples if e.question != examples[0].question)
    return [
        f"{task.name}: the prompts of {one.id} and {other.id} are equal, though their questions differ; let "
        f"{type(task).__name__}.prompt() show the question"
    ]


def _not_encoded(
    tokenizer: Any, task: Task, examples: Sequence[Example], max_tokens: int, classes: tuple[str, ...] | None
) -> list[str]:
    """Why examples cannot be encoded: each is tried separately if they cannot be encoded together."""
    from lorae.tasks.encoding import encode

    together: list[str] = []
    with _noting(together):
        encode(tokenizer, task, examples, max_tokens, classes)
    faults: list[str] = []
    for example in examples if together else ():
        with _noting(faults):
            encode(tokenizer, task, [example], max_tokens, classes)
    more = len(faults) - TOLD
    return faults[:TOLD] + ([f"{task.name}: {more} more examples cannot be encoded"] if more > 0 else [])
