"""Stored members by everything that a prediction depends on, and what they predict, from the store alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from lorae.backbone.loading import Backbone, load_backbone, set_matmul_precision
from lorae.combinations import COMBINATIONS
from lorae.draws import Draws
from lorae.engine.adapters import Adapters, Soup, State
from lorae.engine.drawing import Drawing, read_fit
from lorae.engine.in_context import predict_in_context
from lorae.engine.prediction import predict_draws, with_features
from lorae.identity import canonical, canonical_json, spec_of
from lorae.methods import METHODS, Init, Method, method_named
from lorae.noise import make_noise
from lorae.regularizers import REGULARIZERS, Regularizer
from lorae.seeds import Key
from lorae.sources import DataSource, Source
from lorae.store.names import RECORD as RECORD_FILE
from lorae.store.names import member_folder, soup_folder
from lorae.store.peft_format import read_stages
from lorae.store.store import Store
from lorae.tasks.base import Task
from lorae.tasks.encoding import Row, encode
from lorae.tasks.scoring import SCORINGS, Scoring, scoring_named
from lorae.trial import backbone_id
from lorae.untrusted import check, count

SPECS = (*get_args(DataSource), *METHODS, *get_args(Init), *REGULARIZERS)
STACK_MEMBERS = 16  # predicted in one pass


def _class_names(value: Any) -> bool:
    """A shape: names of a head's classes, or answers that it has rows of, or nothing."""
    return value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value))


RECORD = {  # what is relied on in a member.json
    "member_id": str,
    "recipe": {
        "backbone": {},
        "method": {},
        "precision": str,
        "budget": {"max_tokens": count},
        "task": {"scoring": {}},
        "regularizers": [{"type": str}],
    },
    "streams": {str: list},
    "classes": _class_names,
    "answers": _class_names,
    "options": _class_names,
}
TRAINED, PROMPTED = {"streams": {"init": list}}, {"context": {"text": str}}  # and by what a member does


@dataclass(frozen=True)
class Group:
    """Members that one stack can predict with: their backbone, method and scoring are the same."""

    recipe: dict[str, Any]
    source: Source
    scoring: Scoring
    template: str
    classes: tuple[str, ...] | None  # of the members' heads
    answers: tuple[str, ...] | None  # that the members have own rows of the language model's head for
    options: tuple[str, ...] | None  # that all examples of their task have; None also of an older lorae
    own_prompt: bool  # whether the code of their task makes its prompts, not the template alone
    context: str  # what the members read before a question
    members: dict[str, dict[str, Key]]  # id -> its named streams

    @property
    def method(self) -> Method:
        return spec_of(self.recipe["method"], SPECS)

    @property
    def noise(self) -> tuple[Regularizer, ...]:
        """What the members were trained with, and may predict with."""
        return tuple(spec_of(spec, SPECS) for spec in _noise(self.recipe))

    @property
    def stack_members(self) -> int:
        """Members that predict in one pass; those that share no weights do so one after another anyway."""
        return 1 if self.method.regime == "alone" else STACK_MEMBERS

    @property
    def max_tokens(self) -> int:
        return self.recipe["budget"]["max_tokens"]

    @property
    def reference_id(self) -> str:
        return backbone_id(self.source, self.recipe["precision"], self.max_tokens)

    def loaded(self, device: str) -> Backbone:
        """The members' backbone, which computes as it did for their sweep."""
        precision = self.recipe["precision"]
        set_matmul_precision(precision, device)
        return load_backbone(self.source, precision, device)


def groups(store: Store, members: Sequence[str], backbone: Source | None) -> Iterator[Group]:
    """Members by everything that a prediction depends on, and their backbone found and checked."""
    pools: dict[str, list[dict[str, Any]]] = {}
    for member in members:
        with _damage_discarded(store, [member]):
            record = store.record(member_folder(member), RECORD)
            recipe = record["recipe"]
            shape = PROMPTED if _is_prompted(recipe) else TRAINED
            check(record, f"{member_folder(member)}/{RECORD_FILE}", shape)
        if not _needed(recipe) <= record.keys():
            raise ValueError(
                f"member {member} was stored by an older lorae; predict with a sweep's ood=[...]"
            )
        same = [recipe[name] for name in ("backbone", "precision", "method")]
        same += [recipe["budget"]["max_tokens"], recipe["task"]["scoring"], record["prompt_template"]]
        same += [record.get("classes"), record.get("answers")]
        same += [_noise(recipe), recipe.get("optimizer", {}).get("cycles"), _context(record)]
        pools.setdefault(canonical_json(same), []).append(record)
    for records in pools.values():
        recipe = records[0]["recipe"]
        yield Group(
            recipe,
            _found(backbone or spec_of(records[0]["source"], SPECS), recipe),
            spec_of(recipe["task"]["scoring"], SCORINGS),
            records[0]["prompt_template"],
            tuple(records[0].get("classes") or ()) or None,
            tuple(records[0].get("answers") or ()) or None,
            next((tuple(options) for r in records if (options := r.get("options"))), None),
            any(r.get("own_prompt") is True for r in records),
            _context(records[0]),
            {r["member_id"]: {k: tuple(v) for k, v in r["streams"].items()} for r in records},
        )


def _needed(recipe: dict[str, Any]) -> set[str]:
    """What a member's record must say beside its recipe, as those of an older lorae do not."""
    method = method_named(recipe["method"].get("type"))
    scoring = scoring_named(recipe["task"]["scoring"].get("type"))
    on_features = method is not None and method.regime == "features"
    answers = {"answers"} if on_features and not scoring.trains_head else set()
    return {"prompt_template", "source"} | answers


def _context(record: dict[str, Any]) -> str:
    """What a member reads before a question."""
    return record["context"]["text"] if _is_prompted(record["recipe"]) else ""


def _is_prompted(recipe: dict[str, Any]) -> bool:
    """Whether its members train nothing."""
    method = method_named(recipe["method"].get("type"))
    return method is not None and method.regime == "prompted"


def _noise(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """The regularisers that a prediction may depend on."""
    kinds = {kind.__name__ for kind in REGULARIZERS if kind.is_noise}
    return [spec for spec in recipe["regularizers"] if spec["type"] in kinds]


def _found(source: Source, recipe: dict[str, Any]) -> Source:
    try:
        same = canonical(source) == recipe["backbone"]
    except ValueError as error:
        raise ValueError(f"{error}; or say where the backbone is now by --backbone DIR") from error
    if not same:
        raise ValueError(
            f"{source} is not the backbone that the members were trained on; its content differs"
        )
    return source


def encoded(group: Group, model: Backbone, task: Task) -> list[Row]:
    """A task's test split as the group's members read it."""
    rows = encode(model.tokenizer, task, task.examples("test"), group.max_tokens, group.classes)
    return with_features(model, rows) if group.method.regime == "features" else rows


def check_answers(group: Group, task: Task) -> None:
    """Refuse examples whose answers the members' heads have no rows of.

    Raises:
        ValueError: the example, its answers, and those of the members.
    """
    for example in task.examples("test") if group.answers else ():
        if (answers := task.prompt(example).answers) != group.answers:
            raise ValueError(
                f"{task.name} {example.id} has the answers {answers}, the members' heads have rows of "
                f"{group.answers}; use a task that has these, or members of another method than LastLayer"
            )


def stages(store: Store, members: Sequence[str]) -> list[list[State]]:
    """`read_stages` of some of a group's members."""
    with _damage_discarded(store, members):
        return read_stages(store, members)


@contextlib.contextmanager
def _damage_discarded(store: Store, members: Sequence[str]) -> Iterator[None]:
    """Discard those members that the block finds damaged: the sweep that it says to repeat would find them
    stored, where no date shows the damage."""
    try:
        yield
    except ValueError:
        store.set_damaged_aside(map(member_folder, members))
        raise


class StoredStack:
    """Some of a group's members, read once, that predict together as often as they are asked.

    Args:
        model: their backbone, which has them in it only while they predict.
        answer_ids: of the rows to come, see `Adapters`.
    """

    def __init__(
        self, store: Store, group: Group, members: Sequence[str], model: Backbone, answer_ids: Sequence[int]
    ) -> None:
        streams = [group.members[m] for m in members]
        noise, inits = make_noise(group.method, group.noise, streams), [s["init"] for s in streams]
        self.adapters, self.held = Adapters(model, group.method, inits, noise, answer_ids), -1
        self.drawings = [
            Drawing(
                self.adapters,
                states,
                members,
                stored=lambda ids, spec: {m: read_fit(store, m, spec) for m in ids},
                train=list,
                rows_at_once=group.recipe["budget"]["batch_size"],
            )
            for states in stages(store, members)
        ]

    def logits(self, rows: Sequence[Row], draws: Draws | None) -> np.ndarray:
        """Logits (M, K, N, C) of K draws of each member, those of snapshots behind one another."""
        drawn = []
        with self.adapters:
            for stage, drawing in enumerate(self.drawings):
                if stage != self.held:
                    self.adapters.load(drawing.states)
                    self.held = stage
                drawn.append(drawing.predict(rows, draws))
        return np.concatenate(drawn, axis=1)


def in_context_logits(group: Group, members: Sequence[str], model: Backbone, task: Task) -> np.ndarray:
    """The same of members that train nothing: those of a group read the same."""
    logits_NC = predict_in_context(model, group.method, group.context, group.max_tokens, task, "test")
    return np.stack([logits_NC[None]] * len(members))


def soup_logits(
    store: Store, group: Group, members: Sequence[str], soup: str, model: Backbone, rows: Sequence[Row]
) -> np.ndarray:
    """Logits (1, K, N, C) of the stored soup of a group's members.

    Args:
        soup: name of the combination that made it.
    Raises:
        ValueError: it is not stored, or of members that were trained again since.
    """
    chosen = soup_of(store, members, soup)
    inits, states = [group.members[m]["init"] for m in chosen], stages(store, chosen)[-1]
    with Soup(model, group.method, inits, states, rows[0].answer_ids):
        return predict_draws(model, rows)


def soup_of(store: Store, members: Sequence[str], soup: str) -> Sequence[str]:
    """The members whose parameters a stored soup averages.

    Raises:
        ValueError: it is not stored, or of members that were trained again since.
    """
    if store.is_of_others(members, soup):
        folder = soup_folder(members, soup)
        raise ValueError(f"{folder} is of members that were trained again; repeat the sweep that made it")
    return COMBINATIONS[soup].chosen(store.soup_record(members, soup))
