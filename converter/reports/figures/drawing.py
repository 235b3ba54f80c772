"""A picture that matplotlib lays out, as inline SVG: its colours are the page's, and its texts go in afterwards.

matplotlib knows only stand-ins for both. The colours become CSS variables, so that dark mode needs no second set of
pictures; a name may be in any script, needs no font here, and is never read as mathematics.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, floor, log10, nan
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from ...errors import UsageError, printable
from ..numbers import broken, positive, power

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.lines import Line2D

WIDTH = 920.0  # of a picture as wide as the page; a unit is a pixel of the page at its full width
NEEDS = "the HTML report needs {}: pip install 'convert-pixart[report]'"

# Variables of the page's style sheet, and what stands for each while matplotlib draws.
NAMES = ("ink", "mute", "card", "grid", "series", "floor", "limit", "fail", "s1", "s2", "s3")
COLOURS = {name: f"#a1b2{i:02x}" for i, name in enumerate(NAMES)}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "convert-pixart",
    "font.family": "DejaVu Sans",
    "font.size": 11.5,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["mute"],
    "ytick.color": COLOURS["mute"],
    "axes.edgecolor": COLOURS["grid"],
    "grid.color": COLOURS["grid"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.borderpad": 0,
    "legend.borderaxespad": 0,
    "legend.columnspacing": 1.4,
    "legend.handletextpad": 0.6,
}
_DECIMALS = re.compile(r"-?\d+\.\d{3,}")
_FONT = re.compile(r"font: (?:(\w+) )?([\d.]+px) [^;]*")  # in one, or, since matplotlib 3.11, one by one
_FAMILY = re.compile(r"font-family: [^;]*(?:; )?")


@dataclass(frozen=True)
class Figure:
    """A picture with its words. `svg` is finished markup; the rest is plain text, escaped by the page."""

    title: str
    caption: str
    svg: str
    kind: str = "wide"  # "wide" spans the page, and scrolls where the page is narrow; "small" stands beside others


@contextmanager
def styled() -> Iterator[None]:
    """Pictures are drawn inside, whatever a user's `matplotlibrc` says.

    Raises: `UsageError` without matplotlib, which is an extra.
    """
    log = logging.getLogger("matplotlib")
    if log.level == logging.NOTSET:
        log.setLevel(logging.ERROR)  # it tells of its caches, and of a home that cannot be written
    try:
        from matplotlib import style
    except ImportError as error:
        raise UsageError(NEEDS.format("matplotlib")) from error
    with style.context(["default", STYLE]):
        yield


class Drawing:
    """A picture in the making; `words` is what a screen reader says of it.

    >>> with styled():
    ...     drawing = Drawing(100, "one dot", width=200)
    ...     dots = drawing.axes(0, 0, 200, 100).scatter([0.5], [0.5], color=COLOURS["fail"])
    ...     drawing.tooltips(dots, ["<b> is no markup"])
    ...     svg = drawing.svg()
    >>> "fill: var(--fail)" in svg, "<title>&lt;b&gt; is no markup</title>" in svg
    (True, True)
    """

    def __init__(self, height: float, words: str, width: float = WIDTH) -> None:
        from matplotlib.figure import Figure

        self.width, self.height, self.words = width, height, words
        self.figure = Figure(figsize=(width / 72, height / 72), dpi=72)  # a point is a unit
        self.figure.patch.set_visible(False)
        self._texts: dict[str, tuple[str, int]] = {}
        self._tooltips: dict[str, list[str]] = {}

    def place(self, x: float, y: float) -> tuple[float, float]:
        """A point in units from the upper left corner, as matplotlib counts: in shares from the lower left."""
        return x / self.width, 1 - y / self.height

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes in that rectangle, in units from the upper left corner."""
        x, y = self.place(left, top + height)
        axes = self.figure.add_axes((x, y, width / self.width, height / self.height))
        axes.patch.set_visible(False)
        axes.spines[["top", "left", "right"]].set_visible(False)
        axes.tick_params(which="both", length=0, pad=7)
        return axes

    def text(self, raw: object, limit: int = 60) -> str:
        """What matplotlib is given in place of a text, about as wide. One that is cut shows more as a tooltip."""
        stand_in = f"t{len(self._texts)}x"
        stand_in += "x" * (min(len(str(raw)), limit) - len(stand_in))
        self._texts[stand_in] = (str(raw), limit)
        return stand_in

    def tooltips(self, artist: Artist, words: Iterable[str]) -> None:
        """A tooltip for each of the shapes that an artist draws, in their order."""
        name = f"tooltips-{len(self._tooltips)}"
        artist.set_gid(name)
        self._tooltips[name] = list(words)

    def targets(self, axes: Axes, words: Sequence[str]) -> None:
        """A tooltip for each place on the x axis, as tall as the axes, that a pointer can hit."""
        low, high = axes.get_ylim()
        wide = 12 / axes.bbox.width * len(words)
        bars = axes.bar(range(len(words)), high - low, wide, low, color=COLOURS["card"], alpha=0.001, zorder=5)
        for bar, raw in zip(bars, words, strict=True):
            self.tooltips(bar, [raw])

    def names(self, axis: Axis, names: Mapping[int, str], marked: Collection[int], **style: Any) -> None:
        """Names at places of an axis, in the colour of what is wrong where they are `marked`."""
        axis.set_ticks([*names], [self.text(name, 30) for name in names.values()], **style)
        for place, label in zip(names, axis.get_ticklabels(), strict=True):
            if place in marked:
                label.set(color=COLOURS["fail"], fontweight="bold")

    def legend(self, keys: Iterable[tuple[Line2D, str]], left: float) -> None:
        """One line of keys with their words, at the top."""
        named = {self.text(words): key for key, words in keys}
        wide = 2.0 if any(key.get_linestyle() != "None" for key in named.values()) else 0.8
        style: dict[str, Any] = {"bbox_to_anchor": self.place(left, 6), "ncols": len(named) or 1, "handlelength": wide}
        self.figure.legend([*named.values()], [*named], loc="upper left", **style)

    def svg(self) -> str:
        """The element, without an id, a date, or anything that is loaded from elsewhere."""
        file = io.BytesIO()
        about = {"Creator": None, "Date": None, "Format": None, "Type": None}
        self.figure.savefig(file, format="svg", metadata=about, transparent=True)
        root = ET.fromstring(file.getvalue())
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
        markers = {f"#{marker.get('id')}": marker for defs in root.iter("defs") for marker in defs}
        self._clean(root, markers)
        size = {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {self.width:g} {self.height:g}"}
        root.attrib = size | {"role": "img", "aria-label": printable(self.words)}
        return ET.tostring(root, encoding="unicode")

    def _clean(self, element: ET.Element, markers: dict[str, ET.Element]) -> None:
        """Bottom up, so that an element whose children have all gone goes too."""
        for child in list(element):
            self._clean(child, markers)
            nothing = (child.tag == "g" and not len(child)) or (child.tag == "path" and "d" not in child.attrib)
            if nothing or child.tag in ("defs", "style", "metadata"):
                element.remove(child)
            child.tail = None
        if element.tag == "use":
            _place(element, markers)
        if words := self._tooltips.get(element.attrib.pop("id", "")):
            shapes = [shape for shape in element.iter() if shape.tag in ("path", "circle", "image")]
            for shape, raw in zip(shapes, words, strict=True):
                ET.SubElement(shape, "title").text = printable(raw, 400)
        if element.tag == "text" and element.text in self._texts:
            raw, limit = self._texts[element.text]
            element.text = printable(raw if len(raw) <= limit else f"{raw[: limit - 1]}…", limit + 20)
            if len(raw) > limit:
                ET.SubElement(element, "title").text = printable(raw, 400)
        elif element.tag != "title":
            element.text = (element.text or "").strip() or None
        element.attrib = {
            name.rpartition("}")[2]: _plain(value)
            for name, value in element.attrib.items()
            if name != "clip-path" and value
        }


def log_axis(axes: Axes, which: str, low: float, high: float) -> None:
    """A logarithmic scale for `which`, "x" or "y": lines at powers of ten, at 2 and 5 too where there are few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    axis, room = (axes.xaxis, axes.bbox.width / 44) if which == "x" else (axes.yaxis, axes.bbox.height / 22)
    axis.set_major_locator(LogLocator(numticks=max(2, int(room))))
    axis.set_major_formatter(FuncFormatter(lambda value, _: power(round(log10(value)))))
    axis.set_minor_locator(LogLocator(subs=(2, 5)) if high <= 2000 * low else NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.grid(True, which="minor", linestyle=(0, (1, 4)))


def log_range(values: Iterable[object], margin: float = 1.4) -> tuple[float, float] | None:
    """Whole decades around the positive numbers of many values; None without any.

    >>> log_range([5.1e-07, None, float("nan"), 0.0, 1.3e-06])
    (1e-07, 1e-05)
    """
    placed = [value for raw in values if (value := positive(raw)) is not None]
    if not placed:
        return None
    low = max(floor(log10(max(min(placed) / margin, 1e-300))), -300)
    high = min(max(ceil(log10(min(max(placed), 1e300) * margin)), low + 1), 300)
    return 10.0**low, 10.0**high


def placed(values: Iterable[float | None], low: float, high: float) -> list[float]:
    """Numbers on a scale: what lies outside is drawn at its edge, what is none or not finite is left out."""
    return [nan if value is None or broken(value) else min(max(value, low), high) for value in values]


def key(marker: str, colour: str, alpha: float = 1, **style: Any) -> Line2D:
    """What a legend shows of dots, bars, or of a line."""
    from matplotlib.lines import Line2D

    more: dict[str, Any] = {"linestyle": "", "markeredgewidth": 0, "markersize": 8} | style
    return Line2D([], [], color=COLOURS[colour], marker=marker, alpha=alpha, **more)


def _place(use: ET.Element, markers: dict[str, ET.Element]) -> None:
    """A marker where it is used, in place of a reference by an id, which would have to be unique in a page."""
    marker = markers[use.attrib.pop("{http://www.w3.org/1999/xlink}href")]
    x, y, d = use.get("x", "0"), use.get("y", "0"), marker.attrib["d"]
    style = use.get("style") or marker.get("style") or ""
    if "C" in d:  # of curves there is only the circle, which begins at its lowest point
        use.tag, use.attrib = "circle", {"style": style, "cx": x, "cy": y, "r": d.split()[2]}
    else:
        use.tag, use.attrib = "path", {"style": style, "d": d, "transform": f"translate({x} {y})"}


def _plain(value: str) -> str:
    """An attribute with the page's colours and font, and without the digits that nobody sees."""
    if value.startswith("data:"):
        return "".join(value.split())
    for name, colour in COLOURS.items():
        value = value.replace(colour, f"var(--{name})")
    value = _FONT.sub(lambda font: f"font-size: {font[2]}" + (f"; font-weight: {font[1]}" if font[1] else ""), value)
    value = _FAMILY.sub("", value)
    value = _DECIMALS.sub(lambda digits: f"{float(digits[0]):.2f}".rstrip("0").rstrip("."), value)
    return " ".join(value.split())
