"""A `Table` as Markdown, CSV and LaTeX (booktabs)."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable

from analysis.table import Column, Entry, Table

ARROWS = {"lower": " ↓", "higher": " ↑", "none": ""}
MARKS = "Best in bold; ≈: not distinguishable from the best (paired bootstrap, 10,000 resamples, Holm, 5 %)."


def head(column: Column) -> str:
    """Title and direction of a column."""
    return column.title + ARROWS[column.direction]


def shown(table: Table) -> list[Column]:
    """The columns that people see."""
    return [column for column in table.columns if column.kind != "data"]


def text(column: Column, entry: Entry) -> str:
    """An entry without its verdict: "0.842 ± 0.004", "1.23M", "-" where there is none."""
    if entry.value is None:
        return "-"
    if column.kind == "amount":
        return amount(entry.value)
    if column.kind != "metric":
        return str(entry.value)
    if math.isinf(entry.value):
        return "∞"
    return f"{entry.value:.3f}" + ("" if entry.stderr is None else f" ± {entry.stderr:.3f}")


def amount(value: float) -> str:
    """A count or cost with three significant digits: 12, 1.23k, 4.56M, 7.89G."""
    for power, suffix in ((9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 0.9995 * 10**power:
            return f"{value / 10**power:#.3g}".rstrip(".") + suffix
    return f"{value:.0f}" if value == int(value) else f"{value:.3g}"


# Markdown --------------------------------------------------------------------------------------------------


def markdown(table: Table) -> str:
    """The table for a README or a terminal that folds nothing; blocks follow each other."""
    columns = shown(table)
    heads = [head(column) for column in columns]
    body = [[_marked(c, line[c.name]) for c in columns] for block in table.blocks for line in block]
    widths = [max(len(row[i]) for row in [heads, *body]) for i in range(len(columns))]
    rule = ["-" * w if c.kind == "text" else "-" * (w - 1) + ":" for c, w in zip(columns, widths)]
    rows = ["| " + " | ".join(_aligned(columns, row, widths)) + " |" for row in [heads, rule, *body]]
    notes = "".join(f"\n- {note}" for note in table.notes)
    return "\n".join(rows) + f"\n\n{table.caption} {MARKS}\n" + (notes + "\n" if notes else "")


def _marked(column: Column, entry: Entry) -> str:
    cell = text(column, entry).replace("|", "\\|")
    return {"best": f"**{cell}**", "tied": f"{cell} ≈", "worse": cell, None: cell}[entry.verdict]


def _aligned(columns: list[Column], row: list[str], widths: list[int]) -> list[str]:
    return [cell.ljust(w) if c.kind == "text" else cell.rjust(w) for c, cell, w in zip(columns, row, widths)]


# CSV -------------------------------------------------------------------------------------------------------


def csv_text(table: Table) -> str:
    """Every column by its name in trials.parquet, in full precision; metrics with _stderr and _verdict."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    fields: list[tuple[str, Callable[[dict[str, Entry]], object]]] = []
    for column in table.columns:
        name = column.name
        fields.append((name, lambda line, name=name: line[name].value))
        if column.kind == "metric":
            fields.append((f"{name}_stderr", lambda line, name=name: line[name].stderr))
            fields.append((f"{name}_verdict", lambda line, name=name: line[name].verdict))
    writer.writerow([name for name, _ in fields])
    for block in table.blocks:
        writer.writerows([get(line) for _, get in fields] for line in block)
    return sink.getvalue()


# LaTeX -----------------------------------------------------------------------------------------------------


def latex(table: Table) -> str:
    """A `table*` that needs the package booktabs; best values bold, those tied with them underlined."""
    columns = shown(table)
    heads = " & ".join(_escaped(head(column)) for column in columns)
    blocks = [
        "\n".join(" & ".join(_latex_entry(c, line[c.name]) for c in columns) + r" \\" for line in block)
        for block in table.blocks
    ]
    marks = "Best in bold, not distinguishable from it (paired bootstrap, Holm, 5 %) underlined."
    return "\n".join(
        [
            r"\begin{table*}",
            r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{_escaped(f'{table.caption} {marks}')}}}",
            rf"\label{{tab:{re.sub(r'[^A-Za-z0-9-]+', '-', table.name)}}}",
            rf"\begin{{tabular}}{{{''.join('l' if c.kind == 'text' else 'r' for c in columns)}}}",
            r"\toprule",
            heads + r" \\",
            r"\midrule",
            "\n\\midrule\n".join(blocks),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table*}",
            *(f"% {note}" for note in table.notes),
            "",
        ]
    )


def _latex_entry(column: Column, entry: Entry) -> str:
    cell = _escaped(text(column, entry))
    return {"best": rf"\textbf{{{cell}}}", "tied": rf"\underline{{{cell}}}"}.get(entry.verdict or "", cell)


LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "∞": r"$\infty$",
    "<": "$<$",
    ">": "$>$",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


def _escaped(words: str) -> str:
    """LaTeX source of plain text; `code` in backticks becomes typewriter."""
    escaped = "".join(LATEX.get(c, c) for c in words)
    return re.sub(r"`([^`]*)`", r"\\texttt{\1}", escaped)
