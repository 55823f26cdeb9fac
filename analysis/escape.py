"""Escape text for Markdown, LaTeX, HTML and CSV.

Labels, task names and errors come from sweep files and storages, and none of their characters may act as a
command. Every text in a table or page passes through one of these functions; for figures see
`plotting.plain_text`.
"""

from __future__ import annotations

import html
import re
from typing import Any

# Line ends of Python or Unicode, terminal controls, and characters that reverse what follows
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")
_CODE = re.compile(r"((?<!`)`[^`]+`(?!`))")  # as in CommonMark

LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "∞": r"$\infty$",
    "≤": r"$\leq$",
    "Δ": r"$\Delta$",
    "†": r"$\dagger$",
    "<": "$<$",
    ">": "$>$",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


def one_line(words: str) -> str:
    """The text without line ends and other control characters."""
    return _CONTROL.sub(" ", words)


def latex(words: str) -> str:
    """LaTeX source of plain text; `code` in backticks becomes typewriter."""
    escaped = "".join(LATEX.get(c, c) for c in one_line(words))
    escaped = _CODE.sub(lambda found: rf"\texttt{{{found[1][1:-1]}}}", escaped)
    # After the end of a table row, LaTeX would read these as its option
    return "{}" + escaped if escaped.lstrip().startswith(("[", "*")) else escaped


def markdown(words: str) -> str:
    """Markdown of plain text; `code` in backticks stays code."""
    parts = _CODE.split(one_line(words))
    return "".join(part if n % 2 else _no_markup(part) for n, part in enumerate(parts))


def markdown_cell(words: str) -> str:
    """Markdown of plain text in a table cell."""
    return _no_markup(one_line(words)).replace("|", "\\|").replace("`", "\\`")


def _no_markup(words: str) -> str:
    """Escape tags and emphasis, and links and images, which a viewer would fetch."""
    return re.sub(r"[\\<*]|(?<=\])\(", r"\\\g<0>", words)


def page(words: str) -> str:
    """HTML of plain text; `code` in backticks becomes code, and line ends stay."""
    lines = (html.escape(one_line(line)) for line in words.split("\n"))
    return "<br>".join(_CODE.sub(lambda found: f"<code>{found[1][1:-1]}</code>", line) for line in lines)


def csv_cell(value: Any) -> Any:
    """A cell that no spreadsheet evaluates: text that begins like a formula gets an apostrophe."""
    if not isinstance(value, str):
        return value
    return ("'" if re.match(r"\s*([=@]|[+-](?![\d.]*$))", value) else "") + one_line(value)
