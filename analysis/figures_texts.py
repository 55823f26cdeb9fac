"""Figures of texts: risk against coverage, what scores are worth, and quality against members."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from analysis.cells import Cell
from analysis.columns import title
from analysis.figures_scores import thinned
from analysis.plotting import (
    COLOURS,
    COLUMN_INCHES,
    Plot,
    axes_of,
    legend_above,
    look,
    members_axis,
    method_name,
    slug,
    styled,
)
from analysis.texts import Line, Texts
from lorae.texts import judging
from lorae.texts.uncertainty import SOURCES

DRAWN = (  # of risk against coverage, those that are there
    Line("nll_per_token", "one"),
    Line("semantic_entropy", "samples"),
    Line("nll_per_token", "members"),
    Line("mutual_information", "members"),
    Line("semantic_entropy", "members"),
)
HATCHES = ("", "////", "", "....")  # of the sources, which colours alone do not tell apart in print
ACROSS = {"vote of members": "vote", "mean": "lock-step", "logits": "lock-step, logits", "soup": "soup"}


@styled
def risk_coverage(texts: Texts, recipe: str) -> Plot:
    """Risk among the most certain answers of the first member against their share."""
    figure, axes = axes_of(height=2.9)
    cell = texts.largest(recipe)
    stored, known = texts.of(cell.rows[0]), texts.lines(recipe)
    everyone, right_N = tuple(range(len(stored.members))), stored.right(0)
    for number, line in enumerate(line for line in DRAWN if line in known):
        score_N = stored.score(line.score, line.source, 0, everyone if "members" in line.source else (0,))
        risk_N = judging.risks(score_N, right_N)
        coverage, risk = thinned(np.arange(1, len(risk_N) + 1) / len(risk_N), risk_N)
        axes.plot(coverage, risk, label=f"{title(line.score)}, {line.source}", **look(number), markevery=0.2)
    oracle = thinned(np.arange(1, len(right_N) + 1) / len(right_N), judging.risks(-right_N, right_N))
    axes.plot(*oracle, color="0.7", linewidth=0.8, label="oracle")
    axes.set(xlabel="coverage (share of examples answered)", ylabel="risk", xlim=(0, 1))
    axes.set_ylim(bottom=0)
    legend_above(figure, axes)
    caption = (
        f"Risk, 1 minus {title(stored.kind.right)}, of the first member's greedy texts against coverage, by "
        f"scores from one member or {cell.members}. First seed; lower is better."
    )
    return Plot(f"text-risk-coverage{recipe_suffix(texts, recipe)}", caption, figure)


@styled
def prr_bars(texts: Texts, recipe: str) -> Plot:
    """PRR of every score from every source, with its standard error over trainings."""
    lines = [line for line in texts.lines(recipe) if "prr" in texts.judged(recipe, line)]
    names = list(dict.fromkeys(line.score for line in lines))
    figure = Figure((COLUMN_INCHES, 0.7 + 0.32 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    for number, source in enumerate(SOURCES):
        drawn = [(names.index(line.score), line) for line in lines if line.source == source]
        if drawn:
            found = [texts.judged(recipe, line)["prr"] for _, line in drawn]
            heights = [place + (number - 1.5) * 0.2 for place, _ in drawn]
            errors = [one.stderr or 0.0 for one in found]
            values = [one.mean for one in found]
            how = {"color": COLOURS[number], "hatch": HATCHES[number], "edgecolor": "white", "linewidth": 0}
            axes.barh(heights, values, 0.19, xerr=errors, label=source, **how)
    axes.set(xlabel="PRR (0: chance, 1: oracle)", yticks=range(len(names)))
    axes.set_yticklabels([title(name) for name in names])
    axes.invert_yaxis()
    legend_above(figure, axes)
    caption = "PRR of single members' greedy texts by score and source; bars: standard error over trainings."
    return Plot(f"prr{recipe_suffix(texts, recipe)}", caption, figure)


@styled
def quality_against_members(texts: Texts, recipe: str) -> Plot:
    """Quality of the ensemble's one text against its members."""
    largest = texts.largest(recipe)
    figure, axes = axes_of()
    right = texts.of(largest.rows[0]).kind.right
    alone = texts.quality(largest, "member", 1)[right]
    sizes = {1}
    for number, (writer, label) in enumerate(ACROSS.items()):
        points = [(1, alone)]
        for cell in sorted(texts.cells, key=lambda cell: cell.members):
            is_its = cell.members > 1 and _but_combine(cell) == _but_combine(largest)
            if is_its and cell.is_soup == (writer == "soup") and texts.of(cell.rows[0]).has(writer):
                points.append((cell.members, texts.quality(cell, writer, cell.members)[right]))
        if len(points) > 1:
            x, found = zip(*points)
            sizes |= set(x)
            errors = [one.stderr or 0.0 for one in found]
            axes.errorbar(x, [one.mean for one in found], errors, label=label, capsize=2, **look(number))
    members_axis(axes, sizes)
    axes.set_ylabel(title(right))
    legend_above(figure, axes)
    caption = f"{title(right)} of one text against the members M; bars: standard error over trainings."
    return Plot(f"text-quality{recipe_suffix(texts, recipe)}", caption, figure)


def _but_combine(cell: Cell) -> tuple[object, ...]:
    """What ensembles of one recipe and their soups share."""
    factors = {n: v for n, v in cell.factors.items() if n not in ("members", "combine")}
    return cell.test_set, *factors.items()


def recipe_suffix(texts: Texts, recipe: str) -> str:
    """Of a file name: what tells a recipe from the others; nothing where there is one."""
    if len(texts.recipes) == 1:
        return ""
    cell = texts.largest(recipe)
    told = [method_name(cell.factors["method"]), *map(str, cell.settings.get("task", "").split())]
    regularizers = cell.factors["regularizers"]
    return f"{slug(' '.join([*told, str(regularizers)]))}-{list(texts.recipes).index(recipe)}"
