"""A picture that matplotlib (an extra) draws as inline SVG, in the colours and the font of the page, with tooltips.

matplotlib is given stand-ins for the colours. They become CSS variables, so that dark mode needs no second picture.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from math import nan
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, printable
from .numbers import broken, show

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Tick
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

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
    "axes.edgecolor": COLOURS["grid"],
    "grid.color": COLOURS["grid"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelpad": 8,
    "figure.constrained_layout.h_pad": 0.12,
    "legend.frameon": False,
    "legend.columnspacing": 1.4,
    "legend.handletextpad": 0.6,
    **{f"axes.spines.{side}": False for side in ("top", "left", "right")},
    **dict.fromkeys(("xtick.color", "ytick.color", "axes.labelcolor"), COLOURS["mute"]),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 0),
    **dict.fromkeys(("xtick.major.pad", "ytick.major.pad"), 7),
}
_TIP = re.compile(r"""<g id=(["'])tip:(.*?)\1>""")
_TAG = re.compile(r"<[^>]+>")  # no text and no attribute of matplotlib's holds a bare < or >
_COLOUR = re.compile(r"#a1b2(\w\w)")
_NAME = re.compile(r' id="[\w.]+_\d+"')  # figure_1, matplotlib.axis_2; what is referred to has a hash for an id
_DECIMALS = re.compile(r"-?\d+\.\d{3,}")


@dataclass(frozen=True)
class Picture:
    """A picture with its words. `svg` is finished markup; the rest is plain text, escaped by the page."""

    title: str
    caption: str
    svg: str
    kind: str = "wide"  # "wide" spans the page, and scrolls where the page is narrow; "small" stands beside others

    @classmethod
    def of(cls, figure: Figure, title: str, caption: str, kind: str = "wide") -> Picture:
        """With nothing that is loaded from elsewhere; ids are hashes of what they name.

        >>> with styled():
        ...     figure = canvas(100, width=200)
        ...     tip(figure.subplots().scatter([0.5], [0.5], color=COLOURS["fail"]), '"<b>" is no markup')
        ...     svg = Picture.of(figure, "one dot", "").svg
        >>> "fill: var(--fail)" in svg, '<title>"&lt;b&gt;" is no markup</title>' in svg
        (True, True)
        """
        file = io.BytesIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=nothing, transparent=True)
        _, _, drawn = file.getvalue().decode().partition("</defs>")  # before it: the head, and a style for the document
        drawn = _TAG.sub(lambda tag: _plain(tag[0]), _TIP.sub(r"<g><title>\2</title>", drawn))
        box = f"0 0 {figure.bbox.width:g} {figure.bbox.height:g}"
        svg = f'<svg viewBox="{box}" role="img" aria-label="{escape(printable(title))}">{drawn.strip()}'
        return cls(title, caption, svg, kind)


def _plain(tag: str) -> str:
    """A tag with the page's colours, and without the names and the digits that nobody sees."""
    tag = _COLOUR.sub(lambda colour: f"var(--{NAMES[int(colour[1], 16)]})", _NAME.sub("", tag))
    return _DECIMALS.sub(lambda digits: f"{float(digits[0]):.2f}".rstrip("0").rstrip("."), tag)


@contextmanager
def styled() -> Iterator[None]:
    """Pictures are drawn inside, whatever a user's `matplotlibrc` says.

    Raises: `UsageError` without matplotlib.
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
    """A text from elsewhere on one line, so that it fits."""
    text = printable(raw, 400)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def where(about: dict[str, Any]) -> str:
    """The case that a picture is of."""
    return f"Case {about['case']}, {about.get('precision', '')}. " if about.get("case") else ""


def canvas(height: float, width: float = WIDTH) -> Figure:
    """A figure of that size in units."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 72, height / 72), dpi=72, layout="compressed")  # a point is a unit


def tip(artist: Artist, words: str) -> None:
    """A tooltip for all that an artist draws."""
    artist.set_gid(f"tip:{printable(words, 400)}")


def legend(figure: Figure, keys: dict[str, Line2D]) -> None:
    """One line of keys with their words, at the top."""
    length = 2.0 if any(line.get_linestyle() != "None" for line in keys.values()) else 0.8
    place: dict[str, Any] = {"loc": "outside upper left", "ncols": len(keys), "handlelength": length}
    figure.legend(keys.values(), [cut(words, 60) for words in keys], **place)


def key(marker: str, colour: str, alpha: float = 1, **style: Any) -> Line2D:
    """What a legend shows of dots or bars."""
    from matplotlib.lines import Line2D

    more: dict[str, Any] = {"linestyle": "", "markeredgewidth": 0, "markersize": 8} | style
    return Line2D([], [], color=colour, marker=marker, alpha=alpha, **more)


def mark(ticks: Iterable[Tick], wrong: Iterable[bool]) -> None:
    """Names of what is wrong in the colour for it."""
    for tick, is_wrong in zip(ticks, wrong, strict=True):
        if is_wrong:
            tick.label1.set(color=COLOURS["fail"], fontweight="bold")


def log_axis(axes: Axes, which: str, low: float, high: float) -> None:
    """A logarithmic scale for `which`, "x" or "y"."""
    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    getattr(axes, f"{which}axis").set_major_formatter(lambda value, _: show(value))
    axes.minorticks_off()


def placed(values: Iterable[float | None], low: float, high: float) -> list[float]:
    """Numbers on a scale: what lies outside is drawn at its edge, what is none or not finite is left out."""
    return [nan if value is None or broken(value) else min(max(value, low), high) for value in values]
