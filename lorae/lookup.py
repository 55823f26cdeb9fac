"""A trained trial of a storage, by its id or by its validation NLL."""

from __future__ import annotations

from typing import Any

from lorae.results import read_trials
from lorae.store.store import Store


def trials_of(store: Store, sweep: str | None = None) -> dict[str, dict[str, Any]]:
    """Rows of a storage's sweeps, or of one, by their trial's id."""
    sweeps = [sweep] if sweep else store.storage.names("sweeps")
    return {row["trial_id"]: row for name in sweeps for row in read_trials(store, name).to_pylist()}


def find_trial(store: Store, trial: str | None = None, sweep: str | None = None) -> dict[str, Any]:
    """The row of a trained trial.

    Args:
        trial: its id or a beginning of it; None = the one with the lowest validation NLL, of several members
            if there is one; no test example chooses.
        sweep: where to look; None = all sweeps.
    Raises:
        ValueError: none, or several.
    """
    rows = trials_of(store, sweep)
    if not rows:
        raise ValueError(f"{store.storage.uri} has no sweeps; run one first: lorae sweep FILE --storage ...")
    trained = {name: row for name, row in rows.items() if row["status"] == "done" and row["members"]}
    if not trained:
        raise ValueError(f"{store.storage.uri} has no trained trial that is done; repeat its sweep")
    if trial is None:
        judged = [row for row in trained.values() if row["validation_nll"] is not None] or [*trained.values()]
        several = [row for row in judged if row["members"] > 1] or judged
        return min(several, key=lambda row: row["validation_nll"] or 0.0)
    found = [row for name, row in trained.items() if name.startswith(trial)]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(row["trial_id"] for row in found[:5])
        raise ValueError(
            f"trial {trial!r} is the beginning of {len(found)} ids ({several}); give more of one"
        )
    if other := next((row for name, row in rows.items() if name.startswith(trial)), None):
        what = other["error"] or "the untouched backbone, which has no members"
        raise ValueError(f"trial {trial} cannot predict: {what}")
    known = "\n".join(f"  {name}  {_place(row)}" for name, row in [*trained.items()][:40])
    raise ValueError(f"{store.storage.uri} has no trial {trial!r}; it has\n{known}")


def _place(row: dict[str, Any]) -> str:
    """A row's place in its sweep, short."""
    factors = ("sweep", "task", "method", "regularizers", "members", "combine", "seed")
    return " ".join(f"{name}={row[name]}" for name in factors)


def only_sweep(store: Store) -> str:
    """The name of a storage's only sweep.

    Raises:
        ValueError: it has none, or several: their names.
    """
    names = sorted(store.storage.names("sweeps"))
    if len(names) != 1:
        found = f"the sweeps {', '.join(names)}; choose one by --sweep NAME, in Python by sweep=NAME"
        raise ValueError(f"storage {store.storage.uri} has {found if names else 'no sweep; run one first'}")
    return names[0]
