"""A `Table` as Markdown, CSV and LaTeX (booktabs)."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path

from analysis import escape
from analysis.columns import Column
from analysis.significance import Difference
from analysis.table import Entry, Table


def shown(table: Table) -> list[Column]:
    """The columns that people see."""
    return [column for column in table.columns if column.kind != "data"]


def text(column: Column, entry: Entry | Difference) -> str:
    """An entry without its mark: "0.842 ± 0.004", "+0.012 [-0.003, +0.027]", "1.23M", "-" for none."""
    form = f"{'+' if column.kind in ('difference', 'estimate') else ''}.{column.decimals}f"
    if isinstance(entry, Difference):
        if entry.lo is None or entry.hi is None:
            return f"{entry.value:{form}}"
        return f"{entry.value:{form}} [{entry.lo:{form}}, {entry.hi:{form}}]"
    if entry.value is None:
        return "-"
    if column.kind == "amount":
        return amount(entry.value)
    if column.kind == "estimate":
        return f"{entry.value:{form}}"
    if column.kind not in ("metric", "pooled", "level"):
        return str(entry.value)
    if math.isinf(entry.value):
        return "∞"
    spread = entry.std if column.kind == "pooled" else entry.stderr
    return f"{entry.value:{form}}" + ("" if spread is None else f" ± {spread:{form}}")


def parts(column: Column, entry: Entry | Difference) -> tuple[str, str]:
    """`text` split into the number and its uncertainty, "" if it has none."""
    number, _, uncertainty = text(column, entry).partition(" ")
    return (number, uncertainty) if column.kind in CSV_PARTS else (text(column, entry), "")


def amount(value: float) -> str:
    """A count or cost with three significant digits: 12, 1.23k, 4.56M, 7.89G, up to E."""
    for power, suffix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 0.9995 * 10**power:
            return f"{value / 10**power:#.3g}".rstrip(".") + suffix
    return f"{value:.0f}" if value == int(value) else f"{value:.3g}"


def is_bold(entry: Entry | Difference) -> bool:
    """Whether it is the best of its column, or a difference whose interval excludes 0."""
    return entry.verdict in ("lower", "higher") if isinstance(entry, Difference) else entry.mark == "best"


def sign(entry: Entry | Difference) -> str:
    """≈ for equivalent, ? for undecided, † for a number of these very members; or "".

    An undecided difference has no sign; its interval shows it.
    """
    if isinstance(entry, Difference):
        return "†" if entry.verdict is None else "≈" if entry.verdict == "equivalent" else ""
    if entry.is_of_these:
        return "†"
    return {"equivalent": "≈", "undecided": "?"}.get(entry.mark or "", "")


def save_table(table: Table, folder: Path) -> None:
    """Write `<name>.md`, `.csv` and `.tex`."""
    folder.mkdir(parents=True, exist_ok=True)
    for ending, rendered in (("md", markdown), ("csv", csv_text), ("tex", latex)):
        (folder / f"{table.name}.{ending}").write_text(rendered(table), encoding="utf-8")


# Markdown --------------------------------------------------------------------------------------------------


def markdown(table: Table) -> str:
    """The table, its caption and its notes, for a README or a terminal."""
    columns = shown(table)
    heads = [escape.markdown_cell(column.head) for column in columns]
    body = [[_markdown_entry(c, line[c.name]) for c in columns] for block in table.blocks for line in block]
    widths = [max(len(row[i]) for row in [heads, *body]) for i in range(len(columns))]
    rule = ["-" * w if c.kind == "text" else "-" * (w - 1) + ":" for c, w in zip(columns, widths)]
    rows = ["| " + " | ".join(_aligned(columns, row, widths)) + " |" for row in [heads, rule, *body]]
    notes = "".join(f"\n- {escape.markdown(note)}" for note in table.notes)
    caption = escape.markdown(table.caption)
    return "\n".join(rows) + f"\n\n{caption}\n" + (notes + "\n" if notes else "")


def _markdown_entry(column: Column, entry: Entry | Difference) -> str:
    cell = escape.markdown_cell(text(column, entry))
    return f"**{cell}**" if is_bold(entry) else f"{cell} {sign(entry)}".rstrip()


def _aligned(columns: list[Column], row: list[str], widths: list[int]) -> list[str]:
    return [cell.ljust(w) if c.kind == "text" else cell.rjust(w) for c, cell, w in zip(columns, row, widths)]


# CSV -------------------------------------------------------------------------------------------------------

INTERVAL = ("lo", "hi", "p_value")
CSV_PARTS = {
    "metric": ("stderr", "mark"),
    "pooled": ("std",),
    "difference": (*INTERVAL, "verdict"),
    "estimate": INTERVAL,
    "level": ("lo", "hi"),
}


def csv_text(table: Table) -> str:
    """Every column by its name in trials.parquet, in full precision, with columns for its uncertainty.

    A metric has `_stderr` and `_mark`, or `_std` over folds; a level has `_lo` and `_hi`; a difference or
    estimate also `_p_value` (corrected); a difference also `_verdict`.
    """
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    parts = [(c.name, part) for c in table.columns for part in ("value", *CSV_PARTS.get(c.kind, ()))]
    heads = (name if part == "value" else f"{name}_{part}" for name, part in parts)
    writer.writerow(map(escape.csv_cell, heads))
    for block in table.blocks:
        for line in block:
            values = (getattr(line[name], part, None) for name, part in parts)
            writer.writerow(map(escape.csv_cell, values))
    return sink.getvalue()


# LaTeX -----------------------------------------------------------------------------------------------------


COLUMN_CHARACTERS, PAGE_CHARACTERS = 60, 130  # per line in scriptsize: in one column, across two
MARKS = {
    "best": "Best in bold",
    "equivalent": "equivalent to it underlined",
    "undecided": "?: undecided",
}


def latex(table: Table) -> str:
    """A `table`, or a `table*` if a column is too narrow; needs the package booktabs. A table wider than a
    page is scaled to fit (graphicx). The caption is short; the long one is in comments."""
    columns = shown(table)
    heads = " & ".join(_latex_head(column) for column in columns)
    blocks = [
        "\n".join(" & ".join(_latex_entry(c, line[c.name]) for c in columns) + r" \\" for line in block)
        for block in table.blocks
    ]
    width = sum(_width(column, table) for column in columns)
    environment = "table" if width <= COLUMN_CHARACTERS else "table*"
    scaled = width > PAGE_CHARACTERS
    label = re.sub(r"[^A-Za-z0-9-]+", "-", "-".join(filter(None, [table.sweep, table.name])))
    return "\n".join(
        [
            rf"\begin{{{environment}}}",
            r"\centering\scriptsize\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{escape.latex(short_caption(table))}}}",
            rf"\label{{tab:{label}}}",
            *([r"\resizebox{\textwidth}{!}{"] if scaled else []),
            rf"\begin{{tabular}}{{{''.join('l' if c.kind == 'text' else 'r' for c in columns)}}}",
            r"\toprule",
            heads + r" \\",
            r"\midrule",
            "\n\\midrule\n".join(blocks),
            r"\bottomrule",
            r"\end{tabular}" + ("}" if scaled else ""),
            rf"\end{{{environment}}}",
            *(f"% {escape.one_line(note)}" for note in (table.caption, *table.notes)),
            "",
        ]
    )


def short_caption(table: Table) -> str:
    """The title and the meaning of the table's marks: all that a paper has room for."""
    entries = [line[c.name] for block in table.blocks for line in block for c in shown(table)]
    marks = {entry.mark for entry in entries if isinstance(entry, Entry)}
    told = [words for mark, words in MARKS.items() if mark in marks]
    told += ["±: standard error over trainings"] if any(getattr(e, "stderr", None) for e in entries) else []
    told += ["†: of these very members"] if "†" in map(sign, entries) else []
    return f"{table.title}." + (f" {'; '.join(told)}." if told else "")


def _width(column: Column, table: Table) -> int:
    """Characters that a column takes, with the room between columns; a head is broken in two."""
    cells = [text(column, line[column.name]) for block in table.blocks for line in block]
    head = len(column.head) if len(column.head) <= 12 else -(-len(column.head) * 2 // 3)
    return 2 + max([head, *map(len, cells)])


def _latex_head(column: Column) -> str:
    """A head, broken at the space nearest its middle if it is long."""
    spaces = [place for place, c in enumerate(column.head) if c == " "]
    if len(column.head) <= 12 or not spaces:
        return escape.latex(column.head)
    middle = min(spaces, key=lambda place: abs(place - len(column.head) / 2))
    above, below = escape.latex(column.head[:middle]), escape.latex(column.head[middle + 1 :])
    return rf"\shortstack[r]{{{above}\\{below}}}"


def _latex_entry(column: Column, entry: Entry | Difference) -> str:
    number, uncertainty = map(escape.latex, parts(column, entry))
    mark = r"\textbf" if is_bold(entry) else r"\underline" if sign(entry) == "≈" else ""
    number = f"{mark}{{{number}}}" if mark else number
    number += {"?": "$^{?}$", "†": r"$^{\dagger}$"}.get(sign(entry), "")
    return number + (rf"{{\tiny\,{uncertainty}}}" if uncertainty else "")
