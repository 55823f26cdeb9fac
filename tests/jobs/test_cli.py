"""The command line: what a person sees who mistypes, asks for help, or has a terminal."""

from __future__ import annotations

import io
import sys

import pytest
from sweeps import make_sweep

from jobs.cli import main
from jobs.closing import MAX_LINES, next_commands, table_head
from jobs.parser import coloured


def run(*words: str) -> int:
    """Exit code, as the shell sees it."""
    try:
        return main([*words])
    except SystemExit as end:
        return int(end.code or 0)


def test_alone_it_prints_help(capsys):
    assert run() == 0
    assert "lorae sweep pipelines/demo.py" in capsys.readouterr().out


def test_the_version_names_the_commit(capsys):
    assert run("--version") == 0
    words = capsys.readouterr().out.split()
    assert words[0] == "lorae" and words[1][0].isdigit() and "(commit" in words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["swep", "x"], "'swep' is no command; did you mean sweep? there are sweep, check"),
        (["bench", "predct"], "'predct' is no command; did you mean predict?"),
        (["sweep", "x.py", "--storag", "y", "--smok"], None),  # argparse takes a beginning for the whole
        (["sweep", "x.py", "--stroage", "y"], "unrecognized arguments: --stroage y; did you mean --storage?"),
        (
            ["predict", "x", "--txet", "a"],
            "--remove is required; --txet: did you mean --text?",
        ),
        (["report", "x", "--ot", "y"], "required: --out; --ot: did you mean --out?"),
        (["table", "dmeo", "x"], "dmeo is neither a storage nor an analysis; did you mean demo?"),
        (["qqqq"], "'qqqq' is no command; there are sweep"),
    ],
)
def test_what_was_meant_is_suggested(capsys, words, message):
    assert run(*words) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err and len(err.strip().splitlines()) == 1
    assert message is None or message in err


@pytest.mark.parametrize("words", [["table", "--help"], ["table", "-h"], ["predict", "--help"], ["--help"]])
def test_help_is_no_error(capsys, words):
    assert run(*words) == 0
    assert "usage: lorae" in capsys.readouterr().out


@pytest.fixture(scope="module")
def storage(tmp_path_factory) -> str:
    return make_sweep(tmp_path_factory.mktemp("sweep"), {"members": [1, 2], "seed": [0, 1]})


@pytest.mark.slow
def test_the_only_sweep_is_meant(storage, tmp_path, capsys):
    assert run("report", storage, "--out", str(tmp_path / "report")) == 0
    assert "Sweep toy" in (tmp_path / "report/index.html").read_text()
    assert run("report", storage, "--out", str(tmp_path / "report"), "--sweep", "toi") == 2
    assert "did you mean toy?" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_ends_with_the_head_of_its_table(storage, tmp_path):
    head = table_head(storage, "toy").splitlines()
    assert head[0].startswith("| model") and "NLL" in head[0] and len(head) == 2 + 3
    assert table_head(storage, "none") == ""
    many = make_sweep(tmp_path, {"optimizer.lr": [n / 1000 for n in range(1, 12)]})
    lines = table_head(many, "toy").splitlines()
    assert len(lines) == 2 + MAX_LINES + 1 and lines[-1] == "... 4 more rows"
    assert f"lorae table {storage} --sweep toy" in next_commands(storage, "toy")


def test_colour_is_for_terminals_that_want_it(monkeypatch):
    screen = io.StringIO()
    assert coloured("x", "red", screen) == "x"
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert coloured("x", "red", screen) == "\x1b[31mx\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert coloured("x", "red", screen) == "x"
    assert "\x1b" not in next_commands("s", "t") or sys.stderr.isatty()
