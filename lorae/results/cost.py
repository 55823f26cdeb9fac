"""What a row's members cost."""

from __future__ import annotations

from typing import Any

from lorae import untrusted
from lorae.draws import Fitted
from lorae.results.columns import (
    COUNTED,
)
from lorae.store.names import (
    LATER_RECORD,
    member_folder,
)
from lorae.store.store import Store
from lorae.trial import Trial

_SUMMED = {
    **dict.fromkeys(("train_tokens", "trainable_parameters"), untrusted.count),
    **dict.fromkeys(("train_seconds", "predict_seconds"), untrusted.number),
}


_COUNTED = dict.fromkeys((*COUNTED, "shared_flops"), untrusted.amount)


_LATER = {"cost": {"predict_seconds": untrusted.number}}


def trial_cost(store: Store, trial: Trial) -> dict[str, Any]:
    """All cost columns of a row, summed over the trial's distinct members; zero for the backbone itself.

    Members of `LastLayer` share the backbone's forward passes: one over each training row, and one per
    prediction; so do those of a soup when it predicts. Fitting draws to a member is training;
    the backward passes of `Laplace` count as forward ones.
    """
    members = list(dict.fromkeys(trial.member_ids()))
    folders = [member_folder(m) for m in members]
    costs = [store.record(folder, {"cost": _SUMMED | _COUNTED})["cost"] for folder in folders]
    fits = [store.fit_record(m, trial.draws) for m in members] if isinstance(trial.draws, Fitted) else []
    total: dict[str, Any] = {name: sum(c[name] for c in costs) for name in _SUMMED}
    for name in COUNTED:
        counts = [c.get(name) for c in costs] + [fit.get(name.replace("train", "search")) for fit in fits]
        total[name] = None if None in counts else sum(counts)
    total["train_seconds"] += sum(fit["search_seconds"] for fit in fits)
    later = [f for f in folders if LATER_RECORD in store.files(f)]
    total["predict_seconds"] += sum(
        store.record(f, _LATER, LATER_RECORD)["cost"]["predict_seconds"] for f in later
    )
    total["trainable_parameters"] *= trial.optimizer.cycles or 1  # a state is stored of each cycle
    stored = sum(store.size_bytes(folder) for folder in folders)
    forwards = max(1, trial.members * trial.num_draws)
    if fits:
        forwards = trial.members * fits[0].get("passes", trial.num_draws)
    if trial.soup:
        soup = store.soup_record(trial.member_ids(), trial.soup)
        forwards, total["predict_seconds"] = 1, soup["cost"]["predict_seconds"]
    if trial.method.regime == "features":
        forwards, total["train_tokens"] = 1, max((c["train_tokens"] for c in costs), default=0)
        if total["train_flops"] is not None:
            shared = [c.get("shared_flops") or 0.0 for c in costs]
            total["train_flops"] -= sum(shared) - max(shared, default=0.0)
    return total | {"forwards_per_prediction": forwards, "stored_bytes": stored}
