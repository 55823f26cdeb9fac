"""One self-contained HTML page of tables, figures and text; nothing is loaded from anywhere."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from analysis.columns import Column
from analysis.escape import page as words
from analysis.plotting import Plot, svg
from analysis.render import is_bold, parts, shown, sign
from analysis.significance import Difference
from analysis.table import Entry, Line, Table

MAX_WARNINGS = 5  # that are open
LONG = 60  # characters of a cell that may take several lines

CSS = """
:root { color-scheme: light dark; --paper: #fdfdfc; --ink: #1c1c1c; --quiet: #555; --line: #333; --soft: #ddd;
  --tint: #f1f1ee; --warn: #fbeeed; }
@media (prefers-color-scheme: dark) { :root { --paper: #161719; --ink: #e4e4e2; --quiet: #a5a5a2;
  --line: #999; --soft: #3a3b3e; --tint: #25272a; --warn: #3a2523; }
  figure svg { filter: invert(.92) hue-rotate(180deg); } }  /* white paper turns dark, hues stay */
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 84rem;
  background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .6rem; border-bottom: 1px solid var(--soft);
  padding-bottom: .2rem; }
p, li { max-width: 48rem; }
code { font: .88em ui-monospace, Menlo, Consolas, monospace; background: var(--tint); padding: .05em .3em; }
.quiet, figcaption, .caption, .note { color: var(--quiet); font-size: .85rem; }
.caption, .note { max-width: 60rem; margin: .4rem 0; }
.warnings { border-left: 4px solid #b3261e; background: var(--warn); padding: .6rem 1rem; margin: 1.2rem 0; }
.warnings ul { margin: .3rem 0 0; padding-left: 1.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums; white-space: nowrap;
  border-top: 2px solid var(--line); border-bottom: 2px solid var(--line); }
th { text-align: right; font-weight: 600; padding: .35rem .45rem; border-bottom: 1px solid var(--line);
  vertical-align: bottom; white-space: normal; cursor: pointer; }
th:hover { background: var(--tint); }
td.words:first-child, th.words:first-child { position: sticky; left: 0; background: var(--paper); }
td.long { white-space: normal; min-width: 14rem; max-width: 28rem; }
th[aria-sort=ascending]::after { content: " ▴"; } th[aria-sort=descending]::after { content: " ▾"; }
td { text-align: right; padding: .18rem .45rem; }
td small { color: var(--quiet); font-size: .82em; font-weight: 400; }
.words { text-align: left; }
tbody + tbody { border-top: 1px solid var(--soft); }
tbody tr:hover { background: var(--tint); }
.room { visibility: hidden; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr));
  gap: 1.5rem 2rem; }
nav a { display: inline-block; margin-right: 1rem; font-size: .88rem; } a { color: inherit; }
.summary { font-size: 1.05rem; margin: 1.2rem 0; padding-left: 1.2rem; }
input[type=search] { margin: .6rem 0; padding: .25rem .5rem; width: 18rem; max-width: 100%; }
figure { margin: 0; min-width: 0; }
figure svg { background: #fff; width: 100%; height: auto; max-width: 26rem; cursor: zoom-in; }
figure.large { grid-column: 1 / -1; }
figure.large svg { max-width: none; max-height: 90vh; cursor: zoom-out; }
details summary { cursor: pointer; }
dl { display: grid; grid-template-columns: fit-content(40%) 1fr; gap: .2rem 1.2rem; font-size: .88rem; }
dt { color: var(--quiet); } dd { margin: 0; } dd, li, p { overflow-wrap: anywhere; }
@media print { body { max-width: none; } th { cursor: auto; } figure { break-inside: avoid; } }
"""

SCRIPT = """
const onPress = (node, act) => {
  node.tabIndex = 0;
  node.onclick = act;
  node.onkeydown = event => { if (event.key === "Enter") act(); };
};
document.querySelectorAll("th").forEach(head => onPress(head, () => {
  const down = head.ariaSort === "ascending", place = head.cellIndex;
  const value = row => JSON.parse(row.cells[place].dataset.value);
  head.parentNode.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  head.ariaSort = down ? "descending" : "ascending";
  for (const body of head.closest("table").tBodies)
    [...body.rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      const order = typeof x === "string" ? x.localeCompare(y) : x - y;
      return down ? -order : order;
    }).forEach(row => body.append(row));
}));
document.querySelectorAll("figure svg").forEach(drawing => onPress(drawing, () => {
  const isLarge = drawing.parentNode.classList.toggle("large");
  drawing.parentNode.scrollIntoView({block: isLarge ? "start" : "nearest"});
}));
const search = document.querySelector("input[type=search]");
if (search) search.oninput = () => {
  const words = search.value.toLowerCase().split(/\\s+/);
  document.querySelectorAll("tbody tr").forEach(row => {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every(word => text.includes(word));
  });
};
"""


@dataclass(frozen=True, eq=False)
class Section:
    """A heading with its text, tables and figures.

    Args:
        folded: the tables are hidden until a reader opens them.
    """

    heading: str
    text: str = ""
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    folded: bool = False


def page(
    title: str,
    facts: dict[str, str],
    warnings: Sequence[str],
    sections: Sequence[Section],
    summary: Sequence[str] = (),
) -> str:
    """The whole page: warnings first, then the summary and the sections, then where the numbers come from."""
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{CSS}</style></head><body>",
            f"<h1>{html.escape(title)}</h1>",
            _warnings(warnings),
            _list(summary, "summary"),
            _contents(sections),
            *(_section(section) for section in sections),
            "<h2>Provenance</h2>",
            "<dl>"
            + "".join(f"<dt>{html.escape(k)}</dt><dd>{words(v)}</dd>" for k, v in facts.items())
            + "</dl>",
            f"<script>{SCRIPT}</script></body></html>",
            "",
        ]
    )


def _warnings(warnings: Sequence[str]) -> str:
    """The first of the warnings; a reader opens the others."""
    if not warnings:
        return ""
    more = _list(warnings[MAX_WARNINGS:])
    more = more and f"<details><summary>{len(warnings) - MAX_WARNINGS} more</summary>{more}</details>"
    first = _list(warnings[:MAX_WARNINGS])
    return f'<div class="warnings"><strong>Read this first</strong>{first}{more}</div>'


def _list(items: Sequence[str], name: str = "") -> str:
    listed = "".join(f"<li>{words(item)}</li>" for item in items)
    return f'<ul class="{name}">{listed}</ul>' if items else ""


def _contents(sections: Sequence[Section]) -> str:
    """Links to the sections, and a box that keeps the rows of all tables that have its words."""
    short = {_anchor(s): html.escape(s.heading.partition(", ")[0]) for s in sections}
    links = " ".join(f'<a href="#{anchor}">{heading}</a>' for anchor, heading in short.items())
    box = '<input type="search" placeholder="rows with these words" aria-label="rows with these words">'
    return f"<nav>{links}</nav>{box if any(s.tables for s in sections) else ''}"


def _anchor(section: Section) -> str:
    return re.sub(r"[^a-z0-9]+", "-", section.heading.lower()).strip("-")


def _section(section: Section) -> str:
    tables = "\n".join(table_html(table, _files(table)) for table in section.tables)
    if section.folded:
        tables = f"<details><summary>show</summary>{tables}</details>"
    plots = "\n".join(figure_html(p, _links(p.name, ("pdf", "svg"))) for p in section.plots)
    parts = [f'<h2 id="{_anchor(section)}">{html.escape(section.heading)}</h2>']
    parts += [f"<p>{words(section.text)}</p>"] if section.text else []
    parts += [tables] if tables else []
    parts += [f'<div class="figures">{plots}</div>'] if plots else []
    return "\n".join(parts)


def _files(table: Table) -> str:
    return f" Files: {_links(table.name, ('md', 'csv', 'tex'))}."


def _links(name: str, endings: Sequence[str]) -> str:
    """Links to files beside the page."""
    files = [f"{name}.{ending}" for ending in endings]
    return ", ".join(f'<a href="{quote(file)}"><code>{html.escape(file)}</code></a>' for file in files)


def figure_html(plot: Plot, files: str = "") -> str:
    """The figure as inline SVG with its caption, which ends with `files`."""
    drawing = re.sub(r"^.*?<svg", "<svg", svg(plot), count=1, flags=re.DOTALL)
    drawing = drawing.replace("<svg", f'<svg role="img" aria-label="{html.escape(plot.caption)}"', 1)
    caption = f"{html.escape(plot.caption)} {files}".rstrip()
    return f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>"


def table_html(table: Table, files: str = "") -> str:
    """The table with its caption, which ends with `files`, and notes; a click on a head sorts it within its
    blocks. Columns in which no line has a value are left out."""
    lines = [line for block in table.blocks for line in block]
    columns = [c for c in shown(table) if any(line[c.name].value is not None for line in lines)]
    heads = "".join(f"<th{_class(c)}>{_unbroken(c.head)}</th>" for c in columns)
    rooms = [_room(c, [line[c.name] for line in lines]) for c in columns]
    bodies = ""
    for block in table.blocks:
        rows = ["".join(_cell(c, line[c.name], room) for c, room in zip(columns, rooms)) for line in block]
        bodies += "<tbody>" + "\n".join(f"<tr>{row}</tr>" for row in rows) + "</tbody>\n"
    notes = "".join(f'<p class="note">{words(note)}</p>' for note in table.notes)
    return (
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead>\n{bodies}</table></div>'
        f'<p class="caption">{_legend(lines, columns)}{files}</p>{notes}'
        f'<details class="caption"><summary>how to read it</summary>{words(table.caption)}</details>'
    )


def _legend(lines: Sequence[Line], columns: Sequence[Column]) -> str:
    """What the signs that occur mean, in short."""
    entries = [line[column.name] for line in lines for column in columns]
    told = [words for has, words in LEGEND if any(map(has, entries))]
    return f"{'; '.join(told)}." if told else ""


def _differs(entry: Entry | Difference) -> bool:
    return isinstance(entry, Difference) and is_bold(entry)


LEGEND: Sequence[tuple[Callable[[Entry | Difference], bool], str]] = (
    (lambda entry: is_bold(entry) and not _differs(entry), "Bold: best"),
    (_differs, "Bold: differs from 0"),
    (lambda entry: sign(entry) == "≈", "≈: equivalent"),
    (lambda entry: sign(entry) == "?", "?: undecided"),
    (lambda entry: sign(entry) == "†", "†: these very members"),
    (lambda entry: getattr(entry, "stderr", None) is not None, "±: standard error over trainings"),
)


def notebook_html(table: Table) -> str:
    """The table with the style that it needs inside a notebook."""
    style = ".lorae .room { visibility: hidden } .lorae .words { text-align: left }"
    return f'<style>{style}</style><div class="lorae">{table_html(table)}</div>'


def _unbroken(head: str) -> str:
    """A head that breaks neither before its arrow nor at a hyphen."""
    return re.sub(r" ([↑↓])$", r"&nbsp;\1", html.escape(head)).replace("-", "&#8209;")


def _room(column: Column, entries: Sequence[Entry | Difference]) -> tuple[str, str]:
    """Space that a cell without an uncertainty or a sign leaves for it, so that the digits align."""
    uncertainties = [parts(column, entry)[1] for entry in entries]
    widest = html.escape(max(uncertainties, key=len, default=""))
    signed = _sign("≈" if any(map(sign, entries)) else "")
    return _hidden(f" <small>{widest}</small>" if widest else ""), _hidden(signed)


def _sign(mark: str) -> str:
    return f"<small> {mark}</small>" if mark else ""


def _hidden(content: str) -> str:
    return f'<span class="room">{content}</span>' if content else ""


def _cell(column: Column, entry: Entry | Difference, room: tuple[str, str]) -> str:
    number, uncertainty = map(html.escape, parts(column, entry))
    content = f"<b>{number}</b>" if is_bold(entry) else number
    content += f" <small>{uncertainty}</small>" if uncertainty else room[0]
    content += _sign(sign(entry)) or room[1]
    infinite = isinstance(entry.value, float) and math.isinf(entry.value)
    data = html.escape(json.dumps(1e308 if infinite else entry.value))  # JSON has no infinity
    return f'<td{_class(column, str(entry.value))} data-value="{data}">{content}</td>'


def _class(column: Column, content: str = "") -> str:
    if column.kind != "text":
        return ""
    return ' class="words long"' if len(content) > LONG else ' class="words"'
