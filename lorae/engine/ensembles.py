"""A stored ensemble as an object: it answers texts, questions, images or sounds that nobody stored, by a
class or by a text of its own.

ensemble = lorae.Ensemble.load("lorae-results")
found = ensemble.predict(["a film to remember", "two hours I want back"])
found.labels, found.probabilities, found.mutual_information
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch

from lorae import ensemble, metrics, tasks
from lorae.combinations import COMBINATIONS
from lorae.draws import read_draws
from lorae.engine.ensemble_prediction import EnsemblePrediction
from lorae.engine.ensemble_texts import EnsembleTexts, texts_of, written
from lorae.engine.given import Given, examples_of
from lorae.engine.prediction import pooled_draws, predict
from lorae.engine.stored import (
    Group,
    StoredStack,
    check_answers,
    encoded,
    groups,
    in_context_logits,
    soup_logits,
)
from lorae.lookup import find_trial
from lorae.metrics.diversity import example_mutual_information
from lorae.metrics.probability import entropy
from lorae.shapes import Kind, kind_of
from lorae.sources import Files, backbone_config
from lorae.store.names import pool_folders
from lorae.store.store import Store
from lorae.tasks.base import Example, Generate, Task
from lorae.texts.kinds import number_key
from lorae.texts.quality import normalised

if TYPE_CHECKING:
    from lorae.backbone.loading import Backbone

COVERAGE = 0.9
_ALONE = threading.RLock()  # ensembles of one process share the backbone that their members are put into


@dataclass(frozen=True, eq=False)
class Ensemble:
    """The members of a stored trial on their backbone; made by `Ensemble.load`.

    Attributes:
        row: the trial's row of trials.parquet.
        classes: the options of inputs that have none of their own; None = such inputs are refused.
    """

    store: Store
    row: dict[str, Any]
    groups: tuple[Group, ...]
    device: str
    classes: tuple[str, ...] | None
    own: Task | None

    @classmethod
    def load(
        cls,
        storage: str | Store,
        trial: str | None = None,
        *,
        sweep: str | None = None,
        classes: Sequence[str] | None = None,
        task: Task | None = None,
        backbone: str | None = None,
        device: str | None = None,
    ) -> Ensemble:
        """The ensemble of a stored trial, ready to predict.

        Args:
            storage: path or URI.
            trial: its `trial_id`, or a beginning of it; None = the trial with the lowest validation NLL, of
                several members if there is one.
            sweep: where to look; None = all sweeps of the storage.
            classes: names of the classes in the order of the labels, for members whose records do not say.
            task: the members' task, where its own code makes prompts (`Task.prompt`).
            backbone: folder where the members' backbone is now; None = where it was when they were trained.
            device: "cpu" or "cuda"; None = a GPU if there is one.
        Raises:
            ValueError: no such trial, or members or a backbone that cannot be read.
        """
        store = storage if isinstance(storage, Store) else Store(str(storage))
        row = find_trial(store, trial, sweep)
        source = Files(backbone) if backbone else None
        found = tuple(groups(store, row["member_ids"], source))
        if found and found[0].scoring.answer == "value":
            raise ValueError(
                f"the members of trial {row['trial_id']} answer by a value, not a class or a text; choose "
                "another by its trial_id, or read what they stored: lorae table STORAGE"
            )
        names = tuple(classes) if classes else next((g.classes or g.options for g in found), None)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(store, row, found, device, names, task or _own_task(found[0]))

    @property
    def writes(self) -> bool:
        """Whether its members write texts (`generate`) or choose among classes (`predict`)."""
        return self.groups[0].scoring.answer == "text"

    @property
    def temperature(self) -> float:
        """What the stored trial's pooled prediction is scaled by: cross-fitted on its test examples; 1 where
        these do not determine it."""
        return self.row["temperature"] or 1.0

    @property
    def num_members(self) -> int:
        return self.row["members"]

    @property
    def reads(self) -> Literal["text", "image", "audio"]:
        """What its inputs are."""
        kind = self._kind
        return "text" if kind == "causal" else kind

    def __str__(self) -> str:
        row = self.row
        return (
            f"{row['members']} x {row['method']} on {row['backbone']}, task {row['task']}, regulariser "
            f"{row['regularizers']}, seed {row['seed']} (trial {row['trial_id']} of sweep {row['sweep']})"
        )

    def predict(self, inputs: Any, *, coverage: float = COVERAGE) -> EnsemblePrediction:
        """Predict, all members in one stacked forward pass. Nothing is stored.

        Args:
            inputs: one or many of: a text; a row (dict) with a `question`, `text` or `sentence`, and its own
                `options` and `id` if it has some; an `Example`; an image or sound (a file's path or content,
                an array of uint8, a picture of Pillow's, (samples, rate)). Or a DataFrame.
            coverage: of the conformal sets, in (0, 1).
        Raises:
            ValueError: an input that cannot be read, with its place; or members that write texts.
        """
        self.check_writes(False)
        examples = examples_of(inputs, self._kind, self.classes)
        with _ALONE:
            logits_MKNC, num_truncated = self._logits(examples)
        logits_DNC = logits_MKNC.reshape(-1, *logits_MKNC.shape[2:])
        logp_NC = ensemble.scale(metrics.combine(logits_DNC, self._rule), self.temperature)
        several = len(logits_DNC) > 1
        options = tuple(e.options for e in examples)
        return EnsemblePrediction(
            ids=tuple(e.id for e in examples),
            labels=tuple(names[c] for names, c in zip(options, logp_NC.argmax(axis=1))),
            options=options,
            probabilities=np.exp(logp_NC),
            member_probabilities=np.exp(metrics.log_softmax(pooled_draws(logits_MKNC))),
            entropy=entropy(logp_NC),
            mutual_information=(
                example_mutual_information(logits_DNC) if several else np.full(len(examples), math.nan)
            ),
            conformal_sets=self._sets(logp_NC, options, coverage),
            coverage=coverage,
            temperature=self.temperature,
            notes=self._notes(num_truncated, len(examples)),
        )

    def generate(self, inputs: Any, *, stop: Sequence[str] = ()) -> EnsembleTexts:
        """Write an answer to each input, greedily: each member its own and all together in lock-step by their
        mean probability, or the stored soup. Nothing is stored.

        Args:
            inputs: as for `predict`, without options.
            stop: texts before which an answer ends, beside the tokenizer's end token.
        Raises:
            ValueError: an input that cannot be read, with its place; a stop that the tokenizer cannot make;
                or members that choose among classes.
        """
        self.check_writes(True)
        examples = examples_of(inputs, self._kind, None, without_options=True)
        (group,) = self.groups
        scoring = replace(cast(Generate, group.scoring), stop=tuple(stop))
        with _ALONE:
            scoring.check_tokenizer(self._model.tokenizer)
            rows = encoded(group, self._model, self._task(group, examples))
            prompts = {f"{n}": row.tokens for n, row in enumerate(rows)}  # ids of a user's may repeat
            answers = written(
                self.store, group, self.row["member_ids"], self._soup, self._model, prompts, scoring
            )
        key = normalised if self.row["number_match"] is None else number_key
        found = texts_of(answers, key, self._cut(sum(row.truncated > 0 for row in rows), len(rows)))
        return replace(found, ids=tuple(e.id for e in examples))

    def check_writes(self, writes: bool) -> None:
        """Refuse members that write texts, or that do not.

        Raises:
            ValueError: says which method they have.
        """
        if self.writes != writes:
            does = "write texts; call generate" if self.writes else "choose among classes; call predict"
            raise ValueError(f"the members of trial {self.row['trial_id']} {does}")

    def backbone_probabilities(self, inputs: Any) -> np.ndarray | None:
        """Probabilities (N, C) of the backbone without its members, at temperature 1; None if it has none."""
        group = self.groups[0]
        if not group.scoring.backbone_has_classes or group.method.regime == "features":
            return None
        examples = examples_of(inputs, self._kind, self.classes)
        task = self._task(group, examples)
        with _ALONE:
            rows = encoded(group, self._model, task)
            return np.exp(metrics.log_softmax(predict(self._model, rows)[0]))

    def _task(self, group: Group, examples: tuple[Example, ...]) -> Given:
        return Given(scoring=group.scoring, given=examples, written=group.template, own=self._asking(group))

    @cached_property
    def _kind(self) -> Kind:
        return kind_of(backbone_config(self.groups[0].source))

    @cached_property
    def _model(self) -> Backbone:
        return self.groups[0].loaded(self.device)

    @property
    def _rule(self) -> metrics.Rule:
        return COMBINATIONS[self.row["combine"]].rule

    @property
    def _soup(self) -> str | None:
        """Name of the combination that makes one model of the members."""
        combine = self.row["combine"]
        return combine if COMBINATIONS[combine].soup and self.num_members > 1 else None

    def _logits(self, examples: tuple[Example, ...]) -> tuple[np.ndarray, int]:
        """Logits (M, K, N, C) of K draws of each member, and how many examples were too long."""
        found, num_truncated, model = dict[str, np.ndarray](), 0, self._model
        for group in self.groups:
            task = self._task(group, examples)
            check_answers(group, task)
            if not group.method.trains:
                found |= zip(group.members, in_context_logits(group, [*group.members], model, task))
                continue
            rows = encoded(group, model, task)
            num_truncated = sum(row.truncated > 0 for row in rows)
            if self._soup:
                return soup_logits(
                    self.store, group, self.row["member_ids"], self._soup, model, rows
                ), num_truncated
            draws = read_draws(self.row["draws"])
            for ids, stack in self._stacks(group, rows[0].answer_ids):
                found |= zip(ids, stack.logits(rows, draws))
        return np.stack([found[member] for member in self.row["member_ids"]]), num_truncated

    def _asking(self, group: Group) -> Task | None:
        """The task whose own code makes the prompts; None = their template does."""
        if self.own is None and group.own_prompt:
            raise ValueError(
                f"the prompts of task {self.row['task']} are made by its own code; give the task: "
                "Ensemble.load(..., task=MyTask())"
            )
        return self.own and replace(self.own, scoring=group.scoring)

    def _stacks(self, group: Group, answer_ids: Sequence[int]) -> Iterator[tuple[list[str], StoredStack]]:
        """The group's members in stacks; kept for the next call but where each is a whole model."""
        ids, size = [*group.members], group.stack_members
        heads = tuple(answer_ids) if group.classes or group.answers else ()  # else no weight depends on them
        for part in (ids[start : start + size] for start in range(0, len(ids), size)):
            key = (*part, heads)
            stack = self._kept.get(key) or StoredStack(self.store, group, part, self._model, answer_ids)
            if group.method.regime != "alone":
                self._kept[key] = stack
            yield part, stack

    @cached_property
    def _kept(self) -> dict[Any, StoredStack]:
        return {}

    @cached_property
    def _calibration(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Log-probabilities (N, C) of the test examples, no label scaled by a temperature that it helped to
        fit, and the labels; None where some have none."""
        row = self.row
        folders = pool_folders(row["member_ids"], row["reference_id"], self._soup)
        stored = self.store.predictions(folders, json.loads(row["eval_sets"])["test"])
        if (stored.labels_N < 0).any():
            return None
        pooled_NC = metrics.combine(stored.logits_MNC, self._rule)
        scaled = row["temperature"] is not None
        logp_NC = ensemble.cross_fitted(pooled_NC, stored.labels_N).logp_NC if scaled else pooled_NC
        return logp_NC, stored.labels_N

    def _sets(
        self, logp_NC: np.ndarray, options: Sequence[tuple[str, ...]], coverage: float
    ) -> tuple[tuple[str, ...], ...] | None:
        """Names of the classes in each conformal set."""
        if self._calibration is None:
            return None
        kept_NC = metrics.conformal_sets(logp_NC, metrics.conformal_threshold(*self._calibration, coverage))
        return tuple(tuple(compress(names, kept)) for names, kept in zip(options, kept_NC))

    def _notes(self, num_truncated: int, num_inputs: int) -> tuple[str, ...]:
        row, found = self.row, list[str]()
        if row["temperature"] is None:
            found.append(f"no temperature is applied: {row['temperature_flag']}")
        found += self._cut(num_truncated, num_inputs)
        if self._calibration is None:
            found.append("no conformal sets: the test examples have no labels")
        return tuple(found)

    def _cut(self, num_truncated: int, num_inputs: int) -> list[str]:
        if not num_truncated:
            return []
        limit = f"max_tokens={self.row['max_tokens']}"
        return [f"{num_truncated} of {num_inputs} inputs are longer than {limit} and were cut"]


def _own_task(group: Group) -> Task | None:
    """The task of lorae that made the prompts of members by its own code; None = their template did."""
    content = group.recipe["task"]
    if "template" in content:  # a task of the user's
        return None
    for kind in vars(tasks).values():
        if isinstance(kind, type) and issubclass(kind, Task) and kind.prompt is not Task.prompt:
            with contextlib.suppress(TypeError, ValueError):  # another task's fields
                task = kind(scoring=group.scoring, **content.get("fields", {}))
                if task.name == content.get("task"):
                    return task
    return None
