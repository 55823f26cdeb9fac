"""How figures look: a paper's column wide, readable in colour and in black and white; PDF and SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import (
    FixedFormatter,
    FixedLocator,
    FuncFormatter,
    NullFormatter,
    NullLocator,
    ScalarFormatter,
)

from analysis.cells import METHOD_NAMES, Cell
from analysis.data import Trials, is_shared
from lorae.combinations import COMBINATIONS, SOUPS

COLUMN_INCHES = 3.25
NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\U0010ffff]")
MAX_LINES = 6  # in one figure; further lines go to further figures

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
# Okabe and Ito's colours are distinct for the colour-blind; markers and dashes, without any colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (2, 1)), (0, (6, 1, 1, 1, 1, 1)))
BACKBONE: dict[str, Any] = {"color": "0.35", "linestyle": (0, (1, 2)), "linewidth": 1.0}

styled = mpl.rc_context(STYLE)  # decorator of functions that draw or save


@dataclass(frozen=True, eq=False)
class Plot:
    """A figure with its file name (without suffix) and caption."""

    name: str
    caption: str
    figure: Figure

    def _repr_html_(self) -> str:
        """For a notebook."""
        from analysis.page import figure_html

        return figure_html(self)


@dataclass(frozen=True, eq=False)
class Panel:
    """Cells that belong in one figure: lines of ascending ensemble size, and the backbone they share."""

    label: str  # the settings that differ between panels; "" if there is one panel
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

    Each backbone and test set has its own panels. Regularisers always distinguish lines, and so do the other
    varying factors that fit; further lines continue in the next panel. Single adapters of equal cost that
    ensembles are compared with are on no line and are left to the tables.
    """
    trained = [cell for cell in trials.cells if cell.members]
    sizes: dict[str, set[int]] = {}
    for cell in trained:
        sizes.setdefault(cell.recipe, set()).add(cell.members)
    if any(len(found) > 1 for found in sizes.values()):
        trained = [cell for cell in trained if sizes[cell.recipe] != {1}]
    line_factors = [f for f in trials.varying if f == "regularizers"]
    for factor in [f for f in trials.varying if f not in line_factors and not is_shared(f)]:
        if len({_key(cell, [*line_factors, factor]) for cell in trained}) <= MAX_LINES:
            line_factors.append(factor)
    panel_factors = [f for f in trials.varying if f not in line_factors]
    found: dict[str, Panel] = {}
    for cells in trials.by_test_set().values():
        for inside in _grouped([cell for cell in cells if cell in trained], panel_factors):
            lines = _grouped(inside, line_factors)
            told = _telling(lines, line_factors)
            for start in range(0, len(lines), MAX_LINES):
                part = lines[start : start + MAX_LINES]
                label = _label(inside[0], panel_factors)
                if len(lines) > MAX_LINES:
                    label = ", ".join([*filter(None, [label]), f"part {start // MAX_LINES + 1}"])
                if label in found:  # test sets that differ only in their size
                    label = ", ".join([*filter(None, [label]), inside[0].test_set])
                named = {_label(line[0], told): _by_size(line) for line in part}
                found[label] = Panel(label, named, _backbone(trials, inside[0]))
    return list(found.values())


def _grouped(cells: Sequence[Cell], factors: Sequence[str]) -> list[list[Cell]]:
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(_key(cell, factors), []).append(cell)
    return list(groups.values())


def _by_size(line: Sequence[Cell]) -> tuple[Cell, ...]:
    return tuple(sorted(line, key=lambda cell: cell.members))


def _key(cell: Cell, factors: Sequence[str]) -> tuple[Any, ...]:
    return tuple(cell.factors[f] for f in factors)


def _label(cell: Cell, factors: Sequence[str]) -> str:
    """Values of the factors; numbers, and settings without a column, are preceded by the factor's name."""
    return ", ".join(filter(None, (_value(factor, cell.factors[factor]) for factor in factors)))


def _telling(lines: Sequence[Sequence[Cell]], factors: Sequence[str]) -> list[str]:
    """The regulariser, and each other factor that distinguishes lines equal so far; the method first."""
    told = [factor for factor in factors if factor == "regularizers"]
    for factor in factors:
        known, more = ({_key(line[0], names) for line in lines} for names in (told, [*told, factor]))
        if len(more) > len(known):
            told.append(factor)
    return sorted(told, key=lambda factor: factor != "method")


def method_name(method: str) -> str:
    """A method's name, whatever the number of members."""
    single, _ = METHOD_NAMES.get(method, (method, ""))
    return single.removeprefix("single ").removesuffix(" member")


def _value(factor: str, value: Any) -> str:
    if factor == "method":
        return method_name(value)
    if factor == "combine":
        soup = COMBINATIONS[value].soup if value in SOUPS else None
        return soup or {"probs": ""}.get(str(value), str(value))
    if isinstance(value, str) and "." not in factor:
        return value
    return f"{factor} {value:g}" if isinstance(value, float) else f"{factor} {value}"


def _backbone(trials: Trials, cell: Cell) -> Cell | None:
    shared = [f for f in cell.factors if is_shared(f)]
    same = [c for c in trials.by_test_set()[cell.test_set] if _key(c, shared) == _key(cell, shared)]
    return next((c for c in same if not c.members), None)


def slug(label: str) -> str:
    """A label as the end of a file name."""
    words = re.sub(r"[^A-Za-z0-9._]+", "-", label).strip("-")
    return f"-{words}" if words else ""


def look(number: int) -> dict[str, Any]:
    """Colour, marker and dashes of the line with this number."""
    n = number % MAX_LINES
    return {"color": COLOURS[n], "marker": MARKERS[n], "linestyle": DASHES[n]}


def axes_of(height: float = 2.2) -> tuple[Figure, Axes]:
    """A figure of one plot, as wide as a paper's column; height in inches."""
    figure = Figure((COLUMN_INCHES, height), layout="constrained")
    return figure, figure.add_subplot()


def members_axis(axes: Axes, sizes: Iterable[int]) -> None:
    """A logarithmic axis of ensemble sizes, with ticks at `sizes`."""
    axes.set(xlabel="members M", xscale="log")
    axes.xaxis.set(major_locator=FixedLocator(sorted(set(sizes))), minor_locator=NullLocator())
    axes.xaxis.set(major_formatter=ScalarFormatter(), minor_formatter=NullFormatter())


def legend_above(figure: Figure, axes: Axes) -> None:
    """A legend over the plot, where it hides nothing, in as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    columns = max(
        1, 60 // (7 + max(map(len, labels), default=0))
    )  # a paper's column holds about 60 characters
    figure.legend(handles, labels, loc="outside upper center", ncols=columns)


def backbone_line(axes: Axes, value: float) -> None:
    """Draw the untouched backbone's value across the plot, or give it in the legend if it is far off."""
    lo, hi = axes.get_ylim()
    if lo - (hi - lo) / 2 <= value <= hi + (hi - lo) / 2:
        axes.axhline(value, label="zero-shot", **BACKBONE)
    else:
        axes.plot([], [], label=f"zero-shot: {value:.3f}", **BACKBONE)


def plain_text(figure: Figure) -> Figure:
    """The figure with $ as a plain dollar in its texts; tick labels may be formulas (10^3)."""
    axes = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    given = FixedFormatter, FuncFormatter
    numbers = [axis for axis in axes if not isinstance(axis.get_major_formatter(), given)]
    formulas = {label for axis in numbers for label in axis.get_ticklabels(which="both")}
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text not in formulas:
            text.set_parse_math(False)
    return figure


@styled
def save(plot: Plot, folder: Path) -> None:
    """Write `<name>.pdf` and `<name>.svg`."""
    folder.mkdir(parents=True, exist_ok=True)
    plain_text(plot.figure).savefig(folder / f"{plot.name}.pdf", metadata={"CreationDate": None})
    (folder / f"{plot.name}.svg").write_text(svg(plot))


@styled
def svg(plot: Plot) -> str:
    """The figure as an SVG document."""
    sink = io.StringIO()
    plain_text(plot.figure).savefig(sink, format="svg", metadata={"Date": None})
    return NOT_XML.sub("", sink.getvalue())
