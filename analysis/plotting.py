"""How figures look: a paper's column wide, readable in colour and in black and white; PDF and SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.data import SHARED_FACTORS, Cell, Trials

COLUMN_INCHES = 3.25
MAX_LINES = 6  # in one figure; more factors than fit make more figures

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "legend.frameon": False,
    "hatch.linewidth": 0.5,
    "pdf.fonttype": 42,
    "svg.hashsalt": "lorae",  # the same figure is the same file
}
# Okabe and Ito's colours differ for the colour-blind; markers and dashes differ without any colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (2, 1)), (0, (6, 1, 1, 1, 1, 1)))
BACKBONE: dict[str, Any] = {"color": "0.35", "linestyle": (0, (1, 2)), "linewidth": 1.0}

styled = mpl.rc_context(STYLE)  # decorator of functions that draw or save


@dataclass(frozen=True, eq=False)
class Plot:
    """A figure with its file name (without ending) and what it shows."""

    name: str
    caption: str
    figure: Figure


@dataclass(frozen=True, eq=False)
class Panel:
    """Cells that belong in one figure: lines of rising ensemble size, and the backbone they share."""

    label: str  # the settings that other panels have otherwise; "" if there is one panel
    lines: dict[str, tuple[Cell, ...]]
    zero_shot: Cell | None

    @property
    def first(self) -> Cell:
        """The smallest cell of the first line."""
        return next(iter(self.lines.values()))[0]

    @property
    def slug(self) -> str:
        return slug(self.label)

    @property
    def suffix(self) -> str:
        """The label as the end of a caption's first sentence."""
        return f" ({self.label})" if self.label else ""


def panels(trials: Trials) -> list[Panel]:
    """Cells in panels of at most `MAX_LINES` lines, one line for each setting of the adapters.

    Backbone and task always separate panels; of the other varying factors as many as fit tell lines apart,
    the regulariser first.
    """
    varying = sorted(trials.varying, key=lambda f: f != "regularizers")
    line_factors: list[str] = []
    trained = [cell for cell in trials.cells if cell.members]
    for factor in [f for f in varying if f not in SHARED_FACTORS]:
        if len({_key(cell, [*line_factors, factor]) for cell in trained}) <= MAX_LINES:
            line_factors.append(factor)
    panel_factors = [f for f in trials.varying if f not in line_factors]
    found = []
    for key in dict.fromkeys(_key(cell, panel_factors) for cell in trained):
        inside = [cell for cell in trained if _key(cell, panel_factors) == key]
        lines: dict[str, tuple[Cell, ...]] = {}
        for line_key in dict.fromkeys(_key(cell, line_factors) for cell in inside):
            line = [cell for cell in inside if _key(cell, line_factors) == line_key]
            lines[_label(line[0], line_factors)] = tuple(sorted(line, key=lambda cell: cell.members))
        found.append(Panel(_label(inside[0], panel_factors), lines, _backbone(trials, inside[0])))
    return found


def _key(cell: Cell, factors: Sequence[str]) -> tuple[Any, ...]:
    return tuple(cell.factors[f] for f in factors)


def _label(cell: Cell, factors: Sequence[str]) -> str:
    """Values of the factors; a number says of what."""
    values = [(f, cell.factors[f]) for f in factors]
    return ", ".join(value if isinstance(value, str) else f"{f} {value}" for f, value in values)


def _backbone(trials: Trials, cell: Cell) -> Cell | None:
    shared = [f for f in SHARED_FACTORS if f in cell.factors]
    found = [c for c in trials.cells if not c.members and _key(c, shared) == _key(cell, shared)]
    return found[0] if found else None


def slug(label: str) -> str:
    """A label as the end of a file name."""
    words = re.sub(r"[^A-Za-z0-9._]+", "-", label).strip("-")
    return f"-{words}" if words else ""


def look(number: int) -> dict[str, Any]:
    """Colour, marker and dashes of the line with this number."""
    n = number % MAX_LINES
    return {"color": COLOURS[n], "marker": MARKERS[n], "linestyle": DASHES[n]}


def axes_of(width: float = COLUMN_INCHES, height: float = 2.2) -> tuple[Figure, Axes]:
    """A figure of one plot; inches."""
    figure = Figure((width, height), layout="constrained")
    return figure, figure.add_subplot()


def legend_above(figure: Figure, axes: Axes) -> None:
    """A legend over the plot, where it hides nothing, in as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, 60 // (7 + max(map(len, labels))))  # a paper's column holds about 60 characters
    figure.legend(handles, labels, loc="outside upper center", ncols=columns)


def backbone_line(axes: Axes, value: float) -> None:
    """The untouched backbone's value across the plot; where it is far off, the legend says it instead."""
    lo, hi = axes.get_ylim()
    if lo - (hi - lo) / 2 <= value <= hi + (hi - lo) / 2:
        axes.axhline(value, label="zero-shot", **BACKBONE)
    else:
        axes.plot([], [], label=f"zero-shot: {value:.3f}", **BACKBONE)


@styled
def save(plot: Plot, folder: Path) -> None:
    """Write `<name>.pdf` and `<name>.svg`."""
    folder.mkdir(parents=True, exist_ok=True)
    plot.figure.savefig(folder / f"{plot.name}.pdf", metadata={"CreationDate": None})
    (folder / f"{plot.name}.svg").write_text(svg(plot))


@styled
def svg(plot: Plot) -> str:
    """The figure as an SVG document."""
    sink = io.StringIO()
    plot.figure.savefig(sink, format="svg", metadata={"Date": None})
    return sink.getvalue()
