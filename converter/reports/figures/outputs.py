"""How far the outputs of every case are from their limits, and where in the output the two nets differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

from ..facts import floor_limit, margin, precision_of
from ..numbers import broken, number, sequence, show
from ..report import Check, Phase
from .drawing import COLOURS, WIDTH, Drawing, Figure, cut, key, log_axis, mark, placed
from .stages import where

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize

ROWS = 60  # of more cases those that use most of their limits are drawn
SERIES = (("o", "series"), ("D", "s1"), ("s", "s2"), ("^", "s3"), ("|", "mute"))  # a marker and a colour per statistic
AGAINST = " against "  # the original in the same precision, and not the truth
MOST = 64  # channels
BROKEN = "#e6007e"


def margins(phase: Phase) -> Iterator[Figure]:
    """How much of its limit every case uses up, a dot per statistic: one panel per precision side by side."""
    used: dict[str, float] = {}
    checks = [(share, check) for check in phase.gates if (share := margin(check)) is not None]
    for share, check in checks:
        used[check.what] = max(used.get(check.what, 0.0), share)
    if not used:
        return
    most = {what for what in sorted(used, key=lambda what: -used[what])[:ROWS]}
    more = f" The {ROWS} that use most of their limits; {len(used) - ROWS} more are in the table."
    caption = "A dot per statistic of every case and part of the output; left of the line passes."
    svg = _margins([pair for pair in checks if pair[1].what in most], floor_limit(phase))
    yield Figure("Distance from the limit", caption + (more if len(used) > ROWS else ""), svg)


def _margins(checks: Sequence[tuple[float, Check]], floors: float) -> str:
    rows = list(dict.fromkeys(check.what for _, check in checks))
    statistics = list(dict.fromkeys(_statistic(check) for _, check in checks))
    precisions = sorted({precision_of(check)[0] for _, check in checks}, key=lambda name: (name != "float32", name))[:3]
    failed = {check.what for _, check in checks if check.failed}
    drawing = Drawing(100 + 20 * len(rows), "how much of its limit every case uses")
    panels = drawing.figure.subplots(1, len(precisions), sharey=True, squeeze=False)[0]
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    mark(panels[0].set_yticks(range(len(rows)), [cut(what, 30) for what in rows]), [what in failed for what in rows])
    for axes, precision in zip(panels, precisions, strict=True):
        unit, counted = (floors, "noise floor") if precision == "float32" else (1.0, "limit")
        ratios = [(share * unit, check) for share, check in checks if precision_of(check)[0] == precision]
        low, high = _scale(axes, [ratio for ratio, _ in ratios], unit)
        axes.axvspan(low, unit, color=COLOURS["series"], alpha=0.07, linewidth=0)  # what passes
        axes.axvline(unit, color=COLOURS["limit"])
        axes.set_title(cut(f"{precision}: times the {counted}", 60), size=12, weight="bold", loc="left", pad=21)
        top: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "center"}
        axes.annotate(f"limit {show(unit)}", (unit, 1), (0, 6), color=COLOURS["limit"], **top)
        for ratio, check in ratios:
            series = min(statistics.index(_statistic(check)), len(SERIES) - 1)
            marker, colour = ("x", "fail") if broken(ratio) else SERIES[series]
            (dot,) = axes.plot(
                high if broken(ratio) else min(max(ratio, low), high),
                rows.index(check.what),
                marker=marker,
                color=COLOURS["fail" if check.failed else colour],
                alpha=0.4 if AGAINST in check.statistic and marker != "x" else 1,
                markersize=8 if marker == "o" else 6.5,
                markeredgewidth=2.2 if marker in "x|" else 0,
                zorder=4 - series / 10,  # what people know is on top
                clip_on=False,
            )
            drawing.tip(dot, f"{check.what}, {check.statistic}: {check.words}")
    finite = {_statistic(check) for share, check in checks if not broken(share)}
    dots = [key(marker, COLOURS[colour]) for marker, colour in SERIES]
    keys = [(dot, name) for dot, name in zip(dots, statistics, strict=False) if name in finite]
    if any(AGAINST in check.statistic for _, check in checks):
        keys.append((key("o", COLOURS["series"], 0.4), "faint: against the original's float32 output"))
    if keys:
        drawing.legend(keys)
    return drawing.svg()


def _scale(axes: Axes, ratios: Sequence[float], unit: float) -> tuple[float, float]:
    """Linear from zero while all is well; logarithmic as soon as something lies far beyond the limit."""
    from matplotlib.ticker import MaxNLocator

    finite = [ratio for ratio in ratios if not broken(ratio)]
    high = max([*finite, unit])
    if high <= 2.5 * unit:
        low, high = 0.0, max(high * 1.08, unit * 1.2)
        axes.set_xlim(low, high)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        low, high = max(min([r for r in finite if r > 0] + [unit]) / 2, unit * 1e-3), min(high, 1e300) * 1.5
        log_axis(axes, "x", low, high)
    return low, high


def _statistic(check: Check) -> str:
    return precision_of(check)[1].partition(AGAINST)[0]


def heat(about: dict[str, Any]) -> Iterator[Figure]:
    """A small map of |difference| per channel, all in the same colours."""
    rows, columns = number(about.get("rows")), number(about.get("columns"))
    if not rows or not columns or broken(rows) or broken(columns) or rows < 0:
        return
    maps = [placed(map(number, sequence(channel)), 0, 1e300) for channel in sequence(about.get("values"))[:MOST]]
    if not maps or any(len(channel) != int(rows) * int(columns) for channel in maps):
        return
    names = [str(name) for name in sequence(about.get("channels"))[: len(maps)]]
    names += [f"channel {i}" for i in range(len(names), len(maps))]
    unit, scale = str(about.get("unit") or "|difference|"), _colour_scale(maps)
    kind = "linear" if scale.vmin == 0 else "log"
    caption = f"{unit}, one {kind} colour scale for all channels. Evenly spread is noise; a pattern is a fault."
    svg = _maps(list(zip(names, maps, strict=True)), int(columns), scale, unit)
    yield Figure("Where the outputs differ", where(about) + caption, svg)


def _colour_scale(maps: list[list[float]]) -> Normalize:
    """Linear for noise, of which all is alike; logarithmic where some of it is far larger than the rest."""
    from matplotlib.colors import LogNorm, Normalize

    values = sorted(value for channel in maps for value in channel if value > 0)
    if not values or values[-1] <= 20 * values[len(values) // 2]:
        return Normalize(0, values[-1] if values else 1, clip=True)
    high = values[-1]
    # A quantile, lest a few exact hits stretch the scale over decades in which there is nothing to see.
    return LogNorm(min(max(values[len(values) // 50], high / 1e6), high / 10), high, clip=True)


def _maps(maps: Sequence[tuple[str, list[float]]], columns: int, scale: Normalize, unit: str) -> str:
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.ticker import MaxNLocator

    rows = len(maps[0][1]) // columns
    across = min(len(maps), 4 if len(maps) <= 8 or columns > 2 * rows else 8)
    down, cell = ceil(len(maps) / across), min(WIDTH / across / columns, 212 / columns, 240 / rows)
    drawing = Drawing(80 + down * (cell * rows + 30), "difference of the outputs, channel by channel")
    panels = drawing.figure.subplots(down, across, squeeze=False)
    colours = colormaps["viridis"].with_extremes(bad=BROKEN)
    for axes, (name, values) in zip(panels.flat, maps, strict=False):
        axes.imshow(np.reshape(values, (rows, columns)), norm=scale, cmap=colours)
        axes.set_title(cut(name, max(8, int(cell * columns / 6.6))), color=COLOURS["mute"], size=11.5, loc="left")
        finite = [value for value in values if value == value]
        lost = f", {len(values) - len(finite)} not finite" if len(finite) < len(values) else ""
        drawing.tip(axes, f"{name}: at most {show(max(finite, default=None))}{lost}")
    for axes in panels.flat:
        axes.set_axis_off()
    shades: dict[str, Any] = {"location": "top", "shrink": 0.4, "aspect": 25, "label": cut(unit, 60)}
    bar = drawing.figure.colorbar(ScalarMappable(scale, colours), ax=panels, **shades)
    bar.ax.xaxis.set_major_formatter(lambda value, _: show(value))
    if scale.vmin == 0:
        bar.locator = MaxNLocator(4)
    for shade in bar.ax.collections:
        shade.set_rasterized(True)  # not one element for each
    bar.outline.set_visible(False)
    bar.minorticks_off()
    if count := sum(value != value for _, values in maps for value in values):
        drawing.legend([(key("s", BROKEN), f"not finite ({count})")])
    return drawing.svg()
