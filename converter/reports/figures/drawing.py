"""A picture that matplotlib draws as inline SVG, in the colours and the font of the page, with tooltips.

matplotlib is given stand-ins for the colours. They become CSS variables, so that dark mode needs no second picture.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from ...errors import UsageError, printable

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.lines import Line2D
    from matplotlib.text import Text

WIDTH = 920.0  # of a picture as wide as the page; a unit is a pixel of the page at its full width
NEEDS = "the HTML report needs {}: pip install 'convert-pixart[report]'"

# Variables of the page's style sheet, and what stands for each while matplotlib draws.
NAMES = ("ink", "mute", "card", "grid", "series", "floor", "limit", "fail", "s1", "s2", "s3")
COLOURS = {name: f"#a1b2{i:02x}" for i, name in enumerate(NAMES)}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "convert-pixart",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 11.5,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["mute"],
    "ytick.color": COLOURS["mute"],
    "axes.labelcolor": COLOURS["mute"],
    "axes.edgecolor": COLOURS["grid"],
    "grid.color": COLOURS["grid"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.borderpad": 0,
    "legend.borderaxespad": 0,
    "legend.columnspacing": 1.4,
    "legend.handletextpad": 0.6,
}
_TAG = re.compile(r"<[^>]+>")  # no text and no attribute of matplotlib's holds a bare < or >
_COLOUR = re.compile(r"#a1b2(\w\w)")
_NAME = re.compile(r' id="[\w.]+_\d+"')  # figure_1, matplotlib.axis_2; what is referred to has a hash for an id
_DECIMALS = re.compile(r"-?\d+\.\d{3,}")
_TIP = re.compile(r'<g id="tip-(\d+)">')


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
    with style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from ")  # the reader's browser has the font
        yield


def cut(raw: object, limit: int) -> str:
    """A text from elsewhere on one line, so that it fits.

    >>> cut("block 12", 30), cut("block 12", 6)
    ('block 12', 'block…')
    """
    text = printable(raw, 400)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


class Drawing:
    """A picture in the making; `words` is what a screen reader says of it. Places are in units from the upper left.

    >>> with styled():
    ...     drawing = Drawing(100, "one dot", width=200)
    ...     dots = drawing.axes(0, 0, 200, 100).scatter([0.5], [0.5], color=COLOURS["fail"])
    ...     drawing.tip(dots, "<b> is no markup")
    ...     svg = drawing.svg()
    >>> "fill: var(--fail)" in svg, "<title>&lt;b&gt; is no markup</title>" in svg
    (True, True)
    """

    def __init__(self, height: float, words: str, width: float = WIDTH) -> None:
        from matplotlib.figure import Figure

        self.width, self.height, self.words = width, height, words
        self.figure = Figure(figsize=(width / 72, height / 72), dpi=72)  # a point is a unit
        self._tips: list[str] = []

    def place(self, x: float, y: float) -> tuple[float, float]:
        """A point as matplotlib counts: in shares from the lower left."""
        return x / self.width, 1 - y / self.height

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        x, y = self.place(left, top + height)
        axes = self.figure.add_axes((x, y, width / self.width, height / self.height))
        axes.tick_params(which="both", length=0, pad=7)
        return axes

    def tip(self, artist: Artist, words: str) -> None:
        """A tooltip for all that an artist draws."""
        artist.set_gid(f"tip-{len(self._tips)}")
        self._tips.append(printable(words, 400))

    def note(self, axes: Axes, raw: object, at: tuple[float, float], offset: tuple[float, float], **style: Any) -> None:
        """A text beside a place in the axes. Where it has to be cut, to `limit`, a tooltip shows more of it."""
        limit = style.pop("limit", 60)
        place: dict[str, Any] = {"xycoords": "data", "textcoords": "offset points"} | style
        self._explain(axes.annotate(cut(raw, limit), at, offset, **place), raw, limit)

    def names(self, axis: Axis, names: Mapping[int, str], marked: Collection[int], **style: Any) -> None:
        """Names at places of an axis, in the colour of what is wrong where they are `marked`."""
        axis.set_ticks([*names], [cut(name, 30) for name in names.values()], **style)
        for (place, name), label in zip(names.items(), axis.get_ticklabels(), strict=True):
            self._explain(label, name, 30)
            if place in marked:
                label.set(color=COLOURS["fail"], fontweight="bold")

    def legend(self, keys: Sequence[tuple[Line2D, str]], left: float) -> None:
        """One line of keys with their words, at the top."""
        handles, labels = [key for key, _ in keys], [cut(words, 60) for _, words in keys]
        length = 2.0 if any(key.get_linestyle() != "None" for key in handles) else 0.8
        style: dict[str, Any] = {"bbox_to_anchor": self.place(left, 6), "ncols": len(keys) or 1, "handlelength": length}
        legend = self.figure.legend(handles, labels, loc="upper left", **style)
        for text, (_, words) in zip(legend.get_texts(), keys, strict=True):
            self._explain(text, words, 60)

    def _explain(self, text: Text, raw: object, limit: int) -> None:
        if len(printable(raw, 400)) > limit:
            self.tip(text, str(raw))

    def svg(self) -> str:
        """The element, with nothing that is loaded from elsewhere. Its ids are hashes of what they name."""
        file = io.BytesIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        self.figure.savefig(file, format="svg", metadata=nothing, transparent=True)
        _, _, drawn = file.getvalue().decode().partition("</defs>")  # before it: the head, and a style for the document
        drawn = _TAG.sub(lambda tag: _plain(tag[0]), drawn)
        drawn = _TIP.sub(lambda tip: f"<g><title>{escape(self._tips[int(tip[1])])}</title>", drawn)
        name = escape(printable(self.words))
        return f'<svg viewBox="0 0 {self.width:g} {self.height:g}" role="img" aria-label="{name}">{drawn.strip()}'


def _plain(tag: str) -> str:
    """A tag with the page's colours, and without the names and the digits that nobody sees."""
    tag = _COLOUR.sub(lambda colour: f"var(--{NAMES[int(colour[1], 16)]})", _NAME.sub("", tag))
    return _DECIMALS.sub(lambda digits: f"{float(digits[0]):.2f}".rstrip("0").rstrip("."), tag)


def key(marker: str, colour: str, alpha: float = 1, **style: Any) -> Line2D:
    """What a legend shows of dots or bars."""
    from matplotlib.lines import Line2D

    more: dict[str, Any] = {"linestyle": "", "markeredgewidth": 0, "markersize": 8} | style
    return Line2D([], [], color=COLOURS[colour], marker=marker, alpha=alpha, **more)
