"""The documents are true where a machine can tell: links lead somewhere, code runs, commands exist."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import lorae
import lorae.tasks
from jobs.cli import _parser as parser

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "RESULTS.md", *ROOT.glob("docs/*.md")]
NAMES = {path.name: path for path in DOCUMENTS}


def blocks(path: Path, language: str) -> Iterator[str]:
    """Fenced code of a document."""
    yield from re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files_and_headings(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", NAMES[name].read_text()):
        if re.match(r"https?://", target):
            continue
        file, _, heading = target.partition("#")
        path = NAMES[name].parent / file if file else NAMES[name]
        assert path.exists(), f"{name} links to {target}"
        headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE) if heading else []
        anchors = [re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings]
        assert not heading or heading in anchors, f"{name} links to {target}; there are {anchors}"


@pytest.mark.parametrize("name", NAMES)
def test_files_that_are_named_exist(name):
    if name == "measurements.md":
        pytest.skip("what it names existed when it was measured")
    folders = "lorae|jobs|analysis|tests|pipelines|docs"
    for path in re.findall(rf"`((?:{folders})/[\w/]+\.\w+)`", NAMES[name].read_text()):
        assert (ROOT / path).exists(), f"{name} names {path}"


def test_every_promise_names_tests_that_exist():
    page = (ROOT / "docs/promises.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page)
    assert len(named) > 20
    for file, test in named:
        assert not test or f"\ndef {test}(" in (ROOT / file).read_text(), f"{file}::{test}"


@pytest.mark.parametrize("name", ["README.md", "sweeps.md", "free_text.md"])
def test_python_runs_as_a_sweep_file(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "sweep_file", ModuleType("sweep_file"))  # where its classes are
    exported = [(module, n) for module in (lorae, lorae.tasks) for n in dir(module) if n[0] != "_"]
    names = {n: getattr(module, n) for module, n in exported} | {"__name__": "sweep_file"}
    found = list(blocks(NAMES[name], "python"))
    assert found
    for code in found:
        exec(code, names)
    if sweep := names.get("SWEEP"):
        assert sweep.trials()


@pytest.mark.parametrize("name", NAMES)
def test_commands_exist(name):
    for block in blocks(NAMES[name], "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["lorae"] and "..." not in words:
                parser().parse_args(words[1:])
            elif words[:3] == ["python", "-m", "pytest"] or words[:2] == ["python", "-m"]:
                assert (ROOT / f"{words[2].replace('.', '/')}.py").exists(), line
            elif words[:1] == ["make"]:
                assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
