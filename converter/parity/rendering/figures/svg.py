"""The few SVG elements that pictures are made of. Texts pass through `escaped`, numbers through `_spell`."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from ....errors import printable

WIDTH = 920.0  # of a picture as wide as the page, in its own units; a letter of a label is about 6 of them wide


@dataclass(frozen=True)
class Figure:
    """A picture with its words. `svg` is finished markup; the rest is plain text, escaped by the page."""

    title: str
    caption: str
    svg: str
    kind: str = "wide"  # "wide" spans the page, and scrolls where the page is narrow; "small" stands beside others


def tag(name: str, *children: str, **attributes: object) -> str:
    """An element. Children are finished markup; attributes are escaped; `class_` and `text_anchor` mean what they say.

    >>> tag("rect", x=1, width=2.5, class_="bar")
    '<rect x="1" width="2.5" class="bar"/>'
    """
    spelled = "".join(
        f' {k.rstrip("_").replace("_", "-")}="{_spell(v)}"' for k, v in attributes.items() if v is not None
    )
    inside = "".join(children)
    return f"<{name}{spelled}>{inside}</{name}>" if inside else f"<{name}{spelled}/>"


def escaped(raw: object, limit: int = 200) -> str:
    return escape(printable(raw, limit))


def label(x: float, y: float, raw: object, limit: int = 60, **attributes: object) -> str:
    """A text; one that is cut shows more of itself as a tooltip."""
    shown = str(raw)
    if len(shown) <= limit:
        return tag("text", escaped(shown), x=x, y=y, **attributes)
    return tag("text", escaped(f"{shown[: limit - 1]}…", limit), tooltip(shown), x=x, y=y, **attributes)


def tooltip(raw: object) -> str:
    return tag("title", escaped(raw, 400))


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def path(points: list[list[tuple[float, float]]], class_: str) -> str:
    """Runs of points, each a line of its own: where a number is missing the line has a gap."""
    runs = ["M" + "L".join(f"{_spell(x)} {_spell(y)}" for x, y in run) for run in points if run]
    return tag("path", d="".join(runs), class_=class_) if runs else ""


def cross(x: float, y: float, words: str, size: float = 4.5) -> str:
    """What stands for a number that is not finite."""
    d = f"M{_spell(x - size)} {_spell(y - size)}l{_spell(2 * size)} {_spell(2 * size)}m0 {_spell(-2 * size)}"
    return tag("path", tooltip(words), d=d + f"l{_spell(-2 * size)} {_spell(2 * size)}", class_="cross")


def legend(x: float, y: float, entries: list[tuple[str, str]]) -> str:
    """(markup of a key drawn within 22 units right of the origin, words) one after the other."""
    parts = []
    for key, words in entries:
        parts.append(tag("g", key, label(28, 4, words), transform=f"translate({_spell(x)} {_spell(y)})"))
        x += 28 + 6.6 * len(words) + 22
    return "".join(parts)


def picture(width: float, height: float, words: str, *parts: str) -> str:
    """The element around it all. `words` is what a screen reader says."""
    return tag(
        "svg",
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_spell(width)} {_spell(height)}",
        role="img",
        aria_label=printable(words),
    )


def _spell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".") or "0"
    return escape(str(value))
