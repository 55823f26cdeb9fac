"""What is predicted from members that are stored: soups, and texts that members write together."""

from __future__ import annotations

from collections.abc import Sequence

from lorae.planning.stack import Stack
from lorae.store.ahead import ahead
from lorae.store.names import soup_folder, texts_folder
from lorae.store.store import Store
from lorae.tasks.base import Task
from lorae.trial import Trial, cell_of


def lacking_soups(trials: Sequence[tuple[Trial, tuple[Task, ...]]], store: Store) -> dict[Stack, None]:
    """Stacks of the trials' soups that are not stored, or lack predictions or answers; and of the members
    whose texts together are not stored."""
    found: dict[Stack, None] = {}
    for trial, ood in trials:
        cell, members = cell_of(trial), tuple(range(trial.members))
        if trial.writes_together:
            found[Stack(cell, members, ood, pool=True)] = None
        if trial.soup:
            found[Stack(cell, members, ood, soup=trial.soup)] = None
    lacking = ahead(lambda stack: _lacks(stack, store), found)
    return {stack: None for stack, lacks in zip(found, lacking) if lacks}


def _lacks(stack: Stack, store: Store) -> bool:
    """Whether a soup, or the texts of members together, are not stored as they are to be."""
    ids = stack.member_ids()
    if stack.soup:
        folder, stale = soup_folder(ids, stack.soup), store.is_of_others(ids, stack.soup)
        lacking = not stack.files() <= store.files(folder)
    else:
        folder, stale = texts_folder(ids), store.texts_are_of_others(ids)
        lacking = not store.has_answers(folder, stack.answer_sets())
    return bool(lacking or stale or store.damage(folder, changed_only=True))
