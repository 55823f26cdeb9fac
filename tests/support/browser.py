"""A page in the system's Chromium, and what its source does not tell: contrast, width, empty sections."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# Every text whose contrast with what is behind it is below WCAG's 4.5 : 1 (level AA), as "ratio: text"
LOW_CONTRAST = """() => {
  const channels = colour => (colour.match(/[\\d.]+/g) || []).map(Number);
  const light = colour => {
    const linear = c => (c /= 255) <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
    const [r, g, b] = channels(colour).map(linear);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = node => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor, alpha = channels(colour)[3];
      if (alpha === undefined || alpha === 1) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const texts = [...document.body.querySelectorAll("*:not(svg *, script, style)")].filter(node =>
    node.checkVisibility({visibilityProperty: true}) &&
    [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim()));
  return texts.flatMap(node => {
    const [x, y] = [light(getComputedStyle(node).color), light(behind(node))].sort((a, b) => b - a);
    const ratio = (x + .05) / (y + .05);
    return ratio < 4.5 ? [`${ratio.toFixed(1)}: ${node.textContent.slice(0, 40)}`] : [];
  });
}"""

# Headings with neither a table's row, a figure, a list nor a text before the next heading
EMPTY_SECTIONS = """() => [...document.querySelectorAll("h2")].filter(head => {
  for (let node = head.nextElementSibling; node && node.tagName !== "H2"; node = node.nextElementSibling)
    if (node.matches("p, dl") ? node.textContent.trim() : node.querySelector("tbody tr, figure svg path"))
      return false;
  return true;
}).map(head => head.textContent)"""


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """The browser; the test is skipped where none is installed."""
    if CHROMIUM is None:
        pytest.skip("no Chromium; install Debian's package chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser: Browser, address: str, width: int, scheme: str) -> Iterator[Page]:
    """A page as wide as `width` pixels; that it made no error is asserted when it closes."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # pyright: ignore
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if said.type in ("error", "warning") else None)
    page.goto(address)
    yield page
    assert errors == []
    page.close()


def overflow(page: Page) -> int:
    """Pixels by which the page is wider than its window."""
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
