"""Predictions of stored members on a task that their sweep did not ask for, from the store alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from lorae.draws import Draws, Fitted, drawn_set
from lorae.engine.prediction import predict
from lorae.engine.stored import (
    Group,
    StoredStack,
    check_answers,
    encoded,
    groups,
    in_context_logits,
    soup_logits,
)
from lorae.sources import Source
from lorae.store.names import entry_lock, member_folder, reference_folder, soup_folder
from lorae.store.predictions import prediction_file, rows_bytes
from lorae.store.store import Store
from lorae.tasks.base import Task
from lorae.tasks.encoding import Row


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
    found = list(groups(store, members, backbone))
    tasks = [scored_alike(task, group) for group in found]
    for group in found if draws else ():
        if draws and (why := draws.unfit(group.method, group.noise)):
            raise ValueError(f"draws={draws}: some members {why}; leave them out")
    if isinstance(draws, Fitted):
        for member in members:
            store.fit_record(member, draws)
    num_predicted = 0
    for group, own in zip(found, tasks):
        plain, name = own.eval_set("test"), drawn_set(own.eval_set("test"), draws)
        reference = reference_folder(group.reference_id)
        wanted = {} if group.classes else {reference: plain}
        wanted |= {member_folder(m): name for m in group.members}
        lacking = [f for f, wanted_set in wanted.items() if prediction_file(wanted_set) not in store.files(f)]
        if not lacking:
            continue
        model = group.loaded(device)
        rows = encoded(group, model, own)
        if reference in lacking:
            _store(store, reference, plain, own, rows, predict(model, rows))
        ids = [m for m in group.members if member_folder(m) in lacking]
        for start in range(0, len(ids), group.stack_members):
            stack = ids[start : start + group.stack_members]
            if not group.method.trains:
                logits_MKNC = in_context_logits(group, stack, model, own)
            else:
                loaded = StoredStack(store, group, stack, model, rows[0].answer_ids)
                logits_MKNC = loaded.logits(rows, draws)
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
    (group,) = groups(store, members, backbone)
    own, folder = scored_alike(task, group), soup_folder(members, soup)
    name = own.eval_set("test")
    if store.has_predictions(folder, [name]):
        return False
    model = group.loaded(device)
    rows = encoded(group, model, own)
    _store(store, folder, name, own, rows, soup_logits(store, group, members, soup, model, rows)[0])
    return True


def scored_alike(task: Task, group: Group) -> Task:
    """A task as the group's members were trained to answer theirs.

    Raises:
        ValueError: it has another prompt template, or other answers than they have.
    """
    scored = replace(task, scoring=group.scoring)
    if scored.prompt_template() != group.template:
        raise ValueError(
            f"{task.name} has the prompt template {scored.prompt_template()!r}, the members were trained "
            f"with {group.template!r}; detection would see the template, so use a task that shares it"
        )
    check_answers(group, scored)
    return scored


def _store(
    store: Store, folder: str, name: str, task: Task, rows: Sequence[Row], logits_KNC: np.ndarray
) -> None:
    """Store an entry's predictions on the task's test split as the set `name`."""
    entry = folder.rpartition("/")[2]
    with store.storage.lock(entry_lock(folder), wait=True):
        content = rows_bytes(entry, name, task, rows, logits_KNC)
        store.write_entry(folder, {prediction_file(name): content})
