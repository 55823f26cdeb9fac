"""Diversity in weight space beside diversity in function space, for every cell of a sweep.

    python -m analysis.weights lorae-results --sweep demo
    python -m analysis.weights lorae-results --sweep demo --backbone ~/models/Llama-2-7b-hf

A member's update is the dW of all its adapted layers in one vector. Ranks and intruder dimensions are means
over the layers, and over the members. The mean update is that of averaged weights, with which a soup predicts
and an ensemble does not: its norm and rank, beside its members', show how much of what they learned is
shared. Intruder dimensions need the backbone's weights and an SVD of each adapted one, which is slow for a
large backbone.

Full fine-tuning changes every weight. To compare an explicit ensemble with a LoRA ensemble by the same
weights, its update is dW = W - W0 of the layers that the sweep's low-rank members adapt, or of the attention
projections if it has none; the rest of what it learned is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from analysis.backbone import (
    BackboneWeights,
    LacksLayer,
    Stored,
    folder_at_hand,
    linears_in,
    open_backbone,
    stored_tensors,
)
from analysis.columns import DIVERSITY_METRICS, Column
from analysis.data import Trials, load_trials
from analysis.gain import correlations, with_gains
from analysis.render import markdown, save_table
from analysis.rows import Row, is_soup
from analysis.table import Table, cell_columns, cell_line, entry, made_by, setting
from lorae import metrics, untrusted
from lorae.identity import canonical
from lorae.methods import METHODS, Full, Lora
from lorae.methods.base import ROLES
from lorae.metrics import Undefined
from lorae.store.names import ADAPTER_CONFIG, WEIGHTS, member_folder
from lorae.store.peft_format import Update, read_update
from lorae.store.store import Store

OF_UPDATE = ("update_norm", "effective_rank", "stable_rank", "num_intruder_dimensions")
OF_MEAN_UPDATE = {name: f"mean_update_{name.removeprefix('update_')}" for name in OF_UPDATE}
WEIGHT_SPACE = ("update_cosine", *OF_UPDATE, *OF_MEAN_UPDATE.values())
LOW_RANK = tuple(method.__name__ for method in METHODS if method.has_update)
ATTENTION = tuple(ROLES)
STREAMS = {"streams": {"init": list}}  # what is read of a member.json
MAX_REPORT_ENTRIES = 500_000_000  # of the weights that a report decomposes: half a minute of one core

Measures = dict[str, float | None]


def with_updates(
    trials: Trials, backbone: Path | None = None, max_entries: float = np.inf
) -> tuple[Trials, tuple[str, ...]]:
    """The trials with columns `WEIGHT_SPACE`, None where undefined; and notes on what is missing, and why.

    Args:
        backbone: folder of the backbone's weights; None = look in this machine's caches, fetch nothing.
        max_entries: of weights to decompose for intruder dimensions; with more, these are left out.
    """
    backbones, notes = _backbones(trials.rows, backbone)
    known: dict[tuple[str, ...], Measures] = {}
    lacking: list[str] = []
    targets = _targets(trials.rows)
    without: Counter[str] = Counter()  # why there are no intruder dimensions -> number of trials
    rows: list[Row] = []
    if _num_entries(trials.rows, backbones) > max_entries:
        command = f"python -m analysis.weights {trials.store.storage.uri} --sweep {trials.sweep}"
        notes.append(f"no intruder dimensions, which would take long: `{command}` computes them")
        backbones = {}
    for row in trials.rows:
        measures: Measures = {}
        try:
            if row["members"] and not is_soup(row):
                weights = backbones.get(_backbone_of(row))
                measures, why = _measured(trials.store, row, weights, targets, known)
                without.update(why)
        except ValueError as error:
            lacking.append(str(error))
        rows.append(row | dict.fromkeys(WEIGHT_SPACE) | measures)
    notes += [f"no intruder dimensions of {count} trials: {why}" for why, count in without.items()]
    if lacking:
        notes.append(f"no updates of {len(lacking)} trials, first: {lacking[0]}")
    return replace(trials, rows=tuple(rows)), tuple(notes)


def weight_table(trials: Trials, notes: Sequence[str]) -> Table:
    """Diversity of each trained cell in function space and in weight space; takes trials `with_updates`."""
    shown = [Column(name, "metric") for name in (*DIVERSITY_METRICS, *WEIGHT_SPACE)]
    blocks = []
    for cells in trials.by_test_set().values():
        lines = [
            cell_line(c) | {x.name: entry(trials, c, x.name) for x in shown}
            for c in cells
            if c.members and not c.is_soup
        ]
        blocks.append(tuple(lines))
    return Table(
        name="weights",
        title="Diversity in function space and in weight space",
        caption=f"{setting(trials)} {MEANING} {made_by(trials)}",
        columns=(*cell_columns(trials), *shown),
        blocks=tuple(filter(None, blocks)),
        notes=tuple(notes),
    )


MEANING = (
    "Cosine: mean over pairs of members of the cosine similarity of their updates, all layers in one vector. "
    "Norm: Frobenius norm of the update. Ranks: means over layers. Intruders: mean number per layer of the "
    "first 10 left singular vectors of the adapted weight whose cosine with all of the backbone's is below "
    "0.5. Those of members are averaged; mean update: the same of the members' averaged update. Of full "
    "fine-tuning the update is W - W0 of the layers that LoRA adapts here, the rest is left out."
)


# Updates ---------------------------------------------------------------------------------------------------


def _measured(
    store: Store,
    row: Row,
    backbone: BackboneWeights | None,
    targets: tuple[str, ...],
    known: dict[tuple[str, ...], Measures],
) -> tuple[Measures, list[str]]:
    """`ensemble_measures`, without intruder dimensions if the backbone's files lack a layer; and why."""
    try:
        return ensemble_measures(store, row, backbone, targets, known), []
    except LacksLayer as error:
        return ensemble_measures(store, row, None, targets, known), [str(error)]


def ensemble_measures(
    store: Store,
    row: Row,
    backbone: BackboneWeights | None,
    targets: tuple[str, ...],
    known: dict[tuple[str, ...], Measures],
) -> Measures:
    """`WEIGHT_SPACE` of a row's ensemble.

    Args:
        backbone: None leaves intruder dimensions undefined.
        targets: the layers to compare for members with full fine-tuning.
        known: measures of mean updates by their members' ids; new ones are added.
    Raises:
        ValueError: a member is not stored or damaged, or its method has no update.
    """
    ids = tuple(row["member_ids"])
    updates = [stored_update(store, member, backbone, targets) for member in ids]
    for members, of in [*(((m,), [u]) for m, u in zip(ids, updates)), (ids, updates)]:
        if members not in known:
            known[members] = update_measures(mean_update(of), backbone)
    of_members = {name: _mean(known[(member,)][name] for member in ids) for name in OF_UPDATE}
    of_mean = {OF_MEAN_UPDATE[name]: value for name, value in known[ids].items()}
    return {"update_cosine": _defined(metrics.update_cosine, _products(updates))} | of_members | of_mean


def stored_update(
    store: Store, member: str, backbone: BackboneWeights | None = None, targets: tuple[str, ...] = ATTENTION
) -> Update:
    """A stored member's update.

    Args:
        backbone: gives the widths of VeRA's layers where they differ, and the weights that full fine-tuning
            changed.
        targets: as in `full_update`.
    Raises:
        ValueError: as `ensemble_measures`.
    """
    config, weights = (store.read(member_folder(member), name) for name in (ADAPTER_CONFIG, WEIGHTS))
    where = f"{member_folder(member)}/{ADAPTER_CONFIG}"
    own = untrusted.json_object(config, where, {}).get("lorae_method")
    if own != canonical(Full()):
        drawn = isinstance(own, dict) and own.get("type") in LOW_RANK
        init = store.record(member_folder(member), STREAMS)["streams"]["init"] if drawn else None
        return read_update(config, weights, backbone.d_in if backbone else None, init)
    if not backbone:
        raise ValueError(f"{member} has all weights of its own: its update needs the backbone's weights")
    tensors = stored_tensors(store.storage, f"{member_folder(member)}/{WEIGHTS}")
    return full_update(tensors, backbone, targets)


def full_update(
    tensors: dict[str, Stored], backbone: BackboneWeights, targets: tuple[str, ...] = ATTENTION
) -> Update:
    """W - W0 of the layers that LoRA would adapt; reads one layer at a time, on demand.

    Args:
        tensors: of the member's file, by their names in the model.
        targets: names of the layers, as in `Lora`.
    Raises:
        ValueError: a target matches no layer.
    """
    layers = tuple(sorted(Lora(rank=1, targets=targets).adapted_layers(linears_in(tensors), "a member")))

    def factors(layer: str) -> tuple[np.ndarray, np.ndarray]:
        W_ED = backbone.oriented(tensors[f"{layer}.weight"].read())
        return W_ED - backbone.read(layer), np.eye(W_ED.shape[1], dtype=np.float32)

    return Update(layers, factors)


def mean_update(updates: Sequence[Update]) -> Update:
    """The mean of members' updates of the same layers: their factors side by side, or dense if that is
    smaller."""

    def factors(layer: str) -> tuple[np.ndarray, np.ndarray]:
        Bs, As = zip(*(update.factors(layer) for update in updates))
        B_ER, A_RD = np.hstack(Bs) / len(updates), np.vstack(As)
        width = A_RD.shape[1]
        return (B_ER, A_RD) if len(A_RD) <= width else (B_ER @ A_RD, np.eye(width, dtype=A_RD.dtype))

    return Update(updates[0].layers, factors)


def update_measures(update: Update, backbone: BackboneWeights | None) -> Measures:
    """`OF_UPDATE`: the norm over all layers, means over the layers, and mean ranks of those that changed."""
    spectra, intruders = [], []
    for layer in update.layers:
        B_ER, A_RD = update.factors(layer)
        spectra.append(metrics.singular_values(B_ER, A_RD))
        if backbone:
            left_EK = backbone.left_singular_vectors(layer)
            intruders.append(metrics.num_intruder_dimensions(backbone.read(layer), B_ER, A_RD, left_EK))
    return {
        "update_norm": float(np.sqrt(sum(np.sum(s**2) for s in spectra))),
        "effective_rank": _mean(s for s in (_defined(metrics.effective_rank, s) for s in spectra) if s),
        "stable_rank": _mean(s for s in (_defined(metrics.stable_rank, s) for s in spectra) if s),
        "num_intruder_dimensions": _mean(intruders),
    }


def _products(updates: Sequence[Update]) -> np.ndarray:
    """Inner products of whole updates, (M, M)."""
    layers = updates[0].layers
    return sum(
        (metrics.update_products([update.factors(layer) for update in updates]) for layer in layers),
        np.zeros((len(updates), len(updates))),
    )


def _defined(metric: Callable[[np.ndarray], float], values: np.ndarray) -> float | None:
    try:
        return metric(values)
    except Undefined:
        return None


def _mean(values: Iterable[float | None]) -> float | None:
    found = list(values)
    return None if not found or None in found else float(np.mean(found))  # type: ignore[arg-type]


# Backbones -------------------------------------------------------------------------------------------------


def _backbone_of(row: Row) -> str:
    """A row's backbone as loaded: fingerprint and precision."""
    return json.dumps([json.loads(row["recipe"])["backbone"], row["precision"]])


def backbones_of(rows: Sequence[Row], given: Path | None) -> Callable[[Row], BackboneWeights | None]:
    """Returns a function row -> its backbone's weights, None if they are not on this machine."""
    found, _ = _backbones(rows, given)
    return lambda row: found.get(_backbone_of(row))


def _targets(rows: Sequence[Row]) -> tuple[str, ...]:
    """Names of the layers that the sweep's low-rank members adapt; those of attention if it has none."""
    methods = [json.loads(row["recipe"])["method"] for row in rows if row["members"]]
    adapted = [target for m in methods if m["type"] in LOW_RANK for target in m["targets"]]
    return tuple(dict.fromkeys(adapted)) or ATTENTION


def _backbones(rows: Sequence[Row], given: Path | None) -> tuple[dict[str, BackboneWeights], list[str]]:
    """Fingerprint -> weights of the backbones that are on this machine; notes on those that are not."""
    found: dict[str, BackboneWeights] = {}
    notes = []
    for backbone in dict.fromkeys(map(_backbone_of, rows)):
        try:
            fingerprint, precision = json.loads(backbone)
            found[backbone] = open_backbone(folder_at_hand(fingerprint, given), precision)
        except ValueError as error:
            if given:
                raise
            notes.append(f"no intruder dimensions: {error}")
    return found, notes


def _num_entries(rows: Sequence[Row], backbones: dict[str, BackboneWeights]) -> int:
    """Number of weight entries that intruder dimensions would decompose, over all updates and layers."""
    entries: dict[tuple[str, ...], int] = {}  # of each member and of each ensemble's mean update
    for row in rows:
        ids, weights = tuple(row["member_ids"]), backbones.get(_backbone_of(row))
        method = json.loads(row["recipe"])["method"]
        if ids and weights and method["type"] in ("Full", *LOW_RANK):
            targets = tuple(method.get("targets", _targets(rows)))
            with contextlib.suppress(ValueError):  # the files lack a target, so nothing is decomposed
                adapted = Lora(rank=1, targets=targets).adapted_layers(weights.linears, row["backbone"])
                size = sum(d_in * d_out for d_in, d_out in adapted.values())
                entries |= dict.fromkeys([ids, *((member,) for member in ids)], size)
    return sum(entries.values())


# The command -----------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Print both tables and write them; returns the exit code, 2 for wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.weights", description="Diversity of a sweep's members, and what it gains."
    )
    parser.add_argument("storage", help="path or URI that the sweep wrote to")
    parser.add_argument("--sweep", default="demo", help="name of the sweep (default: demo)")
    parser.add_argument("--backbone", type=Path, help="folder of its weights (default: the caches)")
    parser.add_argument("--out", type=Path, help="folder for the tables' files (default: none are written)")
    parser.add_argument("--allow-missing", action="store_true", help="leave failed trials out and name them")
    args = parser.parse_args(argv)
    try:
        trials, notes = with_updates(load_trials(args.storage, args.sweep, args.allow_missing), args.backbone)
        tables = [weight_table(trials, notes), correlations(with_gains(trials))]
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for table in tables:
        print(markdown(table))
        if args.out:
            save_table(table, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
