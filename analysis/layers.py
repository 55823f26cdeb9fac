"""What members learned, layer by layer: how much, and in which direction beside another method's.

VeRA's figure 4 and the similarity of weights in its appendix (Kopiczko et al. 2023, arXiv:2310.11454), for
every method whose update is a matrix.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from analysis.cells import Cell
from analysis.columns import Column
from analysis.data import Trials
from analysis.plotting import MAX_LINES, Plot, axes_of, legend_above, look, styled
from analysis.rows import Row
from analysis.table import Entry, Line, Table, cell_columns, cell_line, made_by
from analysis.weights import LOW_RANK, backbones_of, stored_update
from lorae import metrics
from lorae.store.peft_format import Update

NORM = "norm per layer"
CHOSEN_BY = "validation_nll"

Learned = dict[Cell, list[Update]]  # the updates of a cell's distinct members


def learned(trials: Trials, backbone: Path | None = None) -> tuple[Learned, list[str]]:
    """Updates of the best cell of each method and initialisation, by mean validation NLL, on each test set;
    and notes on those that cannot be read.

    Args:
        backbone: folder of the backbone's weights; None = look in this machine's caches.
    """
    weights, notes = backbones_of(trials.rows, backbone), list[str]()
    found: Learned = {}
    for cell in best_cells(trials):
        try:
            found[cell] = [
                stored_update(trials.store, member, weights(row)) for row in cell.rows for member in _own(row)
            ]
        except ValueError as error:
            notes.append(f"no updates of {cell.name}: {error}")
    return found, notes


def best_cells(trials: Trials) -> list[Cell]:
    """The cell of single members with the lowest validation NLL, for each method and initialisation."""
    best: dict[tuple[str, ...], tuple[float, Cell]] = {}
    for cell in trials.cells:
        over = trials.estimates.of(cell, CHOSEN_BY)
        kind = json.loads(cell.rows[0]["recipe"])["method"]["type"] if cell.members else None
        if cell.members != 1 or over is None or kind not in LOW_RANK:
            continue
        key = (cell.test_set, *(str(cell.factors[name]) for name in ("backbone", "method", "init")))
        if key not in best or over.mean < best[key][0]:
            best[key] = (over.mean, cell)
    return [cell for _, cell in best.values()]


def _own(row: Row) -> list[str]:
    return list(dict.fromkeys(row["member_ids"]))


# How much --------------------------------------------------------------------------------------------------


def layer_norms(update: Update) -> dict[str, float]:
    """Frobenius norm of the update of each layer."""
    return {
        layer: float(np.sqrt(metrics.update_products([update.factors(layer)])[0, 0]))
        for layer in update.layers
    }


def by_projection(layers: Sequence[str]) -> dict[str, list[str]]:
    """Last part of the layers' names -> those layers, by depth: "q_proj" -> one of each block."""
    found: dict[str, list[str]] = {}
    for layer in sorted(layers, key=_depth):
        found.setdefault(layer.rpartition(".")[2], []).append(layer)
    return found


def _depth(layer: str) -> int:
    """Number of the block that a layer's path names."""
    return next((int(part) for part in layer.split(".") if part.isdigit()), 0)


def norms_table(trials: Trials, found: Learned, notes: Sequence[str] = ()) -> Table:
    """A line for each cell and projection: its norms, mean over members, in the first, middle and last
    block, and their mean."""
    lines: list[Line] = []
    for cell, updates in found.items():
        for projection, norms in _norms(updates).items():
            places = {"first block": 0, "middle block": len(norms) // 2, "last block": -1}
            line = cell_line(cell) | {"layers": Entry(projection), NORM: Entry(float(np.mean(norms)))}
            lines.append(line | {name: Entry(norms[place]) for name, place in places.items()})
    return Table(
        name="layers",
        title="How much each layer learned",
        caption=(
            "Frobenius norm of a layer's update, mean over members, of the best cell of each method and "
            f"initialisation by validation NLL. {made_by(trials)}"
        ),
        columns=(
            *cell_columns(trials),
            Column("layers", "text"),
            *(Column(name, "metric") for name in (NORM, "first block", "middle block", "last block")),
        ),
        blocks=(tuple(lines),) if lines else (),
        notes=tuple(notes),
    )


def _norms(updates: Sequence[Update]) -> dict[str, list[float]]:
    """Projection -> mean norm over members of each block."""
    each = [layer_norms(update) for update in updates]
    return {
        projection: [float(np.mean([norms[layer] for norms in each])) for layer in layers]
        for projection, layers in by_projection(updates[0].layers).items()
    }


@styled
def norms_figure(found: Learned) -> list[Plot]:
    """Norm of the update against the depth of its block; one figure for each test set, a line for each method
    and projection."""
    plots = []
    for number, test_set in enumerate(dict.fromkeys(cell.test_set for cell in found)):
        lines = {
            f"{_short(cell)}, {projection}": norms
            for cell, updates in found.items()
            if cell.test_set == test_set
            for projection, norms in _norms(updates).items()
        }
        figure, axes = axes_of()
        for style, (label, norms) in enumerate([*lines.items()][:MAX_LINES]):
            axes.plot(range(len(norms)), norms, label=label, **look(style))
        axes.set(xlabel="block", ylabel="norm of the update", yscale="log")
        legend_above(figure, axes)
        caption = "Frobenius norm of each layer's update by the depth of its block, mean over members."
        plots.append(Plot(f"layers{f'-{number}' if number else ''}", caption, figure))
    return plots


def _short(cell: Cell) -> str:
    """The method with what tells VeRA's projections apart."""
    label = cell.factors["init"].rpartition("+")[2]
    return f"{cell.name.removeprefix('single ')}{f' {label}' if label.startswith('per_layer') else ''}"


# In which direction ----------------------------------------------------------------------------------------


def layer_cosines(one: Update, other: Update) -> list[float]:
    """Cosine similarity of two updates in every layer that both have.

    Raises:
        Undefined: an update is zero there.
    """
    shared = [layer for layer in one.layers if layer in other.layers]
    pairs = [metrics.update_products([one.factors(layer), other.factors(layer)]) for layer in shared]
    return [metrics.update_cosine(products) for products in pairs]


def cosines_table(trials: Trials, found: Learned) -> Table:
    """A line for each pair of methods, and for each method with itself: the mean absolute cosine of their
    members' updates over layers and pairs of members, beside that of random directions."""
    lines: list[Line] = []
    for one, other in itertools.combinations_with_replacement(found, 2):
        pairs = itertools.product(found[one], found[other])
        if one is other:
            pairs = itertools.combinations(found[one], 2)
        cosines = [abs(c) for a, b in pairs for c in layer_cosines(a, b)]
        if one.test_set != other.test_set or not cosines:
            continue
        chance = float(np.mean([metrics.random_cosine(n) for n in _sizes(found[one][0])]))
        values = {"|cosine|": float(np.mean(cosines)), "random": chance, "ratio": np.mean(cosines) / chance}
        names = {"model": f"{_short(one)} r{one.factors['rank']}", "beside": _short(other)}
        names["beside"] += f" r{other.factors['rank']}" + (", another member" if one is other else "")
        lines.append({name: Entry(value) for name, value in (names | values).items()})
    return Table(
        name="layer-cosines",
        title="Whether methods learn the same directions",
        caption=(
            "Absolute cosine similarity of two members' updates of a layer, mean over layers and pairs of "
            "members; random: what a direction drawn uniformly has on average, and their ratio. "
            f"{made_by(trials)}"
        ),
        columns=(
            Column("model", "text"),
            Column("beside", "text"),
            Column("|cosine|", "metric", decimals=5),
            Column("random", "metric", decimals=5),
            Column("ratio", "metric", decimals=1),
        ),
        blocks=(tuple(lines),) if lines else (),
    )


def _sizes(update: Update) -> list[int]:
    """Entries of each layer's update."""
    shapes = [update.factors(layer) for layer in update.layers]
    return [len(B_ER) * A_RD.shape[1] for B_ER, A_RD in shapes]
