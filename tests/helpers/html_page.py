"""Parse an HTML page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path


class Page(HTMLParser):
    """Tags, attributes and visible text; requires properly nested tags."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)
        assert not self.open, f"never closed: {self.open}"

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> in line {self.getpos()[0]} closes something else"

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def classes(self, name: str) -> int:
        return sum(name in (attrs.get("class") or "").split() for _, attrs in self.tags)

    def require_self_contained(self) -> None:
        """Require that nothing is loaded from elsewhere and no script is run."""
        without_pictures = re.sub(r"data:image/(?:jpeg|png);base64,[\w+/=]+", "", self.html)
        assert not re.search(r"https?:|//\w|@import|url\((?!#)|<script", without_pictures)
        assert "default-src 'none'" in self.html
        for tag, attrs in self.tags:
            assert not any(name.startswith("on") for name in attrs), tag
            for name in ("src", "href", "srcset", "poster", "data", "action"):
                assert attrs.get(name) is None or attrs[name].startswith(("data:", "#")), (tag, attrs)
