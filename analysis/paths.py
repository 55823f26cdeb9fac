"""How members move through function space during training, after a figure of arXiv:2405.14438.

A sweep with `paths=True` stores each member's class logits on validation at six points of its training. A
point is the vector of all class probabilities of (at most 500) validation examples; the points of all models
are projected on their first two principal components.
"""

from __future__ import annotations

import itertools

import numpy as np
from matplotlib.figure import Figure

from analysis.cells import Cell
from analysis.data import Trials
from analysis.figures_setting import FOLLOWS
from analysis.plotting import COLUMN_INCHES, MAX_LINES, Plot, legend_above, look, styled
from lorae.metrics import log_softmax
from lorae.store.names import member_folder

MAX_EXAMPLES = 500


@styled
def path_figures(trials: Trials) -> list[Plot]:
    """Paths of the members of the largest models, first seed, one model of each kind first; no figure if no
    path is stored. A model whose members all belong to larger ones has no lines of its own."""
    walked = ((cell, paths) for cell in _ensembles(trials) if (paths := _paths(trials, cell)))
    found = dict(itertools.islice(walked, MAX_LINES))
    shapes = {p.shape[1:] for paths in found.values() for p in paths}
    if not found or len(shapes) > 1:  # tasks with different validation examples share no space
        return []
    points, share = principal([p for paths in found.values() for p in paths])
    placed = iter(points)
    figure = Figure((COLUMN_INCHES, 2.6), layout="constrained")
    axes = figure.subplots()
    for number, (paths, label) in enumerate(zip(found.values(), _labels(list(found)), strict=True)):
        style = look(number)
        for member in range(len(paths)):
            x, y = next(placed).T
            axes.plot(x, y, color=style["color"], linestyle=style["linestyle"], linewidth=0.8,
                      label=label if member == 0 else None)  # fmt: skip
            axes.plot(x[-1:], y[-1:], color=style["color"], marker=style["marker"])
    axes.set_xlabel(f"first component, {share[0]:.0%} of the variance")
    axes.set_ylabel(f"second, {share[1]:.0%}")
    legend_above(figure, axes)
    caption = (
        "Members' ways through function space: class probabilities on validation before training and after "
        "each fifth of it, projected on two principal components; a mark ends each. First seed."
    )
    return [Plot("paths", caption, figure)]


def principal(paths: list[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Points (K, 2) of each path (K, N, C) of log-probabilities; both components' shares of the variance."""
    flat = [np.exp(logp_KNC).reshape(len(logp_KNC), -1) for logp_KNC in paths]
    centred = np.concatenate(flat)
    centred = centred - centred.mean(axis=0)
    u, scale, _ = np.linalg.svd(centred, full_matrices=False)
    ends = np.cumsum([len(points) for points in flat])[:-1]
    shares = scale**2 / max(float((scale**2).sum()), np.finfo(float).tiny)
    return np.split(u[:, :2] * scale[:2], ends), shares[:2]


def _ensembles(trials: Trials) -> list[Cell]:
    """Trained cells other than soups with a member that no larger cell has; the largest of each name
    first."""
    kept: list[tuple[int, Cell]] = []
    shown: set[str] = set()
    for cell in sorted((c for c in trials.cells if c.members and not c.is_soup), key=lambda c: -c.members):
        if not shown.issuperset(members := cell.rows[0]["member_ids"]):
            kept.append((sum(other.name == cell.name for _, other in kept), cell))
            shown.update(members)
    return [cell for _, cell in sorted(kept, key=lambda place: place[0])]


def _labels(cells: list[Cell]) -> list[str]:
    """Names of the cells; those with the same name are followed by the settings in which they differ."""
    labels = []
    for cell in cells:
        alike = [other.settings for other in cells if other.name == cell.name]
        followers = {f for name in cell.settings for f in FOLLOWS.get(name, ())}
        told = [
            f"{name} {value}"
            for name, value in cell.settings.items()
            if name not in followers and any(other.get(name) != value for other in alike)
        ]
        labels.append(", ".join([cell.name, *told]))
    return labels


def _paths(trials: Trials, cell: Cell) -> list[np.ndarray]:
    """Log-probabilities (K, N, C) along the training of each member of the cell's first row, if stored."""
    folders = [member_folder(m) for m in cell.rows[0]["member_ids"]]
    logits = [trials.store.path(folder) for folder in folders]
    found = [logits_KNC for logits_KNC in logits if logits_KNC is not None]
    step = max(1, -(-found[0].shape[1] // MAX_EXAMPLES)) if found else 1
    return [log_softmax(logits_KNC[:, ::step]) for logits_KNC in found]
