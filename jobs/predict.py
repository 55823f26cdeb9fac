"""Adding a prediction set to members that are stored: `lorae predict STORAGE --task "MMLU('stem')"`."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from jobs.request import load_module
from lorae import tasks
from lorae.combinations import SOUPS
from lorae.draws import Draws, read_draws
from lorae.near import did_you_mean
from lorae.results import read_trials
from lorae.sources import Files
from lorae.store.names import entry_lock, soup_folder
from lorae.store.predictions import prediction_file, prediction_sets
from lorae.store.store import Store
from lorae.tasks import Task


def run_predict(
    storage: str,
    task: str,
    sweep: str | None,
    data_root: str | None,
    backbone: str | None,
    single_driver: bool = False,
) -> int:
    """Predict a task's test split with the members of a sweep and their soups, or with all members; returns
    how many lacked it.

    Args:
        task: `TREC`, `MMLU('college_physics', num_test=50)`, or `my_tasks.py:Colours()` from a file of yours.
        single_driver: as for `jobs.driver.run_sweep`.
    Raises:
        ValueError: no such task or member, or as `lorae.engine.predict_task.predict_task`.
    """
    store, located = Store(storage), read_task(task).located(Path(data_root) if data_root else None)
    members = {
        draws: sorted(m for m in ids if store.is_member(m)) for draws, ids in _members(store, sweep).items()
    }
    if not any(members.values()):
        raise ValueError(f"{store.storage.uri} has no stored members; run a sweep first")
    import torch

    from lorae.engine.predict_task import predict_soup, predict_task

    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = Files(backbone) if backbone else None
    with store.storage.driving(single_driver):
        num = sum(
            predict_task(store, ids, located, draws=draws, device=device, backbone=source, on_progress=print)
            for draws, ids in members.items()
        )
        for ids, soup in _soups(store, sweep):
            num += predict_soup(store, ids, located, soup=soup, device=device, backbone=source)
    return num


def remove_predictions(storage: str, what: str) -> dict[str, int]:
    """Remove prediction sets that no sweep asked for, from all entries; returns how many entries had each.

    Args:
        what: a task's name, or the name of a prediction set.
    Raises:
        ValueError: there is none of that name, or a sweep asked for it.
    """
    store = Store(storage)
    tables = (read_trials(store, name).to_pylist() for name in store.storage.names("sweeps"))
    asked = {name for rows in tables for row in rows for name in json.loads(row["eval_sets"]).values()}
    kinds = ("members", "reference", "soups")
    folders = [f"{kind}/{entry}" for kind in kinds for entry in store.storage.names(kind)]
    stored = {folder: prediction_sets(store.files(folder)) for folder in folders}
    others = sorted({name for sets in stored.values() for name in sets} - asked)
    meant = [name for name in others if what in (name, name.split("__")[0])]
    if not meant:
        known = ", ".join(others) or "none"
        used = "; a sweep asked for it" if any(what in (n, n.split("__")[0]) for n in asked) else ""
        raise ValueError(f"--remove {what}: no such set can be removed{used}; those that can: {known}")
    for folder, sets in stored.items():
        if gone := sets.intersection(meant):
            with store.storage.lock(entry_lock(folder), wait=True):
                store.remove_files(folder, map(prediction_file, gone))
    return {name: sum(name in sets for sets in stored.values()) for name in meant}


def _members(store: Store, sweep: str | None) -> dict[Draws | None, set[str]]:
    """Ids by the way in which a sweep's trials predict with them; without a sweep all that are stored."""
    if sweep is None:
        return {None: set(store.storage.names("members"))}
    found: dict[Draws | None, set[str]] = {}
    for row in read_trials(store, sweep).select(["draws", "member_ids"]).to_pylist():
        found.setdefault(read_draws(row["draws"]), set()).update(row["member_ids"])
    return found


def _soups(store: Store, sweep: str | None) -> dict[tuple[tuple[str, ...], str], None]:
    """Members and combination of each stored soup of a sweep's trials."""
    if sweep is None:
        return {}
    rows = read_trials(store, sweep).select(["combine", "member_ids"]).to_pylist()
    several = [r for r in rows if r["combine"] in SOUPS and len(r["member_ids"]) > 1]
    soups = [(tuple(r["member_ids"]), r["combine"]) for r in several]
    return dict.fromkeys(soup for soup in soups if store.files(soup_folder(*soup)))


def read_task(text: str) -> Task:
    """A task from its class's name, with arguments that are plain values; `file.py:` before it says where.

    Raises:
        ValueError: no such task, or arguments that it does not take.
    """
    file, _, expression = text.rpartition(":") if ".py:" in text else ("", "", text)
    source = load_module(Path(file).resolve()) if file else tasks
    try:
        node = ast.parse(expression, mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        kind = getattr(source, call.func.id, None) if isinstance(call.func, ast.Name) else None
        positional = [ast.literal_eval(a) for a in call.args]
        named = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        if isinstance(kind, type) and issubclass(kind, Task) and kind is not Task:
            return kind(*positional, **named)
    except (SyntaxError, TypeError) as error:
        raise ValueError(f"--task {text}: {error}; write a task such as \"MMLU('stem')\" or TREC") from error
    known = [
        n for n, v in vars(source).items() if isinstance(v, type) and issubclass(v, Task) and v is not Task
    ]
    near = did_you_mean(expression.partition("(")[0], known)
    raise ValueError(f"--task {text}: no such task; {near}{file or 'lorae'} has {', '.join(sorted(known))}")
