"""A report's page as a test reads it."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

LOADS = ("src", "href", "srcset", "action", "data", "poster", "background")


class Page(HTMLParser):
    """A page's text, the values of attributes that load or link, its headings, and its images."""

    def __init__(self, path: Path):
        super().__init__()
        self.source, self.links, self.headings, self.alts, self._texts, self._open = (
            path.read_text(),
            [],
            [],
            [],
            [],
            [],
        )
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.links += [given[name] for name in LOADS if name in given]
        self.alts += [given["alt"]] if tag == "img" else []
        self._open = [*self._open, tag] if tag in ("script", "style", "h1", "h2", "h3", "h4") else self._open
        self.headings += [""] if tag in ("h1", "h2", "h3", "h4") else []

    def handle_endtag(self, tag):
        self._open = self._open[:-1] if self._open[-1:] == [tag] else self._open

    def handle_data(self, data):
        if self._open[-1:] not in (["script"], ["style"]):
            self._texts.append(data)
        if self._open[-1:] and self._open[-1].startswith("h"):
            self.headings[-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self._texts).split())

    @property
    def data(self) -> dict:
        return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', self.source)[1])
