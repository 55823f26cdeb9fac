"""Figures of the loss on the lines between an ensemble's members, and on the plane through three of them; the
points are measured by `lorae landscape`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from analysis.plotting import MAX_LINES, Plot, axes_of, legend_above, look, styled

if TYPE_CHECKING:
    from lorae.engine.landscape import Point

MARGIN = 0.25  # of the plane around its members, in shares


def line_shares(members: int, one: int, other: int, num: int) -> list[list[float]]:
    """Shares of `num` points from one of the members to another, both ends included."""
    eye = np.eye(members)
    return [((1 - t) * eye[one] + t * eye[other]).tolist() for t in np.linspace(0, 1, num)]


def plane_shares(num: int) -> list[list[float]]:
    """Shares of three members on a grid of `num` x `num` points: those of the second and third are its
    coordinates, the first has what remains."""
    side = np.linspace(-MARGIN, 1 + MARGIN, num)
    return [[1 - u - v, u, v] for v in side for u in side]


@styled
def line_figure(lines: Mapping[str, Sequence[Point]]) -> Plot:
    """NLL along the line of each pair of members."""
    figure, axes = axes_of()
    for number, (name, found) in enumerate(itertools.islice(lines.items(), MAX_LINES)):
        axes.plot(np.linspace(0, 1, len(found)), [p.nll for p in found], label=name, **look(number))
    axes.set(xlabel="share of the second member", ylabel="NLL")
    legend_above(figure, axes)
    caption = (
        "NLL of the models between two members: their updates and heads, weighted by shares that add up to 1."
    )
    return Plot("landscape-lines", caption, figure)


@styled
def plane_figure(plane: Sequence[Point]) -> Plot:
    """NLL on the plane through three members, by the shares of the second and the third."""
    num = round(len(plane) ** 0.5)
    nll = np.array([point.nll for point in plane]).reshape(num, num)
    side = np.linspace(-MARGIN, 1 + MARGIN, num)
    figure, axes = axes_of(2.8)
    drawn = axes.contourf(side, side, nll, levels=12, cmap="Blues_r")
    figure.colorbar(drawn, ax=axes, label="NLL")
    for name, (u, v) in {"first": (0, 0), "second": (1, 0), "third": (0, 1), "mean": (1 / 3, 1 / 3)}.items():
        axes.plot([u], [v], "o", color="black")
        axes.annotate(name, (u, v), xytext=(3, 3), textcoords="offset points", fontsize=7)
    axes.set(xlabel="share of the second member", ylabel="share of the third")
    axes.grid(False)
    caption = (
        "NLL of the models on the plane through three members, by their shares, which add up to 1; axes are "
        "shares, not distances. Mean: the soup of the three."
    )
    return Plot("landscape-plane", caption, figure)
