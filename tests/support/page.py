"""A page of HTML as a browser would read it."""

from __future__ import annotations

import html.parser
import json

VOID = ("meta", "br", "input", "link")  # have no end


class Page(html.parser.HTMLParser):
    """Tags that are open, the cells of each table, and every address that a tag refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        given = dict(attrs)
        self.addresses += [given[a] for a in ("src", "href", "xlink:href", "action") if a in given]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag == "td":
            self.tables[-1][-1].append(json.loads(given["data-value"]))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
