"""The report in a real browser: readable at both widths in both colour schemes, and all on it works."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from browser import EMPTY_SECTIONS, LOW_CONTRAST, chromium, opened, overflow
from PIL import Image
from playwright.sync_api import Browser, Page
from sweeps import make_sweep

from jobs import cli
from lorae.regularizers import KL

pytestmark = [pytest.mark.slow, pytest.mark.process]

ROOT = Path(__file__).parents[2]
STUDY = ["results/study", "--sweep", "study-regularizers-none-kl-1-decay_b-50-members-1-2-4"]
VIEWS = [(width, scheme) for width in (1400, 420) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def report(browser, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of the report of a sweep whose texts are at hand, with many warnings."""
    root = tmp_path_factory.mktemp("toy")
    axes = {"regularizers": [(), (KL(),)], "members": [1, 2, 4], "seed": [0, 1]}
    texts = ["--task", f"{ROOT}/tests/support/toys.py:Colours", "--data-root", str(root / "data")]
    return written(root / "report", make_sweep(root, axes), *texts)


def written(out: Path, *arguments: str) -> str:
    """The address of a report that the command has written."""
    assert cli.main(["report", *arguments, "--out", str(out)]) == 0
    return (out / "index.html").as_uri()


@pytest.fixture
def wide(browser: Browser, report: str) -> Iterator[Page]:
    with opened(browser, report, 1400, "light") as page:
        yield page


@pytest.mark.parametrize("width, scheme", VIEWS)
def test_it_is_readable_at_any_width_in_any_colours(browser, report, width, scheme):
    check_readable(browser, report, width, scheme)


def test_so_is_the_committed_study(browser, tmp_path):
    address = written(tmp_path, str(ROOT / STUDY[0]), *STUDY[1:])
    for width, scheme in VIEWS:
        check_readable(browser, address, width, scheme)


def check_readable(browser: Browser, address: str, width: int, scheme: str) -> None:
    with opened(browser, address, width, scheme) as page:
        assert overflow(page) == 0
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert overflow(page) == 0 and page.evaluate(LOW_CONTRAST) == []
        assert page.evaluate(EMPTY_SECTIONS) == []
        drawn = Image.open(io.BytesIO(page.locator("figure svg").first.screenshot())).convert("L")
        paper = np.median(np.asarray(drawn))
        assert paper < 60 if scheme == "dark" else paper > 240


def test_the_contents_lead_to_every_section(wide):
    links = wide.locator("nav a").all()
    assert len(links) == wide.locator("h2[id]").count() >= 8
    for link in links:
        link.click()
        target = wide.locator(link.get_attribute("href") or "#none")
        assert target.count() == 1 and target.evaluate("head => head.getBoundingClientRect().top") < 900
        assert (target.text_content() or "").startswith(link.text_content() or "?")
        wide.evaluate("scrollTo(0, 0)")


def test_the_search_box_keeps_the_rows_that_have_its_words(wide):
    rows = wide.locator("table").first.locator("tbody tr")
    box, everything = wide.locator("input[type=search]"), rows.count()
    box.fill("KL-0.1 ensemble")
    seen = [row.text_content() or "" for row in rows.all() if row.is_visible()]
    assert 0 < len(seen) < everything and all("ensemble" in s and "kl-0.1" in s for s in seen)
    box.fill("")
    assert all(row.is_visible() for row in rows.all())


def test_a_figure_enlarges_and_shrinks_by_a_click_or_the_keyboard(wide):
    drawing = wide.locator("figure svg").first

    def width() -> float:
        return drawing.evaluate("node => node.getBoundingClientRect().width")

    small = width()
    drawing.click()
    assert width() > 2 * small and overflow(wide) == 0
    assert wide.evaluate("document.querySelector('figure.large svg').getBoundingClientRect().height") <= 900
    drawing.press("Enter")
    assert width() == small


def test_a_head_sorts_its_column(wide):
    head = wide.locator("table").first.locator("th", has_text="NLL").first
    place = head.evaluate("head => head.cellIndex")
    cells = f"table >> nth=0 >> tbody >> nth=0 >> tr >> td:nth-child({place + 1})"
    for order in (1, -1):
        head.click()
        values = [float(c.get_attribute("data-value") or "nan") for c in wide.locator(cells).all()]
        assert len(values) > 3 and values == sorted(values, key=lambda value: order * value)


def test_files_are_links_that_exist(wide):
    links = wide.eval_on_selector_all("a", "links => links.map(link => link.href)")
    files = [Path(unquote(urlsplit(link).path)) for link in links if not urlsplit(link).fragment]
    assert len(files) > 20 and all(file.is_file() and file.stat().st_size for file in files)


def test_the_summary_says_what_is_best_and_how_sure_that_is(wide):
    said = wide.locator(".summary li").all_text_contents()
    assert len(said) == 3 and "has the best NLL" in said[0] and "95%" in said[2]
    (best,) = wide.locator("table").first.locator("tbody tr", has=wide.locator("td:nth-child(5) b")).all()[:1]
    assert said[0].startswith((best.locator("td").first.text_content() or "?").strip())


def test_examples_have_their_texts_and_their_classes_names(wide):
    rows = wide.locator("#examples-worth-looking-at ~ .wide").first.locator("tbody tr").all_text_contents()
    assert len(rows) > 6 and all(re.search(r"w\d+ w\d+.*(red|green|blue)", row) for row in rows)
