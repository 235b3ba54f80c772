"""An HTML page as a test reads it."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "br", "img", "link", "hr", "input"}


class Page(HTMLParser):
    """Elements with attributes, the visible text, and whether every element was closed where it should be."""

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.comments: list[str] = []
        self.tooltips: list[tuple[str, str]] = []  # what a group of a picture says, and the styles in it
        self.tipped = 0  # how deep the group is
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if self.tipped:
            words, styles = self.tooltips[-1]
            self.tooltips[-1] = words, f"{styles} {dict(attrs).get('style') or ''}"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
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
