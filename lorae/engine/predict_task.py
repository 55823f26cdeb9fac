"""Predictions of stored members on a task that their sweep did not ask for, from the store alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np

from lorae.backbone.loading import Backbone, load_backbone, set_matmul_precision
from lorae.combinations import COMBINATIONS
from lorae.draws import Draws, Fitted, drawn_set
from lorae.engine.adapters import Adapters, Soup, State
from lorae.engine.drawing import Drawing, read_fit
from lorae.engine.in_context import predict_in_context
from lorae.engine.prediction import predict, predict_draws, with_features
from lorae.identity import canonical, canonical_json, spec_of
from lorae.methods import METHODS, Init, Method, method_named
from lorae.noise import make_noise
from lorae.regularizers import REGULARIZERS, Regularizer
from lorae.seeds import Key
from lorae.sources import DataSource, Source
from lorae.store.names import RECORD as RECORD_FILE
from lorae.store.names import entry_lock, member_folder, reference_folder, soup_folder
from lorae.store.peft_format import read_stages
from lorae.store.predictions import prediction_file, rows_bytes
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
}
TRAINED, PROMPTED = {"streams": {"init": list}}, {"context": {"text": str}}  # and by what a member does


@dataclass(frozen=True)
class _Group:
    """Members that one stack can predict with: their backbone, method and scoring are the same."""

    recipe: dict[str, Any]
    source: Source
    scoring: Scoring
    template: str
    classes: tuple[str, ...] | None  # of the members' heads
    answers: tuple[str, ...] | None  # that the members have own rows of the language model's head for
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


def predict_task(
    store: Store,
    members: Sequence[str],
    task: Task,
    *,
    draws: Draws | None = None,
    device: str = "cpu",
    backbone: Source | None = None,
    on_progress: Callable[[str], None] = lambda text: None,
) -> int:
    """Predict a task's test split with stored members and their backbone, in stacks of up to 16 members.

    The task is scored as each member's own task is. What is stored already is not predicted again.

    Args:
        members: ids of stored members.
        task: with its source fixed (`Task.located`).
        draws: several predictions of each member, beside the plain ones; None = those. Those that are
            fitted to members are as in the sweep that had them.
        backbone: where the members' backbone is now; None = where it was when they were trained.
    Returns:
        The number of members that lacked the prediction set.
    Raises:
        ValueError: another prompt template than the members' own task has, other answers than those of a
            `LastLayer`, another backbone than theirs, draws by a dropout that they were not trained with or
            by ones that were not fitted, or a member that cannot be read; one that is damaged is
            discarded.
    """
    groups = list(_groups(store, members, backbone))
    tasks = [_scored_alike(task, group) for group in groups]
    for group in groups if draws else ():
        if draws and (why := draws.unfit(group.method, group.noise)):
            raise ValueError(f"draws={draws}: some members {why}; leave them out")
    if isinstance(draws, Fitted):
        for member in members:
            store.fit_record(member, draws)
    num_predicted = 0
    for group, own in zip(groups, tasks):
        plain, name = own.eval_set("test"), drawn_set(own.eval_set("test"), draws)
        reference = reference_folder(group.reference_id)
        wanted = {} if group.classes else {reference: plain}
        wanted |= {member_folder(m): name for m in group.members}
        lacking = [f for f, wanted_set in wanted.items() if prediction_file(wanted_set) not in store.files(f)]
        if not lacking:
            continue
        model, rows = _loaded(group, own, device)
        if reference in lacking:
            _store(store, reference, plain, own, rows, predict(model, rows))
        ids = [m for m in group.members if member_folder(m) in lacking]
        for start in range(0, len(ids), group.stack_members):
            stack = ids[start : start + group.stack_members]
            if not group.method.trains:
                logits_MKNC = _in_context_logits(group, stack, model, own)
            else:
                logits_MKNC = _stack_logits(store, group, stack, model, rows, draws)
            for member, logits_KNC in zip(stack, logits_MKNC):
                _store(store, member_folder(member), name, own, rows, logits_KNC)
            on_progress(f"{name}: {start + len(stack)} of {len(ids)} members of {group.source.label}")
        num_predicted += len(ids)
    return num_predicted


def predict_soup(
    store: Store,
    members: Sequence[str],
    task: Task,
    *,
    soup: str = "weights",
    device: str = "cpu",
    backbone: Source | None = None,
) -> bool:
    """Predict a task's test split with the stored soup of some members; whether it lacked it.

    Args and raises as `predict_task`; also if the soup is of members that were trained again since.

    Args:
        soup: name of the combination that made it.
    """
    (group,) = _groups(store, members, backbone)
    own, folder = _scored_alike(task, group), soup_folder(members, soup)
    name = own.eval_set("test")
    if store.has_predictions(folder, [name]):
        return False
    if store.is_of_others(members, soup):
        raise ValueError(f"{folder} is of members that were trained again; repeat the sweep that made it")
    model, rows = _loaded(group, own, device)
    chosen = COMBINATIONS[soup].chosen(store.soup_record(members, soup))
    inits, states = [group.members[m]["init"] for m in chosen], _stages(store, chosen)[-1]
    with Soup(model, group.method, inits, states, rows[0].answer_ids):
        _store(store, folder, name, own, rows, predict_draws(model, rows)[0])
    return True


def _groups(store: Store, members: Sequence[str], backbone: Source | None) -> Iterator[_Group]:
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
        yield _Group(
            recipe,
            _found(backbone or spec_of(records[0]["source"], SPECS), recipe),
            spec_of(recipe["task"]["scoring"], SCORINGS),
            records[0]["prompt_template"],
            tuple(records[0].get("classes") or ()) or None,
            tuple(records[0].get("answers") or ()) or None,
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


def _scored_alike(task: Task, group: _Group) -> Task:
    scored = replace(task, scoring=group.scoring)
    if scored.prompt_template() != group.template:
        raise ValueError(
            f"{task.name} has the prompt template {scored.prompt_template()!r}, the members were trained "
            f"with {group.template!r}; detection would see the template, so use a task that shares it"
        )
    for example in scored.examples("test") if group.answers else ():
        if (answers := scored.prompt(example).answers) != group.answers:
            raise ValueError(
                f"{task.name} {example.id} has the answers {answers}, the members' heads have rows of "
                f"{group.answers}; use a task that has these, or members of another method than LastLayer"
            )
    return scored


def _loaded(group: _Group, task: Task, device: str) -> tuple[Backbone, list[Row]]:
    """The group's backbone, and a task's test split as its members read it."""
    precision = group.recipe["precision"]
    set_matmul_precision(precision, device)
    model = load_backbone(group.source, precision, device)
    rows = encode(model.tokenizer, task, task.examples("test"), group.max_tokens, group.classes)
    return model, with_features(model, rows) if group.method.regime == "features" else rows


def _stages(store: Store, members: Sequence[str]) -> list[list[State]]:
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


def _stack_logits(
    store: Store,
    group: _Group,
    members: Sequence[str],
    model: Backbone,
    rows: Sequence[Row],
    draws: Draws | None,
) -> np.ndarray:
    """Logits (M, K, N, C) of some of a group's members."""
    streams = [group.members[m] for m in members]
    noise, inits, drawn = make_noise(group.method, group.noise, streams), [s["init"] for s in streams], []
    with Adapters(model, group.method, inits, noise, rows[0].answer_ids) as adapters:
        for states in _stages(store, members):
            adapters.load(states)
            drawing = Drawing(
                adapters,
                states,
                members,
                stored=lambda ids, spec: {m: read_fit(store, m, spec) for m in ids},
                train=list,
                rows_at_once=group.recipe["budget"]["batch_size"],
            )
            drawn.append(drawing.predict(rows, draws))
    return np.concatenate(drawn, axis=1)


def _in_context_logits(group: _Group, members: Sequence[str], model: Backbone, task: Task) -> np.ndarray:
    """The same of members that train nothing: those of a group read the same."""
    logits_NC = predict_in_context(model, group.method, group.context, group.max_tokens, task, "test")
    return np.stack([logits_NC[None]] * len(members))


def _store(
    store: Store, folder: str, name: str, task: Task, rows: Sequence[Row], logits_KNC: np.ndarray
) -> None:
    """Store an entry's predictions on the task's test split as the set `name`."""
    entry = folder.rpartition("/")[2]
    with store.storage.lock(entry_lock(folder), wait=True):
        content = rows_bytes(entry, name, task, rows, logits_KNC)
        store.write_entry(folder, {prediction_file(name): content})
