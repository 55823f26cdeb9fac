"""The documents as readers meet them: a site that needs no network, and the tutorial as a notebook."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tutorials import blocks, with_backbone

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs/tutorial.ipynb"

pytestmark = [pytest.mark.process, pytest.mark.slow]


class Fetched(HTMLParser):
    """What a page makes a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.addresses.append(said.get("src") or "")
        if tag == "link" and said.get("rel") in ("stylesheet", "preload", "preconnect", "icon"):
            self.addresses.append(said.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    words = ["-m", "mkdocs", "build", "--strict", "--config-file", ROOT / ".mkdocs.yml", "--site-dir", folder]
    done = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, cwd=ROOT, env=os.environ
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_every_document_is_a_page_in_the_contents(site):
    beside = ["CONTRIBUTING.md", "RESULTS.md", "CHANGELOG.md"]
    expected = {"index.html", *(Path(name).stem + ".html" for name in beside)}
    expected |= {f"{path.stem}.html" for path in ROOT.glob("docs/*.md")}
    assert expected <= {path.name for path in site.glob("*.html")}
    contents = (site / "index.html").read_text()
    for name in expected - {"index.html"}:
        assert f'href="{name}"' in contents, name


def test_no_page_fetches_anything_from_elsewhere(site):
    for path in site.glob("*.html"):
        page = Fetched()
        page.feed(path.read_text())
        assert page.addresses
        for address in page.addresses:
            assert not re.match(r"(https?:)?//", address), f"{path.name} fetches {address}"


def test_the_reference_has_signatures_and_what_arguments_mean(site):
    text = re.sub(r"<[^>]+>", "", (site / "reference.html").read_text())
    for words in ("Run a sweep, or what remains of it", "train in this process, one stack after another"):
        assert words in text
    for name in ("data_root", "allow_missing", "coverage", "member_probabilities", "b_std", "max_tokens"):
        assert name in text


def test_the_notebook_is_the_tutorial_and_runs(backbones, tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in cells)
    page = blocks("tutorial.md")
    two_seeds = page["tickets.py"].replace("[1, 3]}", '[1, 3], "seed": [0, 1]}')
    assert [cell.source for cell in cells[:2]] == [page["make_tickets.py"].strip(), two_seeds.strip()]
    cells[1].source = with_backbone(cells[1].source, f"Files({backbones['bert'].path!r})")
    cells[0].source = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{cells[0].source}"
    NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [out.data for cell in cells for out in cell.outputs if "data" in out]
    table, frame, figures, answers, ensemble = shown
    assert "LoRA ensemble of 3" in table["text/html"] and "ensemble_nll" in frame["text/html"]
    assert "<svg" in figures["text/html"] and "conformal_set" in answers["text/html"]
    assert ensemble["text/plain"].startswith("<ensemble of ")
