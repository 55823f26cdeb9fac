"""Whatever labels, errors and names of tasks hold, in no format are they more than text."""

from __future__ import annotations

import csv
import html.parser
import io
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.font_manager import findfont, get_font
from sweeps import make_sweep

from analysis import escape
from analysis.columns import Column
from analysis.page import page, table_html
from analysis.plotting import Plot, axes_of, legend_above, save
from analysis.render import csv_text, latex, markdown
from analysis.report import write_report
from analysis.table import Entry, Table
from lorae.regularizers import KL

LIVE = [
    "\n\\input{/etc/passwd}",
    "\r\\end{tabular}",
    "a\x0b\\bye",
    "\u2028\\bye",
    "$x$",
    "$\\frac{",
    "$",
    "100%",
    "[1cm]",
    "*",
    "a & b \\\\ \\hline",
    "^^5cbye",
    "|x|",
    "\\|",
    "\\",
    "**",
    "<script>alert(1)</script>",
    "![](http://tracker/x.png)",
    "[here](javascript:alert(1))",
    "`",
    '" onload="alert(1)',
    "&lt;",
    "=1+1",
    "@SUM(A1)",
    "-cmd|' /C calc'!A0",
    "\x1b[2J",
    "\u202egnp",
]
texts = st.one_of(
    st.sampled_from(LIVE),
    st.text(max_size=30),
    st.text(st.sampled_from("\\$%&#_{}~^[]*|`<>\"'=+-@()!\n\r\t\x0c\x85\u2028ab "), max_size=30),
)
COLUMNS = (Column("name", "text"), Column("model", "text"))


def table_of(words: str) -> Table:
    lines = (
        {"name": Entry(words), "model": Entry("x")},
        {"name": Entry("y"), "model": Entry(words, mark="best")},
    )
    return Table("t", "T", f"Caption {words}", COLUMNS, (lines,), (words, f"tuned: {words}"))


# What may follow a backslash in what `latex` makes of plain text
COMMANDS = r"\\(?:textbackslash\{\}|textasciitilde\{\}|textasciicircum\{\}|texttt\{|[&%$#_{}])"
MATHS = r"\$(?:\\(?:pm|uparrow|downarrow|infty|leq|Delta|dagger)|[<>])\$"


@pytest.mark.slow
@given(texts)
@settings(max_examples=500, deadline=None)
def test_latex_has_no_command_of_the_text(words):
    """Without the commands that stand for characters nothing is left that LaTeX reads."""
    source = escape.latex(words)
    rest = re.sub(rf"{COMMANDS}|{MATHS}", "", source)
    assert not re.search(r"[\\$%&#_~^\x00-\x1f\u2028\u2029\x85]", rest), source
    braces = re.sub(r"\\[{}]", "", source)
    assert braces.count("{") == braces.count("}")
    assert not source.lstrip().startswith(("[", "*")), r"\\ would take it as its option"


@given(texts)
@settings(max_examples=300, deadline=None)
def test_a_latex_table_has_its_lines_whatever_its_texts(words):
    plain, live = latex(table_of("plain")), latex(table_of(words))
    assert len(live.splitlines()) == len(plain.splitlines())
    notes = [[line for line in t.split("\n") if line.startswith("% ")] for t in (live, plain)]
    assert len(notes[0]) == len(notes[1]) == 3, "the caption and the notes are comments"
    rows = [line for line in live.splitlines() if line.endswith(r" \\") and not line.startswith("%")]
    assert [len(re.split(r"(?<!\\)&", row)) for row in rows] == [2, 2, 2]


@given(texts)
@settings(max_examples=300, deadline=None)
def test_a_markdown_table_has_its_cells_whatever_its_texts(words):
    """By the rule of GitHub's tables: a pipe parts cells unless a backslash escapes it."""
    lines = markdown(table_of(words)).split("\n")
    assert len(lines) == len(markdown(table_of("plain")).split("\n"))
    for line in lines[:4]:
        assert re.fullmatch(r"\|((?:\\[^\n]|[^|\\])*\|){2}", line), line
    outside = re.sub(r"\\.", "x", re.sub(r"(?<!`)`[^`]+`(?!`)", "x", "\n".join(lines[4:])))
    assert "<" not in outside and "](" not in outside and "*" not in outside


class Seen(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@given(texts)
@settings(max_examples=300, deadline=None)
def test_a_page_has_its_tags_whatever_its_texts(words):
    def seen(text: str) -> Seen:
        parser = Seen()
        parser.feed(table_html(table_of(text)) + page(text, {"fact": text}, [text], []).partition("<h1>")[2])
        return parser

    ignored = {("br", ()), ("code", ())}  # for ends of lines, and what is in backticks
    plain, live = seen("plain"), seen(words)
    assert [t for t in live.tags if t not in ignored] == [t for t in plain.tags if t not in ignored]
    if not re.search(r"[`\s]", words) and escape.one_line(words) == words:
        assert live.text == plain.text.replace("plain", words)


@given(texts)
@settings(max_examples=300, deadline=None)
def test_csv_reads_back_and_no_spreadsheet_computes_it(words):
    rows = [*csv.reader(io.StringIO(csv_text(table_of(words)), newline=""))]
    assert len(rows) == 3 and {len(row) for row in rows} == {2}
    for cell in (rows[1][0], rows[2][1]):
        assert cell.removeprefix("'") == escape.one_line(words).removeprefix("'")
        assert not re.match(r"[=@]|[+-]\D", cell)


@pytest.mark.slow
@pytest.mark.parametrize("words", LIVE)
def test_a_figure_shows_any_label(words, tmp_path):
    figure, axes = axes_of()
    axes.plot([1, 10], [1, 1000], label=words)
    axes.set(xlabel=words, title=words, yscale="log")
    axes.set_xticks([1, 10], labels=[words, "b"])
    legend_above(figure, axes)
    save(Plot("p", words, figure), tmp_path)
    assert (tmp_path / "p.pdf").stat().st_size
    ElementTree.parse(tmp_path / "p.svg")
    font = get_font(findfont("DejaVu Sans"))
    for sign in "\\$":  # drawn where the text has it, and not where 10^3 is a formula
        glyph = f'id="DejaVuSans-{font.get_char_index(ord(sign)):x}"'
        drawn = glyph in (tmp_path / "p.svg").read_text()
        assert drawn == (sign in words) or escape.one_line(words) != words


@pytest.mark.slow
def test_a_report_of_labels_that_are_live_everywhere(tmp_path, monkeypatch):
    """The regulariser's label, an error and a path: each ended the report or was a command in it."""
    live = "$\\frac{1}\n\\input{x}|<b>`%"
    monkeypatch.setattr(KL, "label", live)
    storage = make_sweep(tmp_path, {"regularizers": [(), (KL(),)], "members": [1, 2], "seed": [0, 1]}, [7])
    write_report(storage, "toy", tmp_path / "out", [live], allow_missing=True)
    for path in (tmp_path / "out").glob("*.tex"):
        assert "\n\\input" not in path.read_text(), path
    assert "<b>`" not in (tmp_path / "out/index.html").read_text()
    for path in Path(tmp_path / "out").glob("*.md"):
        lines = path.read_text().split("\n")
        assert not any(line.startswith("\\input") for line in lines), path


def test_labels_that_were_sound_stay_as_they_are():
    plain = "decay_b-50 0.855 ± 0.004 [-0.003, +0.027]"
    assert escape.markdown_cell(plain) == escape.markdown(plain) == plain
    assert escape.csv_cell(plain) == plain and escape.csv_cell(-1.5) == -1.5 and escape.csv_cell("-") == "-"
    assert escape.latex("[-0.003, +0.027]") == "{}[-0.003, +0.027]"
    named = replace(table_of("x"), notes=("tune with `--set seed=0,1`",))
    assert "\n- tune with `--set seed=0,1`" in markdown(named)
