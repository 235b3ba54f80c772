"""An HTML page as a test reads it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "br", "img", "link", "hr", "input"}
LINE_ENDS = re.compile(r'<wbr>|<span class="whole">(.*?)</span>')  # where a line may end in a word, and may not


class Page(HTMLParser):
    """Elements with attributes, the visible text, and whether every element was closed where it should be."""

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.scrolling = 0  # how deep the innermost box is that scrolls
        self.loose: list[str] = []  # tables and pictures outside of one
        self.words: list[str] = []
        self.comments: list[str] = []
        self.tooltips: list[tuple[str, str]] = []  # what a group of a picture says, and the styles in it
        self.tipped = 0  # how deep the group is
        self.feed(LINE_ENDS.sub(r"\1", content))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)
        if ("class", "scroll") in attrs:
            self.scrolling = len(self.open)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("table", "svg") and not self.scrolling:
            self.loose.append(tag)
        if self.tipped:
            words, styles = self.tooltips[-1]
            self.tooltips[-1] = words, f"{styles} {dict(attrs).get('style') or ''}"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if len(self.open) < self.scrolling:
            self.scrolling = 0
        if len(self.open) < self.tipped:
            self.tipped = 0

    def handle_data(self, data: str) -> None:
        if "svg" in self.open and self.open[-1] == "title":
            self.tooltips.append((data, ""))
            self.tipped = len(self.open) - 1
        elif "style" not in self.open:
            self.words.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def count(self, tag: str, class_: str = "") -> int:
        return sum(t == tag and class_ in ["", *(a.get("class") or "").split()] for t, a in self.elements)
